"""An engine that is wrong in a usual way doesn't pass the comparison with one record at a time.

Each fault is put where a caller could put it, so that the honest engine's inside is free to change.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import exact
from support.exact import RECORDS, TOLERANCE
from support.faults import samples_changed_by, token_mean

from sordino.client import train
from sordino.client.lora import LoraAdapter
from sordino.client.model.decoder import Decoder
from sordino.client.model.packing import Packing
from sordino.core.config import PerformanceConfig
from sordino.privacy.plan import RoundMechanism


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return exact.open_model(tmp_path_factory.mktemp("model"), "llama", "Q4_1")


@pytest.fixture(scope="module")
def reference(model):
    return model.reference("all")


def compare_samples(model, reference, dtype=torch.float64):
    trained = exact.trained_names(model, reference, "fedit")
    losses, samples = exact.samples_of(model.decoder, reference, trained, dtype=dtype)
    exact.assert_same_samples(losses, samples, reference, TOLERANCE[dtype])


def compare_sum(model, reference, folder, dtype=torch.float64, micro_batch=3):
    trained = exact.trained_names(model, reference, "fedit")
    clip_norm = reference.clip_norm(trained)
    with exact.grid_finer_than_any_error():
        done = exact.round_of(
            folder,
            exact.poisoned(model.decoder),
            reference,
            trained,
            [*RECORDS, exact.broken(30)],
            clip_norm=clip_norm,
            dtype=dtype,
            performance=PerformanceConfig(micro_batch=micro_batch),
        )
    exact.assert_same_sum(done.sums[0], reference, clip_norm, TOLERANCE[dtype])


def swapped(sample, records):
    """Of the A's alone: all tensors of two records swapped would be the same records again."""
    if len(records) > 1 and sample.shape[1] == 4:
        sample[:2] = sample[:2].flip(0)


def float32_inside(sample, records):
    sample.copy_(sample.float())


def a_little_longer(sample, records):
    sample.mul_(1 + 1e-11)


def no_scale(monkeypatch):
    honest = LoraAdapter.__init__

    def init(self, tensors, *, scale, **settings):
        honest(self, tensors, scale=1.0, **settings)

    monkeypatch.setattr(LoraAdapter, "__init__", init)


def batch_changed_by(change):
    def patch(monkeypatch):
        honest = train.make_batch
        monkeypatch.setattr(train, "make_batch", lambda records: change(honest, records))

    return patch


def a_row_given_to_the_neighbour(honest, records):
    batch = honest(records)
    *others, last = batch.packing.lengths
    if not others or last == 1:
        return batch
    lengths = (*others[:-1], others[-1] + 1, last - 1)
    return replace(batch, packing=Packing(lengths))


def prompts_counted(honest, records):
    return honest([replace(r, targets_mask=np.ones_like(r.targets_mask)) for r in records])


def one_packed_row(monkeypatch):
    """Records that lie in one row see each other."""
    honest = Decoder.hidden

    def hidden(self, ids, packing, **settings):
        return honest(self, ids, Packing((sum(packing.lengths),)), **settings)

    monkeypatch.setattr(Decoder, "hidden", hidden)


def factors_changed_by(change):
    def patch(monkeypatch):
        honest = RoundMechanism.clip_factors
        monkeypatch.setattr(
            RoundMechanism,
            "clip_factors",
            lambda self, norms: change(honest(self, norms), np.asarray(norms)),
        )

    return patch


def of_the_batch(factors, norms):
    return np.where(factors > 0, factors[factors > 0].mean(), 0.0)


def nothing_with_a_nan(factors, norms):
    return factors * np.isfinite(norms).all()


IN_THE_GRADIENTS = {
    "token-mean loss": samples_changed_by(token_mean),
    "two records swapped": samples_changed_by(swapped),
    "float32 within": samples_changed_by(float32_inside),
    "an error of 1e-11": samples_changed_by(a_little_longer),
    "no LoRA scale": no_scale,
    "a row given to the neighbour": batch_changed_by(a_row_given_to_the_neighbour),
    "prompts counted": batch_changed_by(prompts_counted),
    "one packed row": one_packed_row,
}
IN_THE_SUM = {
    "clip factor applied twice": factors_changed_by(lambda factors, _: factors**2),
    "no clip": factors_changed_by(lambda factors, _: (factors > 0).astype(np.float64)),
    "clip of the batch": factors_changed_by(of_the_batch),
    "mean of the batch": factors_changed_by(lambda factors, _: factors / len(factors)),
    "a NaN takes its neighbours along": factors_changed_by(nothing_with_a_nan),
}


def test_the_honest_engine_passes(model, reference, tmp_path):
    for dtype in TOLERANCE:
        compare_samples(model, reference, dtype)
        compare_sum(model, reference, tmp_path, dtype)


@pytest.mark.parametrize("fault", IN_THE_GRADIENTS)
def test_wrong_gradients_are_caught(model, reference, monkeypatch, fault):
    IN_THE_GRADIENTS[fault](monkeypatch)
    with pytest.raises(AssertionError):
        compare_samples(model, reference)


@pytest.mark.parametrize("fault", {**IN_THE_GRADIENTS, **IN_THE_SUM})
def test_a_wrong_sum_is_caught(model, reference, monkeypatch, tmp_path, fault):
    {**IN_THE_GRADIENTS, **IN_THE_SUM}[fault](monkeypatch)
    with pytest.raises(AssertionError):
        compare_sum(model, reference, tmp_path)


def test_in_float32_an_error_of_3e_5_is_caught(model, reference, monkeypatch, tmp_path):
    samples_changed_by(lambda sample, _: sample.mul_(1 + 3e-5))(monkeypatch)
    for compare in (compare_samples, lambda *a: compare_sum(*a[:2], tmp_path, a[2])):
        with pytest.raises(AssertionError):
            compare(model, reference, torch.float32)

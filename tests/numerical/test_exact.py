"""A step equals one record at a time: every block type, family, turn, target and speed setting.

The reference (`support.exact`) is transformers, PEFT and torch's autograd in float64. Not the whole
product, which has 432 steps a model: for each model every two settings meet (`pairwise`). What the
families leave open is compared for all of them in `test_family_gradients`.
"""

import numpy as np
import pytest
import torch
from support import exact
from support.exact import RECORDS, TOLERANCE, pairwise
from support.rounds import Still, plan

from sordino.client.model.blocks import FORMATS
from sordino.core.config import PerformanceConfig

MODELS = [
    *(("llama", kind) for kind in (*FORMATS, "int8", "nf4")),
    ("gemma3", "Q8_0"),
    ("gpt2", "Q4_0"),
    ("gpt_neox", "int8"),
]
EVERY = 64  # more than there are records: all in one micro-batch
GRADIENTS = {
    "turn": tuple(exact.TURNS),
    "targets": tuple(exact.TARGETS),
    "dtype": (torch.float64, torch.float32),
    "checkpoint": (False, True),
}
STEPS = {**GRADIENTS, "micro_batch": (1, 2, EVERY), "broken": (0, 1, 2)}


def name_of(row):
    return "-".join(f"{k[0]}={str(v).removeprefix('torch.')}" for k, v in row.items())


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def model(request, tmp_path_factory):
    return exact.open_model(tmp_path_factory.mktemp("model"), *request.param)


@pytest.fixture(scope="module", params=["llama-Q4_1", "gemma3-Q8_0", "gpt2-F16", "gpt_neox-int8"])
def one_of_each(request, tmp_path_factory):
    return exact.open_model(tmp_path_factory.mktemp("model"), *request.param.split("-"))


def test_every_format_has_its_model():
    assert {kind for _, kind in MODELS} == {*FORMATS, "int8", "nf4"}


def test_every_two_settings_meet():
    rows = pairwise(STEPS)
    met = set().union(*map(exact.pairs_of, rows))
    sizes = [len(values) for values in STEPS.values()]
    assert len(met) == (sum(sizes) ** 2 - sum(n * n for n in sizes)) / 2
    assert len(rows) < 20


@pytest.mark.parametrize("row", pairwise(GRADIENTS), ids=name_of)
def test_per_record_gradients(model, row):
    reference = model.reference(row["targets"])
    trained = exact.trained_names(model, reference, row["turn"])
    losses, samples = exact.samples_of(
        model.decoder, reference, trained, dtype=row["dtype"], recompute=row["checkpoint"]
    )
    exact.assert_same_samples(losses, samples, reference, TOLERANCE[row["dtype"]])


@pytest.mark.parametrize("row", pairwise(STEPS), ids=name_of)
def test_the_clipped_sum_and_the_update(model, row, tmp_path):
    """Clipped records and others in one batch, and among them some whose gradient is NaN."""
    reference = model.reference(row["targets"])
    trained = exact.trained_names(model, reference, row["turn"])
    clip_norm = reference.clip_norm(trained)
    bad = [exact.broken(length) for length in (30, 3)[: row["broken"]]]
    with exact.grid_finer_than_any_error():
        done = exact.round_of(
            tmp_path,
            exact.poisoned(model.decoder),
            reference,
            trained,
            [*RECORDS[:2], *bad, *RECORDS[2:]],
            clip_norm=clip_norm,
            dtype=row["dtype"],
            performance=PerformanceConfig(
                micro_batch=row["micro_batch"], checkpoint=row["checkpoint"]
            ),
        )
    assert done.seen.not_finite == len(bad)
    assert done.seen.clipped == sum(norm > clip_norm for norm in reference.norms(trained))
    assert 0 < done.seen.clipped < len(RECORDS)
    (total,) = done.sums
    exact.assert_same_sum(total, reference, clip_norm, TOLERANCE[row["dtype"]])
    assert done.update.keys() == total.keys() == set(trained)
    for name, change in done.update.items():  # at a learning rate of 1, in float32
        step = -total[name].numpy() / exact.DIVISOR
        assert np.abs(change - step).max() <= 2.0**-22 * np.abs(reference.tensors[name]).max()


@pytest.mark.parametrize("micro_batch", [1, 2, EVERY])
def test_on_the_plans_grid_the_sum_is_the_same_bit_for_bit(one_of_each, micro_batch, tmp_path):
    """Each record's clipped gradient is rounded to the plan's grid by itself, then summed."""
    reference = one_of_each.reference("all")
    trained = exact.trained_names(one_of_each, reference, "fedit")
    clip_norm = reference.clip_norm(trained)
    done = exact.round_of(
        tmp_path,
        one_of_each.decoder,
        reference,
        trained,
        RECORDS,
        clip_norm=clip_norm,
        performance=PerformanceConfig(micro_batch=micro_batch),
    )
    size = sum(reference.tensors[name].size for name in trained)
    step = plan(clip_norm=clip_norm).grid_step(size)
    clipped = reference.clipped(trained, clip_norm)
    for name, total in done.sums[0].items():
        assert torch.equal(total, sum((one[name] / step).round() * step for one in clipped))


class EveryOther(Still):
    """Samples every record in the first step, none in the second, and so on."""

    def __init__(self):
        self.calls = 0

    def coins(self, size):
        self.calls += 1
        return np.full(size, 0 if self.calls % 2 else 2**64 - 1, np.uint64)


@pytest.mark.parametrize(("turn", "checkpoint"), zip(exact.TURNS, [False, True] * 2, strict=True))
def test_an_empty_batch_is_a_step_of_zeros_and_leaves_nothing_behind(
    one_of_each, turn, checkpoint, tmp_path
):
    reference = one_of_each.reference("all")
    trained = exact.trained_names(one_of_each, reference, turn)
    done = exact.round_of(
        tmp_path,
        one_of_each.decoder,
        reference,
        trained,
        RECORDS,
        clip_norm=reference.clip_norm(trained),
        performance=PerformanceConfig(micro_batch=2, checkpoint=checkpoint),
        source=EveryOther(),
        learning_rate=1e-30,  # the parameters stay where they are
        steps=4,
    )
    assert done.seen.batch_sizes == [len(RECORDS), 0] * 2
    first, empty, third, fourth = done.sums
    for name in trained:
        assert torch.count_nonzero(first[name]) > 0
        assert torch.equal(first[name], third[name])
        assert torch.count_nonzero(empty[name]) == torch.count_nonzero(fourth[name]) == 0


def test_a_batch_of_broken_records_is_a_step_of_zeros(one_of_each, tmp_path):
    reference = one_of_each.reference("all")
    trained = exact.trained_names(one_of_each, reference, "fedit")
    decoder, bad = exact.poisoned(one_of_each.decoder), [exact.broken(9), exact.broken(4)]
    done = exact.round_of(tmp_path, decoder, reference, trained, bad, clip_norm=1.0)
    assert done.seen.not_finite == 2
    assert all(torch.count_nonzero(part) == 0 for part in done.sums[0].values())
    assert all(np.count_nonzero(part) == 0 for part in done.update.values())

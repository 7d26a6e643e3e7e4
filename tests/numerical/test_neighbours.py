"""One record added or removed moves the clipped sum of a whole local step by no more than C.

Or rather than C and the grid that the sum is put on (`Plan.sensitivity`), as it is accounted. The
sum is read where the guarantee is about it: after the whole path of a real step, before the
noise. The same measurement must catch a step that is wrong in each of the usual ways.
"""

import numpy as np
import pytest
import torch
from support import tiny
from support.rounds import Still, mechanism, plan

from sordino.client import train
from sordino.client.lora import LoraAdapter
from sordino.client.model import loss
from sordino.client.train import Observations, PlanOptimizer
from sordino.core.adapters import adapter_manifest, trained_manifest
from sordino.core.config import LoraConfig, PerformanceConfig
from sordino.privacy.plan import RoundMechanism

C = 0.05
NEIGHBOUR = tiny.record(12, 1)
UNCLIPPED = 100.0  # longer than any gradient here, and not so long that its grid shows
DIVISOR = 3.0
SIZE = adapter_manifest(tiny.CONFIG, LoraConfig(rank=4, alpha=8.0)).parameter_count


def limit(clip_norm=C):
    """What the plan accounts: the clip norm, and less than 0.1 % for the grid."""
    bound = plan(clip_norm=clip_norm).sensitivity(SIZE)
    assert clip_norm < bound < 1.001 * clip_norm
    return bound


ORDINARY = [tiny.record(12, 1), tiny.record(9, 2), tiny.record(9, 3), tiny.record(20, 4, masked=11)]
EXTRA = {
    "ordinary": tiny.record(12, 50),
    "short, so padded": tiny.record(2, 51),
    "very long": tiny.record(120, 52),
    "one target after a long prompt": tiny.record(60, 53, masked=59),
}


def released(folder, records, *, clip_norm=C, micro_batch=8, recompute=False, poison=None):
    """The gradient that a step releases, times the public divisor, without its noise."""
    manifest = adapter_manifest(tiny.CONFIG, LoraConfig(rank=4, alpha=8.0))
    adapter = LoraAdapter(
        tiny.adapter_tensors(manifest),
        scale=2.0,
        trained=trained_manifest(manifest, "fedit", 1).names,
        dtype=torch.float64,
    )
    opened = mechanism(folder, Still(), clip_norm=clip_norm, divisor=DIVISOR)
    seen = Observations()
    inner = torch.optim.SGD(list(adapter.parameters.values()), lr=1.0)
    optimizer = PlanOptimizer(inner, opened, seen)
    before = {n: p.detach().clone() for n, p in adapter.parameters.items()}
    chosen = [records[i] for i in opened.sample(len(records))]
    assert len(chosen) == len(records)
    with pytest.MonkeyPatch.context() as patch:
        if poison is not None:
            patch.setattr(train, "record_losses", _poisoned(poison, train.record_losses))
        performance = PerformanceConfig(micro_batch=micro_batch, checkpoint=recompute)
        train._step(tiny.decoder(), adapter, optimizer, chosen, performance, torch.float64)
    moved = [(before[n] - p.detach()).flatten() for n, p in adapter.parameters.items()]
    return torch.cat(moved) * DIVISOR, seen


def _poisoned(length, honest):
    """A loss that is NaN for the records of one length."""

    def losses(hidden, head, targets, owners, records):
        counts = torch.bincount(owners, minlength=records)
        values = honest(hidden, head, targets, owners, records)
        bad = (counts == length).to(values.dtype)
        return values * torch.where(bad > 0, torch.nan, torch.ones_like(bad))

    return losses


def distance(folder, one, other, **settings):
    return float(
        (released(folder, one, **settings)[0] - released(folder, other, **settings)[0]).norm()
    )


def length_of(folder, record):
    """Norm of one record's gradient, unclipped."""
    length = float(released(folder, [record], clip_norm=UNCLIPPED)[0].norm())
    assert C < length < UNCLIPPED / 2
    return length


@pytest.mark.parametrize("micro_batch", [1, 2, 8])
@pytest.mark.parametrize("kind", EXTRA)
def test_adding_or_removing_a_record_moves_the_sum_by_at_most_c(tmp_path, kind, micro_batch):
    with_it = [*ORDINARY, EXTRA[kind]]
    moved = distance(tmp_path, with_it, ORDINARY, micro_batch=micro_batch)
    assert 0 < moved <= limit()


@pytest.mark.parametrize("kind", EXTRA)
def test_before_the_grid_the_bound_is_c_itself(tmp_path, monkeypatch, kind):
    """The sum of the clipped gradients in float64, as it is before it is put on the grid."""
    honest, seen = train.grid_sum, []

    def noting(weights, sample, step):
        seen.append(torch.tensordot(weights.to(torch.float64), sample.double(), 1).flatten())
        return honest(weights, sample, step)

    monkeypatch.setattr(train, "grid_sum", noting)

    def clipped_sum(records):
        seen.clear()
        released(tmp_path, records)
        return torch.cat(seen)

    with_it, without = clipped_sum([*ORDINARY, EXTRA[kind]]), clipped_sum(ORDINARY)
    other = clipped_sum([*ORDINARY, tiny.record(12, 99)])
    assert C * (1 - 1e-6) <= float((with_it - without).norm()) <= C * (1 + 1e-6)
    assert float((with_it - other).norm()) <= 2 * C * (1 + 1e-6)


@pytest.mark.parametrize("kind", EXTRA)
def test_replacing_a_record_moves_the_sum_by_at_most_2c(tmp_path, kind):
    one, other = [*ORDINARY, EXTRA[kind]], [*ORDINARY, tiny.record(12, 99)]
    assert distance(tmp_path, one, other) <= 2 * limit()


def test_the_bound_is_reached_so_the_test_has_power(tmp_path):
    # The gradients are longer than C: a record moves the sum by C itself, not by some small part.
    moved = distance(tmp_path, [*ORDINARY, EXTRA["ordinary"]], ORDINARY)
    assert moved == pytest.approx(C, rel=1e-3)


def test_from_no_record_to_one(tmp_path):
    nothing, seen = released(tmp_path, [])
    assert torch.count_nonzero(nothing) == 0
    assert seen.clipped == 0
    assert distance(tmp_path, [EXTRA["ordinary"]], []) <= limit()


@pytest.mark.parametrize("micro_batch", [1, 8])
def test_a_record_that_is_not_finite_contributes_nothing(tmp_path, micro_batch):
    broken = tiny.record(31, 60)  # the only one with 30 targets
    released_sum, seen = released(tmp_path, [*ORDINARY, broken], micro_batch=micro_batch, poison=30)
    assert seen.not_finite == 1
    assert torch.isfinite(released_sum).all()
    without, _ = released(tmp_path, ORDINARY, micro_batch=micro_batch)
    torch.testing.assert_close(released_sum, without, rtol=1e-12, atol=1e-15)


def test_settings_of_speed_do_not_change_the_sum(tmp_path):
    records = [*ORDINARY, *EXTRA.values()]
    reference, _ = released(tmp_path, records)
    for micro_batch in (1, 2, 3, 8):
        for recompute in (False, True):
            other, _ = released(tmp_path, records, micro_batch=micro_batch, recompute=recompute)
            torch.testing.assert_close(other, reference, rtol=1e-9, atol=1e-12)


# --- a wrong step is caught --------------------------------------------------------------------


def test_a_token_mean_loss_is_caught(tmp_path, monkeypatch):
    """The mean over the batch's tokens couples records: a neighbour changes everyone's weight."""

    def token_mean(hidden, head, targets, owners, records):
        weights = torch.full((len(targets),), records / len(targets), dtype=hidden.dtype)
        return loss.RecordCrossEntropy.apply(hidden, head, targets, owners, weights, records)

    monkeypatch.setattr(train, "record_losses", token_mean)
    # Neighbours shorter than C, whose weights all shrink when a long record joins them.
    bound, neighbours = 2 * length_of(tmp_path, NEIGHBOUR), [NEIGHBOUR] * 20
    longer = [*neighbours, EXTRA["very long"]]
    moved = distance(tmp_path, longer, neighbours, clip_norm=bound, micro_batch=64)
    assert moved > limit(bound)


def test_the_honest_loss_passes_where_the_token_mean_is_caught(tmp_path):
    bound, neighbours = 2 * length_of(tmp_path, NEIGHBOUR), [NEIGHBOUR] * 20
    longer = [*neighbours, EXTRA["very long"]]
    moved = distance(tmp_path, longer, neighbours, clip_norm=bound, micro_batch=64)
    assert 0 < moved <= limit(bound)


def test_a_missing_clip_is_caught(tmp_path, monkeypatch):
    honest = RoundMechanism.clip_factors

    def no_clip(self, norms):
        return np.ones_like(honest(self, norms))

    monkeypatch.setattr(RoundMechanism, "clip_factors", no_clip)
    moved = distance(tmp_path, [*ORDINARY, EXTRA["ordinary"]], ORDINARY)
    assert moved > limit()


def test_a_clip_of_each_tensor_by_itself_is_caught(tmp_path, monkeypatch):
    def only_the_first(samples):
        return torch.linalg.vector_norm(samples[0].flatten(1), dim=1, dtype=torch.float64)

    monkeypatch.setattr(train, "record_norms", only_the_first)
    moved = distance(tmp_path, [*ORDINARY, EXTRA["ordinary"]], ORDINARY)
    assert moved > limit()


def test_a_divisor_that_depends_on_the_data_is_caught(tmp_path, monkeypatch):
    accumulate, scale = PlanOptimizer.clip_and_accumulate, PlanOptimizer.scale_grad

    def counting(self):
        self.batch = len(self.grad_samples[0])
        accumulate(self)

    def by_batch_size(self):
        self.expected_batch_size = max(1, self.batch)
        scale(self)

    monkeypatch.setattr(PlanOptimizer, "clip_and_accumulate", counting)
    monkeypatch.setattr(PlanOptimizer, "scale_grad", by_batch_size)
    assert distance(tmp_path, [EXTRA["ordinary"]], []) > limit()


def test_what_is_released_was_summed_on_the_grid_and_is_not_touched_before(tmp_path, monkeypatch):
    sums, honest = [], RoundMechanism.release

    def watched(self, total):
        sums.append(np.array(total))
        return honest(self, total)

    monkeypatch.setattr(RoundMechanism, "release", watched)
    moved, _ = released(tmp_path, [*ORDINARY, *EXTRA.values()], micro_batch=2)
    (total,) = sums
    steps = total / plan().grid_step(SIZE)
    assert total.dtype == np.float64
    assert (steps == np.rint(steps)).all()
    assert np.count_nonzero(steps) > SIZE / 2
    np.testing.assert_allclose(moved.numpy(), total, rtol=1e-9, atol=1e-12)

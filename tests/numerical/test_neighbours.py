"""One record added or removed moves the clipped sum of a whole local step by no more than C.

Or rather than C and the grid that the sum is put on (`Plan.sensitivity`), as it is accounted. The
sum is read where the guarantee is about it: after the whole path of a real step, before the
noise. The same measurement must catch a step that is wrong in each of the usual ways.
"""

import numpy as np
import pytest
import torch
from support import exact, tiny
from support.faults import samples_changed_by, token_mean
from support.rounds import Still, mechanism, plan

from sordino.client import train
from sordino.core.adapters import adapter_manifest, trained_manifest
from sordino.core.config import LoraConfig, PerformanceConfig, TrainConfig
from sordino.core.errors import PlanError
from sordino.privacy.plan import RoundMechanism

LORA = LoraConfig(rank=4, alpha=8.0)
C = 0.05
NEIGHBOUR = tiny.record(12, 1)
UNCLIPPED = 100.0  # longer than any gradient here, and not so long that its grid shows
DIVISOR = 3.0
SIZE = adapter_manifest(tiny.CONFIG, LORA).parameter_count


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


def released(folder, records, *, clip_norm=C, micro_batch=8, recompute=False):
    """The update of a step with learning rate 1, times the public divisor, without its noise."""
    tensors = tiny.adapter_tensors(adapter_manifest(tiny.CONFIG, LORA))
    update, seen = train.train_round(
        exact.poisoned(tiny.decoder()),
        tensors,
        trained_manifest(adapter_manifest(tiny.CONFIG, LORA), "fedit", 1).names,
        records,
        mechanism(folder, Still(), clip_norm=clip_norm, divisor=DIVISOR),
        round_number=1,
        lora=LORA,
        train=TrainConfig(learning_rate=1.0, local_steps=1),
        performance=PerformanceConfig(micro_batch=micro_batch, checkpoint=recompute),
        dtype=torch.float64,
    )
    assert seen.batch_sizes == [len(records)]
    moved = [torch.from_numpy(-update[n]).double().flatten() for n in tensors if n in update]
    return torch.cat(moved) * DIVISOR, seen


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
def test_before_the_grid_the_bound_is_c_itself(tmp_path, kind):
    """The sum of the clipped gradients in float64, as it is before it is put on the grid."""

    def clipped_sum(records):
        with exact.grid_finer_than_any_error(), exact.sums_before_noise() as sums:
            released(tmp_path, records)
        return torch.from_numpy(sums[0])

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
    broken = exact.broken(31)
    released_sum, seen = released(tmp_path, [*ORDINARY, broken], micro_batch=micro_batch)
    assert seen.not_finite == 1
    assert torch.isfinite(released_sum).all()
    without, _ = released(tmp_path, ORDINARY, micro_batch=micro_batch)
    assert torch.equal(released_sum, without)


def test_settings_of_speed_do_not_change_the_sum(tmp_path):
    records = [*ORDINARY, *EXTRA.values()]
    reference, _ = released(tmp_path, records)
    for micro_batch in (1, 2, 3, 8):
        for recompute in (False, True):
            other, _ = released(tmp_path, records, micro_batch=micro_batch, recompute=recompute)
            assert torch.equal(other, reference)


# --- a wrong step is caught --------------------------------------------------------------------


def test_a_token_mean_loss_is_caught(tmp_path, monkeypatch):
    """The mean over the batch's tokens couples records: a neighbour changes everyone's weight."""

    samples_changed_by(token_mean)(monkeypatch)
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


def assert_caught_twice(tmp_path, monkeypatch):
    """The mechanism refuses a sum so long; and without that, the neighbours show it."""
    joined = [*ORDINARY, EXTRA["ordinary"]]
    with pytest.raises(PlanError, match="clip each"):
        distance(tmp_path, joined, ORDINARY)
    monkeypatch.setattr(RoundMechanism, "_check_length", lambda self, total: None)
    assert distance(tmp_path, joined, ORDINARY) > limit()


def test_a_missing_clip_is_caught(tmp_path, monkeypatch):
    honest = RoundMechanism.clip_factors

    def no_clip(self, norms):
        return np.ones_like(honest(self, norms))

    monkeypatch.setattr(RoundMechanism, "clip_factors", no_clip)
    assert_caught_twice(tmp_path, monkeypatch)


def test_a_clip_of_each_tensor_by_itself_is_caught(tmp_path, monkeypatch):
    def only_the_first(samples):
        return torch.linalg.vector_norm(samples[0].flatten(1), dim=1, dtype=torch.float64)

    monkeypatch.setattr(train, "record_norms", only_the_first)
    assert_caught_twice(tmp_path, monkeypatch)


def test_a_divisor_that_depends_on_the_data_is_caught(tmp_path, monkeypatch):
    sample, release = RoundMechanism.sample, RoundMechanism.release
    batch = []

    def counting(self, population):
        batch[:] = sample(self, population)
        return np.array(batch, np.intp)

    def by_batch_size(self, total):
        return release(self, total) * DIVISOR / max(1, len(batch))

    monkeypatch.setattr(RoundMechanism, "sample", counting)
    monkeypatch.setattr(RoundMechanism, "release", by_batch_size)
    assert distance(tmp_path, [EXTRA["ordinary"]], []) > limit()


def test_what_is_released_was_summed_on_the_grid_and_is_not_touched_before(tmp_path):
    with exact.sums_before_noise() as sums:
        moved, _ = released(tmp_path, [*ORDINARY, *EXTRA.values()], micro_batch=2)
    (total,) = sums
    steps = total / plan().grid_step(SIZE)
    assert total.dtype == np.float64
    assert (steps == np.rint(steps)).all()
    assert np.count_nonzero(steps) > SIZE / 2
    np.testing.assert_allclose(moved.numpy(), total, rtol=1e-6, atol=1e-7)  # it left in float32

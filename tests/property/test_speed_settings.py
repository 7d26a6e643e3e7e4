"""Settings of speed can't change the guarantee: the same plan under every one of them.

What is accounted must be the same to the bit: the charge, the batches, the grid, the divisor, the
number and the scale of the draws. The clipped sums must be the same but for the rounding of the
gradients: to 1e-12 of their norm in float64 and 1e-5 in float32, and on the plan's own grid, where
that rounding is lost, bit for bit in float64, so that even the noised update is the same.

How many `workers` share a machine shows in a whole simulation only, which
`test_seeded_runs_are_the_same_for_any_number_of_workers` compares; here it is an idle setting.
"""

import functools
import itertools
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import exact, tiny
from support.rounds import Still, plan

from sordino.client.train import train_round
from sordino.core.adapters import adapter_manifest, trained_manifest
from sordino.core.config import LoraConfig, PerformanceConfig, TrainConfig
from sordino.privacy.ledger import Ledger
from sordino.privacy.noise import seeded_source
from sordino.privacy.plan import open_round

# Every field of PerformanceConfig, with values that take it through all it can do.
VALUES = {
    "workers": (0, 1, 3),
    "micro_batch": (1, 2, 3, 64),
    "checkpoint": (False, True),
    "memory_mb": (0, 18, 10_000),  # 18: less than a record takes, so layers run twice
}
LORA = LoraConfig(rank=4, alpha=8.0)
MANIFEST = adapter_manifest(tiny.CONFIG, LORA)
TRAINED = trained_manifest(MANIFEST, "fedit", 1).names
TENSORS = tiny.adapter_tensors(MANIFEST)
# Of many lengths, equal ones among them, masked and not.
RECORDS = [tiny.record(3 + 5 * (i % 6), i, masked=i % 3) for i in range(14)]
CLIP_NORM = 4.0  # between the gradients' norms
ONE_BY_ONE = [
    {**asdict(PerformanceConfig()), name: value}
    for name, values in VALUES.items()
    for value in values
]
combinations = st.fixed_dictionaries({n: st.sampled_from(v) for n, v in VALUES.items()})


class Counting:
    """A source that keeps count of what it is asked for."""

    def __init__(self, source):
        self.source, self.draws, self.coin_calls = source, [], []
        self.label, self.private = source.label, source.private

    def rounded_gaussian(self, size, scale):
        self.draws.append((size, scale))
        return self.source.rounded_gaussian(size, scale)

    def coins(self, size):
        self.coin_calls.append(size)
        return self.source.coins(size)


@dataclass(frozen=True)
class Accounted:
    """All that the guarantee rests on, but for the sum."""

    terms: dict
    charges: int
    divisor: float
    grid_step: float
    sensitivity: float
    noise_std: float
    draws: list
    coin_calls: list
    batch_sizes: list
    clipped: int
    not_finite: int
    opacus_steps: list


def train(chosen, *, source=None, dtype=torch.float64, steps=3, learning_rate=0.1):
    """A round under some settings of speed: what is accounted, sums before noise, update."""
    made = plan(clip_norm=CLIP_NORM, steps_per_round=steps, divisor=7.0)
    counting = Counting(source or seeded_source(5))
    with tempfile.TemporaryDirectory() as folder, exact.sums_before_noise() as sums:
        ledger = Ledger(Path(folder) / "ledger.db", "client")
        charge = ledger.charge(made, 1, "data")
        mechanism = open_round(made, charge, counting)
        update, seen = train_round(
            tiny.decoder(),
            TENSORS,
            TRAINED,
            RECORDS,
            mechanism,
            round_number=1,
            lora=LORA,
            train=TrainConfig(learning_rate=learning_rate, local_steps=steps),
            performance=PerformanceConfig(**chosen),
            dtype=dtype,
        )
        charges = len(ledger.standings)
    assert mechanism.finished
    (size,) = {len(total) for total in sums}
    accounted = Accounted(
        terms=charge.entry.terms(),
        charges=charges,
        divisor=mechanism.divisor,
        grid_step=made.grid_step(size),
        sensitivity=made.sensitivity(size),
        noise_std=made.noise_std(size),
        draws=counting.draws,
        coin_calls=counting.coin_calls,
        batch_sizes=seen.batch_sizes,
        clipped=seen.clipped,
        not_finite=seen.not_finite,
        opacus_steps=seen.opacus_steps,
    )
    return accounted, sums, update


@functools.cache
def expected():
    """Under the default settings."""
    return train({})


def check(chosen):
    accounted, sums, update = train(chosen)
    due, due_sums, due_update = expected()
    assert accounted == due
    assert all(map(np.array_equal, sums, due_sums))
    assert update.keys() == due_update.keys()
    assert all(np.array_equal(update[n], due_update[n]) for n in update)


def test_every_setting_of_speed_is_in_the_table():
    missing = {f.name for f in fields(PerformanceConfig)} - VALUES.keys()
    assert not missing, (
        f"PerformanceConfig has {sorted(missing)}, which this test doesn't try: add values for "
        "each to VALUES, so that it is shown not to change the guarantee"
    )
    assert VALUES.keys() == {f.name for f in fields(PerformanceConfig)}
    for name, values in VALUES.items():
        assert len(set(values)) > 1, name


def test_the_round_is_worth_comparing():
    """Clipped and unclipped records, batches of several sizes, noise that is drawn once a step."""
    accounted, sums, update = expected()
    assert 0 < accounted.clipped < sum(accounted.batch_sizes)
    assert len(set(accounted.batch_sizes)) > 1
    assert len(accounted.draws) == len(sums) == 3
    assert accounted.charges == 1
    assert all(np.count_nonzero(change) for change in update.values())


@pytest.mark.parametrize("chosen", ONE_BY_ONE, ids=str)
def test_each_setting_by_itself(chosen):
    check(chosen)


@given(combinations)
@settings(max_examples=8, deadline=None, derandomize=True)
def test_settings_together(chosen):
    check(chosen)


@pytest.mark.parametrize("dtype", exact.TOLERANCE)
def test_below_the_grid_only_rounding_differs(dtype):
    """The sum of one step before it is put on the plan's grid."""
    with exact.grid_finer_than_any_error():
        run = functools.partial(train, source=Still(), dtype=dtype, steps=1)
        due, (expected_sum,), _ = run({})
        for chosen in itertools.chain(ONE_BY_ONE, [{n: v[-1] for n, v in VALUES.items()}]):
            accounted, (total,), _ = run(chosen)
            assert accounted == due
            gap = np.linalg.norm(total - expected_sum)
            assert gap <= exact.TOLERANCE[dtype] * np.linalg.norm(expected_sum)


@pytest.mark.parametrize("what", ["divisor", "second draw", "smaller batch"])
def test_a_setting_that_reaches_the_guarantee_is_caught(monkeypatch, what):
    """As if a micro-batch of one brought a divisor, a draw or a batch of its own."""
    from sordino.client import train as module

    honest = module.train_round

    def wrong(decoder, tensors, trained, records, mechanism, *, performance, **rest):
        if performance.micro_batch == 1 and what == "divisor":
            monkeypatch.setattr(type(mechanism), "divisor", property(lambda _: 1.0))
        if performance.micro_batch == 1 and what == "second draw":
            mechanism._source.rounded_gaussian(1, 1.0)
        if performance.micro_batch == 1 and what == "smaller batch":
            records = records[:-1]
        return honest(
            decoder, tensors, trained, records, mechanism, performance=performance, **rest
        )

    expected()
    monkeypatch.setitem(globals(), "train_round", wrong)
    with pytest.raises(AssertionError):
        check({"micro_batch": 1})

"""The learning rate at each step of a run."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.core.config import TrainConfig
from sordino.core.schedule import learning_rates


def whole_run(train, rounds, steps):
    """The rates of all rounds, one after another."""
    return [
        rate
        for number in range(1, rounds + 1)
        for rate in learning_rates(train, round_number=number, rounds=rounds, steps=steps)
    ]


@given(
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    warmup=st.floats(0, 0.99),
    peak=st.floats(1e-6, 1e3),
    rounds=st.integers(1, 6),
    steps=st.integers(1, 12),
)
@settings(max_examples=200, deadline=None)
def test_rates_rise_then_fall_and_are_positive(schedule, warmup, peak, rounds, steps):
    train = TrainConfig(schedule=schedule, warmup=warmup, learning_rate=peak)
    rates = whole_run(train, rounds, steps)
    top = rates.index(max(rates))
    assert len(rates) == rounds * steps
    assert all(0 < rate <= peak for rate in rates)
    assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)
    assert max(rates) == pytest.approx(peak)
    assert rates.index(max(rates)) <= math.floor(warmup * len(rates))


@given(
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    rounds=st.integers(1, 6),
    steps=st.integers(1, 12),
)
@settings(max_examples=60, deadline=None)
def test_rounds_do_not_change_the_schedule(schedule, rounds, steps):
    """A client alone does all its steps in one round, under the same schedule."""
    train = TrainConfig(schedule=schedule, warmup=0.25)
    assert whole_run(train, rounds, steps) == whole_run(train, 1, rounds * steps)


def test_known_values():
    cosine = TrainConfig(schedule="cosine", learning_rate=2.0)
    wanted = [1 + math.cos(math.pi * k / 4) for k in range(4)]
    assert whole_run(cosine, 2, 2) == pytest.approx(wanted)
    assert whole_run(TrainConfig(learning_rate=3.0), 2, 2) == [3.0] * 4
    warm = TrainConfig(warmup=0.5, learning_rate=4.0)
    assert whole_run(warm, 1, 8) == [1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0, 4.0]

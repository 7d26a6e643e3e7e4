"""The paired bootstrap covers what it says it covers, and rounding never flatters."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sordino.core import stats
from sordino.core.errors import DataError
from sordino.core.stats import paired_bootstrap, perplexity, round_down, round_up


def _records(rng, count, gain, noise=0.3):
    """Loss sums of records whose true gain per token is `gain`, whatever their length."""
    tokens = rng.integers(5, 60, size=count)
    before = tokens * rng.normal(3.0, 0.5, size=count)
    after = before - tokens * rng.normal(gain, noise, size=count)
    return before, after, tokens


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(20240501)
    covered = 0
    for _ in range(200):
        interval = paired_bootstrap(*_records(rng, 80, gain=0.1), rng=rng, resamples=500)
        covered += interval.low <= 0.1 <= interval.high
    assert covered >= 180


def test_a_halved_interval_is_seen_not_to_cover():
    """The coverage test has teeth: intervals of half the width fail it."""
    rng = np.random.default_rng(20240501)
    covered = 0
    for _ in range(200):
        interval = paired_bootstrap(*_records(rng, 80, gain=0.1), rng=rng, resamples=500)
        middle, half = (interval.low + interval.high) / 2, (interval.high - interval.low) / 4
        covered += middle - half <= 0.1 <= middle + half
    assert covered < 180


def test_no_difference_gives_an_interval_that_holds_zero():
    losses = np.arange(1.0, 21.0)
    interval = paired_bootstrap(losses, losses, np.full(20, 7), rng=np.random.default_rng(1))
    assert (interval.low, interval.estimate, interval.high) == (0.0, 0.0, 0.0)
    assert not interval.excludes_zero


def test_estimate_is_a_ratio_of_sums():
    interval = paired_bootstrap(
        [10.0, 100.0], [9.0, 80.0], [1, 99], rng=np.random.default_rng(0), resamples=50
    )
    assert interval.estimate == pytest.approx(21 / 100)  # a mean of ratios would say 0.6


def test_pairing_cancels_what_both_losses_share():
    rng = np.random.default_rng(3)
    tokens = np.full(50, 10)
    hard = rng.normal(30, 10, size=50)
    interval = paired_bootstrap(hard, hard - 1.0, tokens, rng=rng)
    assert interval.high - interval.low < 1e-12


def test_a_clear_gain_excludes_zero_on_either_side():
    rng = np.random.default_rng(4)
    before, after, tokens = _records(rng, 200, gain=0.3)
    assert paired_bootstrap(before, after, tokens, rng=rng).excludes_zero
    assert paired_bootstrap(after, before, tokens, rng=rng).excludes_zero


def test_the_same_seed_gives_the_same_interval_whatever_the_chunk(monkeypatch):
    data = _records(np.random.default_rng(5), 37, gain=0.1)
    whole = paired_bootstrap(*data, rng=np.random.default_rng(6), resamples=101)
    monkeypatch.setattr(stats, "_CHUNK_ELEMENTS", 40)
    assert paired_bootstrap(*data, rng=np.random.default_rng(6), resamples=101) == whole


def test_interval_is_frozen_and_says_how_it_was_made():
    interval = paired_bootstrap([1.0], [0.5], [2], rng=np.random.default_rng(0), resamples=10)
    assert interval.method == "paired bootstrap over records, percentile"
    assert (interval.level, interval.resamples) == (0.95, 10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        interval.low = 0.0


@pytest.mark.parametrize(
    ("before", "after", "tokens", "words"),
    [
        ([], [], [], "not empty"),
        ([1.0], [1.0, 2.0], [1], "one shape"),
        ([math.nan], [1.0], [1], "finite"),
        ([1.0], [math.inf], [1], "finite"),
        ([1.0], [1.0], [0], "at least one token"),
        ([[1.0]], [[1.0]], [[1]], "one shape"),
    ],
)
def test_impossible_records_are_refused(before, after, tokens, words):
    with pytest.raises(DataError, match=words):
        paired_bootstrap(before, after, tokens, rng=np.random.default_rng(0))


@pytest.mark.parametrize("bad", [{"level": 0.0}, {"level": 1.0}, {"resamples": 0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(DataError, match="expected"):
        paired_bootstrap([1.0], [1.0], [1], rng=np.random.default_rng(0), **bad)


@given(st.floats(-1e6, 1e6), st.integers(0, 6))
def test_rounding_stays_on_its_side(value, decimals):
    up, down = round_up(value, decimals), round_down(value, decimals)
    assert down <= value <= up
    assert up - down <= 1.001 * 10**-decimals


@given(st.floats(-1e6, 1e6), st.integers(0, 6))
def test_rounding_twice_is_rounding_once(value, decimals):
    once = round_up(value, decimals)
    assert round_up(once, decimals) == once


def test_rounding_passes_infinity_on():
    assert round_up(math.inf, 2) == math.inf


def test_perplexity():
    assert perplexity(math.log(50)) == pytest.approx(50)
    assert perplexity(1e6) == math.inf

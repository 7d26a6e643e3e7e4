"""Accounting against published figures, closed forms, and deliberately wrong mechanisms."""

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import gaussian_mechanism
from dp_accounting.pld import PLDAccountant

from sordino.core.errors import PlanError
from sordino.privacy.accounting import (
    PoissonSampledGaussian,
    accountants_agree,
    calibrate_noise,
    epsilon_pld,
    epsilon_rdp,
    group_epsilon,
    spent,
)


def gaussian(q: float, sigma: float, steps: int) -> list[PoissonSampledGaussian]:
    return [PoissonSampledGaussian(sampling_rate=q, noise_multiplier=sigma, steps=steps)]


DP_SGD = gaussian(0.016, 0.8, 620)


def test_published_run():
    assert epsilon_pld(DP_SGD, 1e-5) == pytest.approx(4.10, abs=0.005)
    assert epsilon_rdp(DP_SGD, 1e-5) == pytest.approx(4.74, abs=0.005)


def test_without_amplification():
    # 620 disjoint batches at q = 0.016 are ten passes: each record is in ten full-rate releases.
    assert epsilon_pld(gaussian(1.0, 0.8, 10), 1e-5) == pytest.approx(24.0, abs=0.05)


def test_user_of_four_records():
    assert group_epsilon(DP_SGD, 1e-5, 4) == pytest.approx(19.9, abs=0.05)


@pytest.mark.parametrize(("epsilon", "sigma"), [(1, 1.28), (3, 0.83), (8, 0.58)])
def test_hundred_sampled_rounds(epsilon, sigma):
    solved = calibrate_noise(epsilon=epsilon, delta=1e-6, sampling_rate=0.02, steps=100)
    assert math.ceil(solved * 100) / 100 == sigma


@pytest.mark.parametrize(("epsilon", "sigma"), [(1, 42.247), (3, 15.439), (8, 6.530)])
def test_hundred_rounds_without_amplification(epsilon, sigma):
    solved = calibrate_noise(epsilon=epsilon, delta=1e-6, sampling_rate=1.0, steps=100)
    assert math.ceil(solved * 1000) / 1000 == sigma


@pytest.mark.parametrize(("epsilon", "sigma"), [(1, 4.2247), (3, 1.5439), (10, 0.5411)])
def test_one_shot(epsilon, sigma):
    solved = calibrate_noise(epsilon=epsilon, delta=1e-6, sampling_rate=1.0, steps=1)
    assert solved == pytest.approx(sigma, abs=1e-4)


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 20.0])
def test_pld_is_never_below_the_closed_form(sigma, delta):
    exact = gaussian_mechanism.get_epsilon_gaussian(sigma, delta)
    ours = epsilon_pld(gaussian(1.0, sigma * 6, 36), delta)
    assert exact <= ours <= exact * 1.001 + 2e-4


@pytest.mark.parametrize("steps", [620, 10_000])
def test_composition_by_fft_stays_above_the_closed_form(steps):
    # A rate just below one takes the sampled path, step by step, and costs what one Gaussian does.
    nearly = gaussian(1.0 - 1e-12, math.sqrt(steps), steps)
    for delta in (1e-5, 1e-9, 1e-10):
        exact = gaussian_mechanism.get_epsilon_gaussian(1.0, delta)
        assert exact * (1 - 1e-9) <= epsilon_pld(nearly, delta) <= exact * 1.01


def test_grid_is_close_to_a_ten_times_finer_one():
    accountant = PLDAccountant(value_discretization_interval=5e-5)
    step = dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(0.78))
    accountant.compose(step, 60)
    fine = accountant.get_epsilon(1e-5)
    assert fine <= epsilon_pld(gaussian(0.1, 0.78, 60), 1e-5) <= fine + 5e-4


def test_delta_too_small_for_the_composition_is_infinite():
    assert epsilon_pld(gaussian(0.1, 1.0, 10_000), 1e-12) == math.inf


def test_rounds_add_up_to_the_plan_whatever_their_order():
    whole = epsilon_pld(gaussian(0.1, 0.8, 30), 1e-5)
    parts = [*gaussian(0.1, 0.8, 10), *gaussian(0.1, 0.8, 20)]
    assert epsilon_pld(parts, 1e-5) == epsilon_pld(parts[::-1], 1e-5) == whole
    mixed = [*gaussian(0.1, 0.8, 30), *gaussian(0.05, 2.0, 5)]
    assert whole < epsilon_pld(mixed, 1e-5) == epsilon_pld(mixed[::-1], 1e-5)


def test_calibration_is_the_smallest_that_meets_the_target():
    sigma = calibrate_noise(epsilon=8.0, delta=1e-5, sampling_rate=0.1, steps=30)
    assert epsilon_pld(gaussian(0.1, sigma, 30), 1e-5) <= 8.0
    assert epsilon_pld(gaussian(0.1, round(sigma - 1e-4, 4), 30), 1e-5) > 8.0


def test_impossible_targets():
    with pytest.raises(PlanError, match="reachable"):
        calibrate_noise(epsilon=1.0, delta=1e-14, sampling_rate=0.5, steps=1000)
    for bad in (0.0, -1.0, math.nan, math.inf, True):
        with pytest.raises(PlanError, match="epsilon"):
            calibrate_noise(epsilon=bad, delta=1e-5, sampling_rate=0.1, steps=10)
    for delta in (0.0, 1.0, math.nan, -1e-5):
        with pytest.raises(PlanError, match="delta"):
            epsilon_pld(DP_SGD, delta)


@pytest.mark.parametrize(
    "values",
    [
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.5},
        {"sampling_rate": math.nan},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.inf},
        {"noise_multiplier": 10**400},
        {"noise_multiplier": "1"},
        {"steps": 0},
        {"steps": 1.0},
        {"steps": True},
    ],
)
def test_impossible_events(values):
    with pytest.raises(PlanError):
        PoissonSampledGaussian(
            **{"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 1, **values}
        )


def test_no_events_cost_nothing():
    assert epsilon_pld([], 1e-5) == epsilon_rdp([], 1e-5) == group_epsilon([], 1e-5, 3) == 0.0


@pytest.mark.parametrize("q", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("steps", [1, 60, 1000])
def test_rdp_is_never_below_pld(q, sigma, steps):
    events = gaussian(q, sigma, steps)
    assert accountants_agree(epsilon_pld(events, 1e-5), epsilon_rdp(events, 1e-5))


@pytest.mark.parametrize(("q", "sigma"), [(0.1, 1.2), (0.05, 3.0)])
def test_group_bound_lies_between_one_record_and_the_whole(q, sigma):
    events = gaussian(q, sigma, 30)
    bounds = [group_epsilon(events, 1e-5, k) for k in (1, 2, 4)]
    assert bounds == sorted(bounds)
    assert bounds[0] == epsilon_pld(events, 1e-5)
    assert bounds[2] < gaussian_mechanism.get_epsilon_gaussian(sigma / 4 / 30**0.5, 1e-5)


@pytest.mark.parametrize("k", [2, 4])
def test_group_bound_is_below_the_generic_conversion(k):
    # (ε, δ) for one record gives (kε, δ(e^kε - 1)/(e^ε - 1)) for k of them.
    events = gaussian(0.016, 0.8, 620)

    def generic(delta):
        epsilon = epsilon_pld(events, delta)
        return k * epsilon, delta * math.expm1(k * epsilon) / math.expm1(epsilon)

    deltas = [10.0**-e for e in np.arange(5.0, 12.01, 0.5)]
    sound = [eps for eps, delta in map(generic, deltas) if delta <= 1e-5]
    assert group_epsilon(events, 1e-5, k) < min(sound, default=math.inf)


def test_group_bound_is_not_below_what_an_attack_reaches():
    # One step, all k records sampled or not: δ(ε) of the true pair, integrated, is below our ε's δ.
    q, sigma, k = 0.3, 1.0, 3
    epsilon = group_epsilon(gaussian(q, sigma, 1), 1e-3, k)
    x = np.linspace(-12, 18, 400_001)
    weights = [math.comb(k, j) * q**j * (1 - q) ** (k - j) for j in range(k + 1)]
    with_user = sum(w * np.exp(-((x - j) ** 2) / 2) for j, w in enumerate(weights))
    without = np.exp(-(x**2) / 2)
    step = (x[1] - x[0]) / math.sqrt(2 * math.pi)
    for p, other in ((with_user, without), (without, with_user)):
        assert np.maximum(p - math.exp(epsilon) * other, 0).sum() * step <= 1e-3
    lower = epsilon * 0.99
    assert np.maximum(with_user - math.exp(lower) * without, 0).sum() * step > 1e-3


def test_federation_is_the_largest_client_not_the_sum():
    events = {"a": gaussian(0.1, 0.8, 30), "b": gaussian(0.1, 0.8, 10), "c": []}
    figures = spent(events, 1e-5)
    assert figures == {
        "a": epsilon_pld(events["a"], 1e-5),
        "b": epsilon_pld(events["b"], 1e-5),
        "c": 0.0,
    }


def test_left_out_orders_are_not_announced(caplog):
    epsilon_rdp(gaussian(0.1, 0.75, 30), 1e-5)
    assert "failed to converge" not in caplog.text

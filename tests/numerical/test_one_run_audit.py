"""The one-run audit: published figures, mechanisms of known leak, and audits that are wrong."""

import math

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import binom, norm
from support.audits import LEVEL, RULE, gaussian_scores, one_run

from sordino.privacy.accounting import PoissonSampledGaussian, calibrate_noise
from sordino.privacy.audit import (
    Counts,
    GaussianCurve,
    Guessing,
    PointsCurve,
    claimed_curve,
    count,
    f_dp_bound,
    f_dp_p_value,
    gaussian_estimate,
    likelihood_score,
    rigorous_bound,
    steinke_bound,
)
from sordino.privacy.audit.bounds import gaussian_epsilon, least_correct

DELTA = 1e-5
SEEDS, MOST_ABOVE = 200, 18
GRID = tuple(Guessing(guessed_in=r // 2, guessed_out=r // 2) for r in (10, 20, 50, 100, 200, 500))


def counts(m, r, v):
    return Counts(canaries=m, guesses=r, correct=v)


@pytest.mark.parametrize(
    ("outcome", "pure", "approximate"),
    [
        ((100, 100, 100), 3.4930, 3.4902),
        ((1000, 100, 95), 2.1724, 2.1652),
        ((1000, 1000, 500), 0.0, 0.0),
    ],
)
def test_published_bounds(outcome, pure, approximate):
    assert steinke_bound(counts(*outcome), 0.0) == pytest.approx(pure, abs=1e-3)
    assert steinke_bound(counts(*outcome), DELTA) == pytest.approx(approximate, abs=1e-3)


@pytest.mark.parametrize(
    ("outcome", "epsilon"), [((100, 100, 100), 8.2162), ((1000, 100, 95), 3.3233)]
)
def test_published_gaussian_estimates(outcome, epsilon):
    assert gaussian_estimate(counts(*outcome), DELTA) == pytest.approx(epsilon, abs=1e-3)


@pytest.mark.parametrize(("guesses", "ceiling"), [(50, 2.785), (100, 3.493), (10, 1.051)])
def test_the_ceiling_is_that_of_all_right(guesses, ceiling):
    right = LEVEL ** (1 / guesses)
    assert math.log(right / (1 - right)) == pytest.approx(ceiling, abs=1e-3)
    found = steinke_bound(counts(guesses, guesses, guesses), 0.0)
    assert found == pytest.approx(ceiling, abs=1e-3)


def test_how_many_guesses_a_large_epsilon_takes():
    assert steinke_bound(counts(8932, 8932, 8932), 0.0) > 8
    assert steinke_bound(counts(8931, 8931, 8931), 0.0) < 8
    assert steinke_bound(counts(10, 10, 10), 0.0) > 1
    assert steinke_bound(counts(9, 9, 9), 0.0) < 1


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("guesses", [20, 100, 300])
@pytest.mark.parametrize("bound", [steinke_bound, f_dp_bound, rigorous_bound])
def test_bounds_hold_for_randomized_response(bound, epsilon, guesses):
    """The exact chance that a bound is above the truth: no sampling. Bounds rise with v."""
    right = 1 / (1 + math.exp(-epsilon))
    all_right = counts(guesses, guesses, guesses)
    least = least_correct(all_right, lambda found: bound(found, 0.0) > epsilon + 1e-6)
    assert least is None or binom.sf(least - 1, guesses, right) <= LEVEL


@pytest.mark.parametrize("epsilon", [0.5, 3.0])
def test_a_bound_at_the_observed_accuracy_is_caught(epsilon):
    """The test above has teeth: the accuracy's own log-odds are often above the truth."""
    right, r = 1 / (1 + math.exp(-epsilon)), 100
    above = [v for v in range(r) if v and math.log(v / (r - v)) > epsilon]
    assert binom.pmf(above, r, right).sum() > 0.3


@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("guesses", [30, 200])
def test_the_gaussian_s_own_curve_is_seldom_rejected(mu, guesses):
    right = float(ndtr(mu / 2))  # of guessing each canary by itself
    curve, all_right = GaussianCurve(mu=mu), counts(guesses, guesses, guesses)
    least = least_correct(all_right, lambda found: f_dp_p_value(found, curve) <= LEVEL)
    assert least is None or binom.sf(least - 1, guesses, right) <= LEVEL


def test_a_curve_with_a_part_of_the_leak_is_rejected():
    mu, guesses = 2.0, 300
    usual = counts(guesses, guesses, round(guesses * float(ndtr(mu / 2))))
    assert f_dp_p_value(usual, GaussianCurve(mu=mu)) > LEVEL
    assert f_dp_p_value(usual, GaussianCurve(mu=mu / 4)) < LEVEL


def test_more_points_only_reject_more():
    points = [(float(e), gaussian_delta_at(1.0, e)) for e in np.linspace(0, 6, 61)]
    usual = counts(400, 200, 180)
    fine = f_dp_p_value(usual, PointsCurve(points=tuple(points)))
    coarse = f_dp_p_value(usual, PointsCurve(points=tuple(points[::10])))
    assert f_dp_p_value(usual, GaussianCurve(mu=1.0)) <= fine * 1.001 <= coarse * 1.002


def gaussian_delta_at(mu, epsilon):
    return float(ndtr(-epsilon / mu + mu / 2) - math.exp(epsilon) * ndtr(-epsilon / mu - mu / 2))


def test_gaussian_epsilon_undoes_delta():
    for mu in (0.1, 1.0, 5.0):
        assert gaussian_delta_at(mu, gaussian_epsilon(mu, DELTA)) == pytest.approx(DELTA, rel=1e-3)


# Mechanisms of known leak.


@pytest.fixture(scope="module")
def one_release():
    """σ and the claimed curve of one full-batch release at ε = 4."""
    sigma = calibrate_noise(epsilon=4.0, delta=DELTA, sampling_rate=1.0, steps=1)
    event = PoissonSampledGaussian(sampling_rate=1.0, noise_multiplier=sigma, steps=1)
    return sigma, claimed_curve([event], DELTA)


def test_tight_for_one_release_seen_by_the_coordinator(one_release):
    """m = 1000 orthogonal canaries of norm C, r = 100: at least half of ε = 4 on average."""
    sigma, curve = one_release
    rng = np.random.default_rng(20240611)
    estimates, alarms = [], 0
    for _ in range(20):
        coins = rng.random(1000) < 0.5
        measure = one_run(
            gaussian_scores(rng, coins, sigma), coins, claimed_epsilon=4.0, curve=curve.points
        )
        found = measure.figures()
        estimates.append(found["epsilon_gaussian"])
        alarms += found["alarm"]
        assert found["epsilon_lower"] <= found["ceiling"]
    assert 2.0 <= np.mean(estimates) <= 4.0
    assert alarms == 0


@pytest.mark.parametrize(
    ("sigma", "steinke", "gaussian"), [(2.0, 0.65, 0.96), (1.0, 1.69, 2.56), (0.5, 3.24, 5.15)]
)
def test_mean_bounds_of_gaussian_releases(sigma, steinke, gaussian):
    rng = np.random.default_rng(7)
    found = []
    for _ in range(100):
        coins = rng.random(1000) < 0.5
        outcome = count(gaussian_scores(rng, coins, sigma), coins, RULE)
        found.append((steinke_bound(outcome, DELTA), gaussian_estimate(outcome, DELTA)))
    first, second = np.mean(found, axis=0)
    assert first == pytest.approx(steinke, abs=0.08)
    assert second == pytest.approx(gaussian, abs=0.15)


def test_the_same_epsilon_spent_by_sampling_shows_less_and_the_right_score_more():
    """q = 0.016, σ = 0.8, 620 steps, ε = 4.10: 22 % of it by sums, 43 % by likelihoods."""
    rng, q, sigma, steps = np.random.default_rng(3), 0.016, 0.8, 620
    by_sum, by_ratio = [], []
    for _ in range(5):
        coins = rng.random(1000) < 0.5
        sampled = coins[:, np.newaxis] & (rng.random((1000, steps)) < q)
        seen = sampled + sigma * rng.normal(size=sampled.shape)
        ratio = likelihood_score(seen, sampling_rate=q, noise_multiplier=sigma)
        by_sum.append(gaussian_estimate(count(seen.sum(axis=1), coins, RULE), DELTA) / 4.1)
        by_ratio.append(gaussian_estimate(count(ratio, coins, RULE), DELTA) / 4.1)
    assert 0.15 < np.mean(by_sum) < 0.30
    assert 0.33 < np.mean(by_ratio) < 1.0


def test_a_release_of_several_steps_is_scored_by_how_often_a_canary_may_be_in():
    seen = np.array([[0.3], [2.1]])
    found = likelihood_score(seen, sampling_rate=0.25, noise_multiplier=2.0, steps=3)
    by_hand = [
        math.log(
            sum(
                math.comb(3, j) * 0.25**j * 0.75 ** (3 - j) * norm.pdf(x, j, 2 * math.sqrt(3))
                for j in range(4)
            )
            / norm.pdf(x, 0, 2 * math.sqrt(3))
        )
        for x in seen[:, 0]
    ]
    assert found == pytest.approx(by_hand)
    always = likelihood_score(seen, sampling_rate=1.0, noise_multiplier=2.0)
    assert always == pytest.approx((seen[:, 0] - 0.5) / 4)


def test_noise_at_a_tenth_raises_the_alarm():
    sigma = calibrate_noise(epsilon=1.0, delta=DELTA, sampling_rate=1.0, steps=1)
    event = PoissonSampledGaussian(sampling_rate=1.0, noise_multiplier=sigma, steps=1)
    curve = claimed_curve([event], DELTA)
    rng = np.random.default_rng(5)
    coins = rng.random(400) < 0.5
    claim = {"claimed_epsilon": 1.0, "curve": curve.points}
    broken = one_run(gaussian_scores(rng, coins, sigma / 10), coins, **claim).figures()
    assert broken["alarm"]
    assert broken["p_value"] < 1e-3
    assert "ALARM" in broken["verdict"]
    right = one_run(gaussian_scores(rng, coins, sigma), coins, **claim).figures()
    assert not right["alarm"]


# The null, and audits that forget something.


def _null_bounds(seeds, shown):
    rng = np.random.default_rng(99)
    for _ in range(seeds):
        yield shown(rng.normal(size=1000), rng.random(1000) < 0.5)


def test_the_null_is_seldom_above_zero():
    def shown(scores, coins):
        return rigorous_bound(count(scores, coins, RULE), DELTA)

    assert sum(bound > 0 for bound in _null_bounds(SEEDS, shown)) <= MOST_ABOVE


@pytest.mark.parametrize("payment", ["bonferroni", "split"])
def test_several_rules_are_paid_for(payment):
    def shown(scores, coins):
        rules = GRID[:-1] if payment == "split" else GRID
        measure = one_run(scores, coins, rules=rules, payment=payment)
        each = measure.level / measure.looks
        return max(rigorous_bound(outcome, DELTA, each) for _, outcome in measure.outcomes())

    assert sum(bound > 0 for bound in _null_bounds(SEEDS, shown)) <= MOST_ABOVE


def test_abstention_chosen_after_looking_is_caught():
    """The tests above have teeth: the best of a grid, unpaid for, is above zero too often."""

    def shown(scores, coins):
        return max(rigorous_bound(count(scores, coins, rule), DELTA) for rule in GRID)

    assert sum(bound > 0 for bound in _null_bounds(SEEDS, shown)) > MOST_ABOVE


def _tells_all_at_times(chance):
    """(0, δ)-private with δ = chance: nothing is told, or everything is."""
    rng = np.random.default_rng(4)
    for _ in range(SEEDS):
        coins = rng.random(1000) < 0.5
        told = rng.random() < chance
        yield count(coins * 1.0 if told else rng.normal(size=1000), coins, RULE)


def test_delta_is_accounted_for_and_forgetting_it_is_caught():
    outcomes = list(_tells_all_at_times(0.1))
    assert sum(rigorous_bound(outcome, 0.1) > 0 for outcome in outcomes) <= MOST_ABOVE
    assert sum(rigorous_bound(outcome, 0.0) > 0 for outcome in outcomes) > MOST_ABOVE


def test_a_family_of_looks_is_paid_for_and_forgetting_it_is_caught():
    """Ten rounds of a run that leaks nothing: any of them above zero is a false finding."""
    rng = np.random.default_rng(12)
    paid = unpaid = 0
    for _ in range(SEEDS):
        coins = rng.random(1000) < 0.5
        outcomes = [count(rng.normal(size=1000), coins, RULE) for _ in range(10)]
        paid += any(rigorous_bound(o, DELTA, LEVEL / 10) > 0 for o in outcomes)
        unpaid += any(rigorous_bound(o, DELTA, LEVEL) > 0 for o in outcomes)
    assert paid <= MOST_ABOVE < unpaid

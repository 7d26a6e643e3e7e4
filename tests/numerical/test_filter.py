"""The filter under a cap: divergences at any order, and what a mixture of orders may promise."""

import math

import mpmath
import numpy as np
import pytest

from sordino.core.errors import PolicyRefusedError
from sordino.privacy.accounting import DEFAULT_ORDERS, Filter, PoissonSampledGaussian, epsilon_pld
from sordino.privacy.accounting.divergences import _fractional, _whole, divergences
from sordino.privacy.accounting.events import Gaussians
from sordino.privacy.plan import Plan, first_refused_round
from sordino.privacy.policy import BUILT_IN


def cost(q, sigma, steps=1):
    return Gaussians(sampling_rate=q, noise_multiplier=sigma, steps=steps)


def event(q, sigma, steps=1):
    return PoissonSampledGaussian(sampling_rate=q, noise_multiplier=sigma, steps=steps)


@pytest.mark.parametrize("q", [0.001, 0.02, 0.3, 0.9])
@pytest.mark.parametrize("sigma", [0.2, 0.35, 1.0, 50.0])
def test_the_quadrature_is_the_finite_sum_at_whole_orders(q, sigma):
    for order in (2, 3, 10, 61):
        exact = _whole(order, q, sigma)
        assert _fractional(float(order), q, sigma) == pytest.approx(exact, rel=1e-11, abs=1e-13)


@pytest.mark.parametrize(
    ("q", "sigma", "order"),
    [(0.02, 0.5, 1.8), (0.2, 0.9, 2.2), (0.01, 2.0, 15.5), (0.5, 10.0, 1.1)],
)
def test_a_fractional_order_is_the_integral(q, sigma, order):
    with mpmath.workdps(20):

        def moment(x):
            likelihood = mpmath.e ** ((2 * x - 1) / (2 * mpmath.mpf(sigma) ** 2))
            return (1 - q + q * likelihood) ** order * mpmath.npdf(x, 0, sigma)

        ends = mpmath.linspace(-14 * sigma, order + 14 * sigma, 30)
        exact = float(mpmath.log(mpmath.quad(moment, ends)) / (order - 1))
    (ours,) = divergences(cost(q, sigma), (order,))
    assert exact <= ours <= exact * (1 + 1e-8) + 2e-12


def test_a_tiny_sigma_takes_the_bound_without_sampling():
    assert divergences(cost(0.1, 0.1), (2.5,)) == pytest.approx(divergences(cost(1.0, 0.1), (2.5,)))


def mixture(cap, events, z):
    """δ·M(z), written as the argument has it."""
    spent = sum(divergences(cost(e.sampling_rate, e.noise_multiplier, e.steps), cap.orders)
                for e in events)  # fmt: skip
    slope = np.asarray(cap.orders) - 1
    weights = slope**-0.5 / (slope**-0.5).sum()
    return cap.delta * (weights * np.exp(slope * (z - spent))).sum()


@pytest.mark.parametrize("orders", [(4,), (2.5, 9.5), DEFAULT_ORDERS])
@pytest.mark.parametrize(
    "events", [[event(0.02, 0.45, 20)], [event(0.2, 2.0, 50), event(1.0, 5.0)]]
)
def test_the_condition_holds_at_every_loss_and_nothing_is_given_away(orders, events):
    cap = Filter(unit="record", epsilon=1.0, delta=1e-5, orders=orders)
    losses = np.linspace(0, cap.spent(events) + 40, 2001)

    def holds(epsilon):
        return all(1 - math.exp(epsilon - z) <= mixture(cap, events, z) for z in losses)

    assert holds(cap.spent(events))
    assert not holds(cap.spent(events) - 0.01)


def test_the_best_order_picked_afterwards_is_caught():
    """What each order alone allows, with nothing paid for the choice, breaks the condition."""
    events = [event(0.2, 1.2, 20)]
    grid = Filter(unit="record", epsilon=1.0, delta=1e-5)
    free = min(
        Filter(unit="record", epsilon=1.0, delta=1e-5, orders=(order,)).spent(events)
        for order in DEFAULT_ORDERS
    )
    assert free < grid.spent(events)
    assert any(
        1 - math.exp(free - z) > mixture(grid, events, z) for z in np.linspace(free, 40, 4000)
    )


def test_a_mixture_is_never_worse_than_shares_for_the_best_order():
    for events in ([event(0.02, 0.45, 20)], [event(1.0, 8.0, 30)]):
        cap = Filter(unit="record", epsilon=1.0, delta=1e-5)
        slope = np.asarray(DEFAULT_ORDERS) - 1
        shares = cap.delta * slope**-0.5 / (slope**-0.5).sum()
        split = min(
            Filter(unit="record", epsilon=1.0, delta=share, orders=(order,)).spent(events)
            for order, share in zip(DEFAULT_ORDERS, shares, strict=True)
        )
        assert cap.spent(events) <= split


def losses_with_the_record(rng, q, sigma, size):
    """Privacy losses of one sampled Gaussian, drawn with the record in."""
    x = rng.normal(0, sigma, size) + (rng.random(size) < q)
    return np.log1p(-q + q * np.exp((2 * x - 1) / (2 * sigma**2)))


def test_who_chooses_after_seeing_the_loss_stays_within_delta():
    """Whoever did well goes on with rare large losses, everybody else with many small ones."""
    epsilon, delta, size = 2.0, 0.05, 400_000
    cap = Filter(unit="record", epsilon=epsilon, delta=delta)
    first, rare, steady = event(0.2, 1.5), event(0.01, 0.5), event(0.5, 3.0)
    rng = np.random.default_rng(5)
    total = losses_with_the_record(rng, 0.2, 1.5, size)
    lucky = total > np.quantile(total, 0.7)
    for who, chosen in ((lucky, rare), (~lucky, steady)):
        left = cap.rounds_left([first], chosen, 1000)
        assert left > 0
        for _ in range(left):
            total[who] += losses_with_the_record(
                rng, chosen.sampling_rate, chosen.noise_multiplier, int(who.sum())
            )
    found = np.maximum(0, 1 - np.exp(epsilon - total))
    assert 1e-3 < found.mean() + 4 * found.std() / math.sqrt(size) <= delta


# (q, steps, σ): a plan whose PLD ε is 8 at δ = 1e-5. docs/decisions/0009 has the whole table.
EIGHT = [
    (0.02, 5, 0.4094), (0.02, 20, 0.4587), (0.02, 600, 0.6736), (0.05, 5, 0.4781),
    (0.05, 100, 0.6957), (0.1, 20, 0.6808), (0.2, 5, 0.6727), (0.25, 12, 0.882),
    (0.25, 600, 3.7723),
]  # fmt: skip


@pytest.mark.parametrize(("q", "steps", "sigma"), EIGHT)
def test_a_plan_of_eight_passes_a_cap_of_twelve(q, steps, sigma):
    assert epsilon_pld([event(q, sigma, steps)], 1e-5) <= 8.0
    cap = Filter(unit="record", epsilon=12.0, delta=1e-5)
    cap.would_allow([], event(q, sigma, steps))
    with pytest.raises(PolicyRefusedError):
        cap.would_allow([event(q, sigma, steps)], event(q, sigma, steps))


def test_the_built_in_policy_takes_the_demos_plan_once():
    plan = Plan(
        run_id="r", rounds=3, steps_per_round=4, sampling_rate=0.25, noise_multiplier=0.882,
        clip_norm=1.0, divisor=8.0, delta=1e-5,
    )  # fmt: skip
    assert first_refused_round(BUILT_IN, plan) is None
    longer = Plan(
        run_id="r", rounds=6, steps_per_round=4, sampling_rate=0.25, noise_multiplier=0.882,
        clip_norm=1.0, divisor=8.0, delta=1e-5,
    )  # fmt: skip
    assert first_refused_round(BUILT_IN, longer) == 5

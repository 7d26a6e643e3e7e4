"""ε by pessimistic PLD: dp-accounting's privacy loss distribution, rounded up. The headline.

Built by connecting the dots (Doroshenko et al. 2022, https://arxiv.org/abs/2207.04380), so that
every figure is an upper bound; each is rounded up once more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from sordino.core.errors import PlanError, expected
from sordino.core.stats import round_up
from sordino.privacy.accounting.events import (
    Event,
    Gaussians,
    PoissonSampledGaussian,
    Unit,
    gaussians,
    number,
    unit_of,
)

DECIMALS = 4
SMALLEST_NOISE, LARGEST_NOISE = 0.01, 1e6
_NOISE_STEPS = 10_000  # noise multipliers are solved for on a grid of 1/10,000

# Width of a PLD's grid. The error is second order in width over spread of one step's loss: at 1/50
# it is below 1e-4 of ε. Mixtures cost much more for each point, so a group's grid is wider.
_RECORD_GRID, _GROUP_GRID = (1 / 50, 1e-3), (1 / 20, 4e-3)
_MOST_POINTS = 100_000  # keeps the arrays small where the noise is absurdly low
_WIDEST = 300.0  # e to a wider one overflows: sampling is then left out of account, which is sound
# What the FFTs of a composition may lose, in δ, for each step. Measured against the closed form of
# the Gaussian mechanism: 2e-17 a step over 10,000 steps.
_FLOAT_SLACK = 1e-15
_TAIL = 10.0  # the PLD ignores Gaussian tails beyond e^-50, which is 9.9 standard deviations


def epsilon_pld(events: Iterable[Event], delta: float) -> float:
    """Upper bound on ε of all `events` together, by pessimistic PLD, rounded up at 4 decimals.

    Holds for adaptively chosen updates within an announced sequence of events, for the one unit
    that they share, add-or-remove-one. Infinite if no finite ε can be shown at this δ.

    Raises:
        PlanError: δ is not in (0, 1), or the events are of both units.

    >>> step = PoissonSampledGaussian(sampling_rate=0.016, noise_multiplier=0.8, steps=620)
    >>> epsilon_pld([step], 1e-5)
    4.1009
    """
    return merged_epsilon(merge(events, delta), delta)


def spent(events: Mapping[str, Sequence[Event]], delta: float) -> dict[str, float]:
    """ε (PLD) of each client's events.

    Clients hold disjoint records, so a record is touched by one client's events only: the
    record-level ε of a whole federation is the largest of these, not the sum (parallel
    composition).
    """
    known: dict[tuple[Gaussians, ...], float] = {}  # clients of one run mostly have the same events
    result = {}
    for client, own in events.items():
        merged = tuple(merge(own, delta))
        if merged not in known:
            known[merged] = merged_epsilon(merged, delta)
        result[client] = known[merged]
    return result


def calibrate_noise(
    *,
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    beside: Sequence[Event] = (),
) -> float:
    """The smallest noise multiplier, on a grid of 1e-4, whose PLD ε is at most `epsilon`.

    Args:
        epsilon: ε of everything together.
        delta: Its δ.
        sampling_rate: q of the steps.
        steps: How many.
        beside: What else the plan announces, of the unit record: it is paid first.

    Raises:
        PlanError: A value is out of range, or a noise multiplier of a million is too little.

    >>> calibrate_noise(epsilon=3.0, delta=1e-6, sampling_rate=0.02, steps=100)
    0.8228
    """
    number("epsilon", epsilon, lambda v: v > 0, "finite and > 0")
    taken = epsilon_pld(beside, delta)
    if taken >= epsilon:
        required = f"> {taken}, which the plan's other releases take by themselves"
        raise PlanError(expected("epsilon", epsilon, required))

    def enough(grid: int, widen: float) -> bool:
        event = PoissonSampledGaussian(
            sampling_rate=sampling_rate, noise_multiplier=grid / _NOISE_STEPS, steps=steps
        )
        return merged_epsilon(merge([event, *beside], delta), delta, widen=widen) <= epsilon

    # A coarse PLD, still an upper bound, finds the place at a tenth of the cost; a fine one
    # settles it.
    rough = _smallest(lambda grid: enough(grid, 10.0), start=_NOISE_STEPS, step=_NOISE_STEPS // 4)
    fine = _smallest(lambda grid: enough(grid, 1.0), start=rough or _NOISE_STEPS, step=2)
    if fine is None:
        raise PlanError(
            expected("epsilon", epsilon, f"reachable at delta = {delta}", "raise epsilon or delta")
        )
    return fine / _NOISE_STEPS


def group_epsilon(events: Iterable[Event], delta: float, group_size: int) -> float:
    """Upper bound on ε for a user who owns at most `group_size` of the records, rounded up.

    Neighbours here differ by *all* of one user's records. At a step, j ~ Binomial(k, q) of them are
    in the batch and move the clipped sum by a vector of norm at most jC. Given everybody else's
    coins this is a mixture of Gaussians whose means have those norms, which the scalar mixture with
    means 0, C, .., kC dominates in both directions (Choquette-Choo et al. 2023,
    https://arxiv.org/abs/2310.15526, Corollary 4.7); joint convexity takes the average over the
    others' coins, and dominating pairs compose over adaptively chosen steps (Zhu, Dong, Wang 2022,
    https://arxiv.org/abs/2106.08567). Fewer than k records move it less. So the composed PLD of
    that mixture bounds the user's loss. It is below the generic conversion (k·ε, at a δ multiplied
    by (e^kε - 1)/(e^ε - 1)), which forgets that the k records are sampled independently.

    Without sampling the mixture is one Gaussian of sensitivity kC, taken in closed form. That also
    bounds the sampled mechanism, and the smaller of the two is returned.

    Raises:
        PlanError: δ is not in (0, 1), or `group_size` isn't a whole number >= 1.

    >>> once = PoissonSampledGaussian(sampling_rate=1.0, noise_multiplier=4.0, steps=1)
    >>> group_epsilon([once], 1e-6, 4)
    4.8866
    """
    if type(group_size) is not int or group_size < 1:
        raise PlanError(expected("group_size", group_size, "a whole number >= 1"))
    merged = merge(events, delta)
    if group_size == 1:
        return merged_epsilon(merged, delta)
    return min(
        merged_epsilon(merged, delta, group_size), _unsampled_epsilon(merged, delta, group_size)
    )


def epsilon_for(
    unit: Unit, events: Iterable[Event], delta: float, *, records_per_user: int | None = None
) -> float:
    """Upper bound on ε for one unit of all `events` together, whichever unit each protects.

    Infinite where it isn't bounded: a user's loss by events of the unit record, unless the number
    of a user's records is bounded. See `gaussians` for what one unit's event costs the other.

    Args:
        unit: Whose loss.
        events: All that composes.
        delta: The δ of the figure.
        records_per_user: The most records that a user owns, if that is bounded.

    Raises:
        PlanError: δ is not in (0, 1), or `records_per_user` isn't a whole number >= 1.
    """
    own = list(events)
    if records_per_user is not None and (type(records_per_user) is not int or records_per_user < 1):
        raise PlanError(expected("records_per_user", records_per_user, "a whole number >= 1"))
    if {event.unit for event in own} == {"record"} and unit == "user" and records_per_user:
        return group_epsilon(own, delta, records_per_user)
    costs = [gaussians(event, unit, records_per_user) for event in own]
    if None in costs:
        number("delta", delta, lambda v: 0 < v < 1, "in (0, 1)")
        return math.inf
    return merged_epsilon(join(costs, delta), delta)


def merge(events: Iterable[Event], delta: float) -> list[Gaussians]:
    """Check δ and join equal mechanisms of one unit: their order doesn't matter to ε."""
    own = list(events)
    unit_of(own)
    return join((gaussians(event) for event in own), delta)


def join(costs: Iterable[Gaussians], delta: float) -> list[Gaussians]:
    """Check δ and add up the steps of equal mechanisms."""
    number("delta", delta, lambda v: 0 < v < 1, "in (0, 1)")
    steps: Counter[tuple[float, float]] = Counter()
    for cost in costs:
        steps[(cost.sampling_rate, cost.noise_multiplier)] += cost.steps
    return [
        Gaussians(sampling_rate=q, noise_multiplier=sigma, steps=count)
        for (q, sigma), count in sorted(steps.items())
    ]


def _smallest(enough: Callable[[int], bool], *, start: int, step: int) -> int | None:
    """Smallest point of the noise grid that is `enough`: gallop away from `start`, then halve."""
    floor, ceiling = round(SMALLEST_NOISE * _NOISE_STEPS), round(LARGEST_NOISE * _NOISE_STEPS)
    if enough(start):
        high, low = start, max(start - step, floor)
        while enough(low):
            if low == floor:
                return floor
            step *= 2
            high, low = low, max(low - step, floor)
    else:
        low, high = start, min(start + step, ceiling)
        while not enough(high):
            if high == ceiling:
                return None
            step *= 2
            low, high = high, min(high + step, ceiling)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def merged_epsilon(
    merged: Sequence[Gaussians], delta: float, group_size: int = 1, widen: float = 1.0
) -> float:
    """ε of joined mechanisms, rounded up; `widen` makes the grid coarser, and the bound looser."""
    return _epsilon(tuple(merged), delta, group_size, widen)


@lru_cache(maxsize=1024)  # a run, its report and its claim ask the same, and so does the next seed
def _epsilon(merged: tuple[Gaussians, ...], delta: float, group_size: int, widen: float) -> float:
    if not merged:
        return 0.0
    interval = _interval(merged, group_size) * widen
    if interval > _WIDEST:
        return _unsampled_epsilon(merged, delta, group_size)
    composed = _compose(merged, group_size, interval)
    within = delta - float_slack(merged)
    if within <= 0:
        return math.inf
    with np.errstate(over="ignore"):
        epsilon = float(composed.get_epsilon_for_delta(within))
    if math.isinf(epsilon):  # out of float's range
        return _unsampled_epsilon(merged, delta, group_size)
    return round_up(epsilon, DECIMALS)


def _compose(merged: Sequence[Gaussians], group_size: int, interval: float) -> Any:
    composed: Any = None
    for event in merged:
        part = _loss_distribution(event, group_size, interval)
        composed = part if composed is None else composed.compose(part)
    return composed


def loss_distribution(merged: Sequence[Gaussians]) -> Any:
    """The composed PLD, both directions; None where its grid would leave float's range."""
    interval = _interval(merged, 1)
    return _compose(merged, 1, interval) if interval <= _WIDEST else None


def float_slack(merged: Sequence[Gaussians]) -> float:
    """What the composition's FFTs may have lost of δ."""
    return _FLOAT_SLACK * sum(event.steps for event in merged)


def _interval(merged: Sequence[Gaussians], group_size: int) -> float:
    """Width of the PLD's grid. Any width gives an upper bound; this one makes it a close one."""
    spreads, reaches, total = [], [], 0.0
    for event in merged:
        scale = group_size / event.noise_multiplier
        if event.sampling_rate == 1:  # composed in closed form, as one Gaussian
            scale *= math.sqrt(event.steps)
            spreads.append(scale)
            total += scale**2 / 2
        else:
            chi_squared = event.sampling_rate**2 * math.expm1(min(scale**2, 50.0))
            spreads.append(min(math.sqrt(chi_squared), scale))
            total += event.steps * event.sampling_rate * scale**2 / 2  # bounds the mean loss
        reaches.append(scale**2 / 2 + _TAIL * scale)
    fraction, widest = _RECORD_GRID if group_size == 1 else _GROUP_GRID
    return max(min(min(spreads) * fraction, widest), max(*reaches, total) / _MOST_POINTS)


def _loss_distribution(event: Gaussians, group_size: int, interval: float) -> Any:
    # A device that only keeps to its cap does without: 50 MB of its memory.
    from dp_accounting.pld import privacy_loss_distribution as pld  # noqa: PLC0415
    from scipy.stats import binom  # noqa: PLC0415

    sigma, rate = event.noise_multiplier, event.sampling_rate
    if rate == 1:
        return pld.from_gaussian_mechanism(
            sigma / math.sqrt(event.steps),
            sensitivity=group_size,
            value_discretization_interval=interval,
        )
    if group_size == 1:
        step = pld.from_gaussian_mechanism(
            sigma, sampling_prob=rate, value_discretization_interval=interval
        )
    else:
        counts = np.arange(group_size + 1)
        step = pld.from_mixture_gaussian_mechanism(
            sigma,
            counts.tolist(),
            binom.pmf(counts, group_size, rate).tolist(),
            value_discretization_interval=interval,
        )
    return step.self_compose(event.steps)


def _unsampled_epsilon(merged: Sequence[Gaussians], delta: float, group_size: int) -> float:
    """Closed form (Balle and Wang 2018) where every record is in every batch."""
    from dp_accounting import gaussian_mechanism  # noqa: PLC0415

    precision = sum(event.steps / event.noise_multiplier**2 for event in merged)
    if not precision:
        return 0.0
    sigma = 1 / (group_size * math.sqrt(precision))
    return round_up(float(gaussian_mechanism.get_epsilon_gaussian(sigma, delta)), DECIMALS)

"""From events to ε. An event is frozen data that says all that accounting needs; ε is never stored.

The headline is dp-accounting's privacy loss distribution (PLD), built pessimistically ("connect the
dots", Doroshenko et al. 2022, https://arxiv.org/abs/2207.04380) and rounded up. Rényi accounting
(RDP) stands beside it as a check. Central-limit figures (GDP) are too low and have no place here.

Everything is under *add or remove one*: two datasets are neighbours if one has a record more.
"""

from __future__ import annotations

import logging
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar, Literal

import dp_accounting
import numpy as np
from dp_accounting import gaussian_mechanism
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.rdp import RdpAccountant
from scipy.stats import binom

from sordino.core.errors import PlanError, expected
from sordino.core.stats import round_up

NOT_BOUNDED = "not bounded"

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


@dataclass(frozen=True, kw_only=True)
class PoissonSampledGaussian:
    """DP-SGD's mechanism, `steps` times: Poisson sampling, clip to C, sum, Gaussian noise.

    Attributes:
        sampling_rate: q in (0, 1], each record's own coin at each step.
        noise_multiplier: The noise's standard deviation divided by C.
        steps: How many times, >= 1. An empty batch is a step.
    """

    kind: ClassVar[str] = "poisson-sampled-gaussian"
    unit: ClassVar[str] = "record"
    neighbouring: ClassVar[str] = "add-or-remove-one"

    sampling_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        _number("sampling_rate", self.sampling_rate, lambda v: 0 < v <= 1, "in (0, 1]")
        _number("noise_multiplier", self.noise_multiplier, lambda v: v > 0, "finite and > 0")
        if type(self.steps) is not int or self.steps < 1:
            raise PlanError(expected("steps", self.steps, "a whole number >= 1"))


Event = PoissonSampledGaussian


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """A figure of ε with everything without which it would mean nothing.

    `epsilon_*` bound the protected `unit`; `user` says what holds for the other unit.
    """

    trust: Literal["local", "central", "distributed", "none"]
    unit: str
    neighbouring: str
    sampling: str
    accountant: str
    composition: str
    delta: float
    epsilon_pld: float
    epsilon_rdp: float
    user: str = NOT_BOUNDED

    @property
    def accountants_agree(self) -> bool:
        """False if RDP, which is looser, came out below PLD: then neither may be published."""
        return accountants_agree(self.epsilon_pld, self.epsilon_rdp)


def accountants_agree(epsilon_pld: float, epsilon_rdp: float) -> bool:
    """Whether RDP is not below PLD, as it must be.

    Past 700, where e^ε leaves float's range, PLD is a coarse (but sound) bound and isn't compared.
    """
    return epsilon_rdp >= epsilon_pld or epsilon_pld > 700


def accountant() -> str:
    """Name and version of what the figures come from, as reports print it."""
    return f"dp-accounting {version('dp-accounting')}, pessimistic PLD; RDP as a check"


def event_fields(event: Event) -> dict[str, str | int | float]:
    """The event as plain values, for a ledger entry."""
    return {
        "kind": event.kind,
        "noise_multiplier": event.noise_multiplier,
        "sampling_rate": event.sampling_rate,
        "steps": event.steps,
    }


def event_from_fields(fields: Mapping[str, Any]) -> Event:
    """The inverse of `event_fields`.

    Raises:
        PlanError: An unknown kind, a key too many or too few, or an impossible value.
    """
    values = dict(fields)
    kind = values.pop("kind", None)
    if kind != PoissonSampledGaussian.kind:
        raise PlanError(expected("event kind", kind, f"to be {PoissonSampledGaussian.kind}"))
    known = {"noise_multiplier", "sampling_rate", "steps"}
    if set(values) != known:
        raise PlanError(expected("event fields", sorted(values), f"to be {sorted(known)}"))
    return PoissonSampledGaussian(**values)


def epsilon_pld(events: Iterable[Event], delta: float) -> float:
    """Upper bound on ε of all `events` together, by pessimistic PLD, rounded up at 4 decimals.

    Holds for adaptively chosen updates within an announced sequence of events, unit record,
    add-or-remove-one. Infinite if no finite ε can be shown at this δ.

    Raises:
        PlanError: δ is not in (0, 1).

    >>> step = PoissonSampledGaussian(sampling_rate=0.016, noise_multiplier=0.8, steps=620)
    >>> epsilon_pld([step], 1e-5)
    4.1009
    """
    return _epsilon(_merge(events, delta), delta, 1)


def epsilon_rdp(events: Iterable[Event], delta: float) -> float:
    """The same by Rényi DP at dp-accounting's orders: looser, an independent check, rounded up.

    Raises:
        PlanError: δ is not in (0, 1).
    """
    merged = _merge(events, delta)
    if not merged:
        return 0.0
    rdp = RdpAccountant()
    with _quiet():
        for event in merged:
            step = dp_accounting.PoissonSampledDpEvent(
                event.sampling_rate, dp_accounting.GaussianDpEvent(event.noise_multiplier)
            )
            rdp.compose(step, event.steps)
    return round_up(float(rdp.get_epsilon(delta)), DECIMALS)


def spent(events: Mapping[str, Sequence[Event]], delta: float) -> dict[str, float]:
    """ε (PLD) of each client's events.

    Clients hold disjoint records, so a record is touched by one client's events only: the
    record-level ε of a whole federation is the largest of these, not the sum (parallel
    composition).
    """
    known: dict[tuple[Event, ...], float] = {}  # clients of one run mostly have the same events
    result = {}
    for client, own in events.items():
        merged = tuple(_merge(own, delta))
        if merged not in known:
            known[merged] = epsilon_pld(merged, delta)
        result[client] = known[merged]
    return result


def calibrate_noise(*, epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The smallest noise multiplier, on a grid of 1e-4, whose PLD ε is at most `epsilon`.

    Raises:
        PlanError: A value is out of range, or a noise multiplier of a million is too little.

    >>> calibrate_noise(epsilon=3.0, delta=1e-6, sampling_rate=0.02, steps=100)
    0.8228
    """
    _number("epsilon", epsilon, lambda v: v > 0, "finite and > 0")

    def enough(grid: int, widen: float) -> bool:
        event = PoissonSampledGaussian(
            sampling_rate=sampling_rate, noise_multiplier=grid / _NOISE_STEPS, steps=steps
        )
        return _epsilon(_merge([event], delta), delta, 1, widen) <= epsilon

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
    merged = _merge(events, delta)
    if group_size == 1:
        return _epsilon(merged, delta, 1)
    return min(_epsilon(merged, delta, group_size), _unsampled_epsilon(merged, delta, group_size))


def _number(field: str, value: object, ok: Callable[[float], bool], required: str) -> None:
    number = isinstance(value, float) or type(value) is int
    largest = sys.float_info.max
    if not (number and -largest <= value <= largest and ok(float(value))):  # type: ignore[operator, arg-type]
        raise PlanError(expected(field, value, required))


def _merge(events: Iterable[Event], delta: float) -> list[Event]:
    """Check δ and join equal mechanisms: their order doesn't matter to ε."""
    _number("delta", delta, lambda v: 0 < v < 1, "in (0, 1)")
    steps: Counter[tuple[float, float]] = Counter()
    for event in events:
        steps[(event.sampling_rate, event.noise_multiplier)] += event.steps
    return [
        PoissonSampledGaussian(sampling_rate=q, noise_multiplier=sigma, steps=count)
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


def _epsilon(merged: Sequence[Event], delta: float, group_size: int, widen: float = 1.0) -> float:
    if not merged:
        return 0.0
    interval = _interval(merged, group_size) * widen
    if interval > _WIDEST:
        return _unsampled_epsilon(merged, delta, group_size)
    composed: Any = None
    for event in merged:
        part = _loss_distribution(event, group_size, interval)
        composed = part if composed is None else composed.compose(part)
    within = delta - _FLOAT_SLACK * sum(event.steps for event in merged)
    if within <= 0:
        return math.inf
    with np.errstate(over="ignore"):
        epsilon = float(composed.get_epsilon_for_delta(within))
    if math.isinf(epsilon):  # out of float's range
        return _unsampled_epsilon(merged, delta, group_size)
    return round_up(epsilon, DECIMALS)


def _interval(merged: Sequence[Event], group_size: int) -> float:
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


def _loss_distribution(event: Event, group_size: int, interval: float) -> Any:
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


def _unsampled_epsilon(merged: Sequence[Event], delta: float, group_size: int) -> float:
    """Closed form (Balle and Wang 2018) where every record is in every batch."""
    precision = sum(event.steps / event.noise_multiplier**2 for event in merged)
    if not precision:
        return 0.0
    sigma = 1 / (group_size * math.sqrt(precision))
    return round_up(float(gaussian_mechanism.get_epsilon_gaussian(sigma, delta)), DECIMALS)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep dp-accounting from announcing each RDP order it leaves out: fewer is still sound."""

    def keep(record: logging.LogRecord) -> bool:
        return "failed to converge" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)

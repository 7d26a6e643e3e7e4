"""Mechanisms as events: frozen data that says all that accounting needs, and never changes meaning.

Every mechanism here is a Gaussian on a sum in which one unit, added or removed, has norm at most
`clip_norm`; its noise has standard deviation `noise_multiplier` times that. An event holds no ε and
no δ: both are figures about events.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, TypeAlias

from sordino.core.errors import PlanError, expected

Unit: TypeAlias = Literal["record", "user"]
UNITS = ("record", "user")
MOST_STEPS = 10**12


@dataclass(frozen=True, kw_only=True)
class PoissonSampledGaussian:
    """Poisson sampling, clip to C, sum, Gaussian noise, `steps` times.

    With unit record this is DP-SGD; with unit user it is a coordinator that samples its users in
    secret, each by its own coin in every round, and adds the noise.

    Attributes:
        sampling_rate: q in (0, 1], each unit's own coin at each step.
        noise_multiplier: The noise's standard deviation divided by C.
        steps: How many times, >= 1. An empty batch is a step.
        clip_norm: C. ε doesn't depend on it.
        unit: What is added or removed.
    """

    kind: ClassVar[str] = "poisson-sampled-gaussian"
    neighbouring: ClassVar[str] = "add-or-remove-one"
    sampling: ClassVar[str] = "poisson"

    sampling_rate: float
    noise_multiplier: float
    steps: int
    clip_norm: float = 1.0
    unit: Unit = "record"

    def __post_init__(self) -> None:
        number("sampling_rate", self.sampling_rate, lambda v: 0 < v <= 1, "in (0, 1]")
        _check(self)


@dataclass(frozen=True, kw_only=True)
class AdaptiveClipGaussian:
    """A step of DP-SGD and a private quantile of the same batch, as the one Gaussian they are.

    Each record of a Poisson batch adds its gradient, clipped to the present clip norm c. Beside it,
    as one more coordinate, it adds whether its gradient was within c: 1 - γ if so and -γ if not,
    times the public weight c·z/(n·max(γ, 1 - γ)). That coordinate is at most c·z/n, so the
    whole vector's norm is at most C = c·√(1 + z²/n²), and all of it gets one noise of σ·C. Taken
    apart, the gradients' noise is z·c and the count's is n times what one record moves it by, with
    1/σ² = 1/z² + 1/n² (Andrew et al. 2021, theorem 1, where γ is 1/2 and n is 2σ_b). Both
    share the batch's coins, so they are amplified together, once.

    c follows the noised count alone and stays within `clip_norm`. ε doesn't depend on it.

    Attributes:
        sampling_rate: q in (0, 1], each unit's own coin at each step.
        noise_multiplier: σ, of both together.
        count_noise_multiplier: n, above σ.
        quantile: γ in (0, 1), the part of the records that c is meant not to clip.
        steps: How many times, >= 1.
        clip_norm: The largest c.
        unit: What is added or removed.
    """

    kind: ClassVar[str] = "adaptive-clip-gaussian"
    neighbouring: ClassVar[str] = "add-or-remove-one"
    sampling: ClassVar[str] = "poisson"

    sampling_rate: float
    noise_multiplier: float
    count_noise_multiplier: float
    quantile: float
    steps: int
    clip_norm: float = 1.0
    unit: Unit = "record"

    def __post_init__(self) -> None:
        number("sampling_rate", self.sampling_rate, lambda v: 0 < v <= 1, "in (0, 1]")
        number("quantile", self.quantile, lambda v: 0 < v < 1, "in (0, 1)")
        _check(self)
        raised_noise(self.noise_multiplier, self.count_noise_multiplier)


@dataclass(frozen=True, kw_only=True)
class UserGaussian:
    """A user's whole update clipped to C, summed over users, Gaussian noise; nobody is sampled."""

    kind: ClassVar[str] = "user-gaussian"
    neighbouring: ClassVar[str] = "add-or-remove-one"
    sampling: ClassVar[str] = "none"
    unit: ClassVar[Unit] = "user"

    noise_multiplier: float
    steps: int
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True)
class MetricGaussian:
    """A paid metric: each unit's value clipped to [-C, C], summed, noised; nobody is sampled."""

    kind: ClassVar[str] = "metric-gaussian"
    neighbouring: ClassVar[str] = "add-or-remove-one"
    sampling: ClassVar[str] = "none"

    metric: str
    noise_multiplier: float
    steps: int
    clip_norm: float = 1.0
    unit: Unit = "record"

    def __post_init__(self) -> None:
        word("metric", self.metric)
        _check(self)


@dataclass(frozen=True, kw_only=True)
class QuantileGaussian:
    """A private quantile, which an adaptive clip norm follows (Andrew et al. 2021, section 3).

    Each unit gives +1/2 if its norm is within the present clip norm and -1/2 if not, so that it
    moves the sum by 1/2; that is this event's `clip_norm`. The step of the clip norm is made from
    the noised sum alone. Nobody is sampled: a count over a training batch shares that batch's
    coins, and could not be composed with it as if they were independent: that is
    `AdaptiveClipGaussian`.
    """

    kind: ClassVar[str] = "quantile-gaussian"
    neighbouring: ClassVar[str] = "add-or-remove-one"
    sampling: ClassVar[str] = "none"
    clip_norm: ClassVar[float] = 0.5

    quantile: float
    noise_multiplier: float
    steps: int
    unit: Unit = "record"

    def __post_init__(self) -> None:
        number("quantile", self.quantile, lambda v: 0 < v < 1, "in (0, 1)")
        _check(self)


@dataclass(frozen=True, kw_only=True)
class StopGaussian:
    """Early stopping: `steps` looks at a noised metric, each charged whether or not it stops.

    Whether to go on is decided from the noised values alone. To stop early gives nothing back: the
    moment of stopping is itself an output, and the looks were announced.
    """

    kind: ClassVar[str] = "stop-gaussian"
    neighbouring: ClassVar[str] = "add-or-remove-one"
    sampling: ClassVar[str] = "none"

    metric: str
    noise_multiplier: float
    steps: int
    clip_norm: float = 1.0
    unit: Unit = "record"

    def __post_init__(self) -> None:
        word("metric", self.metric)
        _check(self)


Event = (
    PoissonSampledGaussian
    | AdaptiveClipGaussian
    | UserGaussian
    | MetricGaussian
    | QuantileGaussian
    | StopGaussian
)
KINDS: dict[str, type[Event]] = {
    cls.kind: cls
    for cls in (
        PoissonSampledGaussian,
        AdaptiveClipGaussian,
        UserGaussian,
        MetricGaussian,
        QuantileGaussian,
        StopGaussian,
    )
}


@dataclass(frozen=True, kw_only=True, order=True)
class Gaussians:
    """What is left of an event for the arithmetic: `steps` sampled Gaussians of sensitivity 1."""

    sampling_rate: float
    noise_multiplier: float
    steps: int


def gaussians(event: Event, unit: Unit | None = None, records_per_user: int | None = None) -> Any:
    """What an event costs a unit, as `Gaussians`; None where that isn't bounded.

    - Its own unit: the event as it is.
    - A record, by an event of the unit user: a changed record replaces its user's contribution by
      another of norm at most C, which moves the sum by at most 2C. Sampling is left out of account:
      both contributions share one coin, and without it the loss is only larger (joint convexity).
    - A user of at most k records, by an event of the unit record: kC, again without the sampling.
      `group_epsilon` is closer, for a figure; this one composes order by order in a filter.

    Args:
        event: The event.
        unit: Whose loss; None: the event's own unit's.
        records_per_user: k, if it is bounded.
    """
    if unit in (None, event.unit):
        rate = 1.0
        if isinstance(event, PoissonSampledGaussian | AdaptiveClipGaussian):
            rate = event.sampling_rate
        return Gaussians(
            sampling_rate=rate, noise_multiplier=event.noise_multiplier, steps=event.steps
        )
    factor = 2 if unit == "record" else records_per_user
    if factor is None:
        return None
    return Gaussians(
        sampling_rate=1.0, noise_multiplier=event.noise_multiplier / factor, steps=event.steps
    )


def raised_noise(noise_multiplier: float, count_noise_multiplier: float) -> float:
    """z: how noisy gradients must be so that they and a noised count cost σ together.

    Args:
        noise_multiplier: σ, of both releases together.
        count_noise_multiplier: n, the count's noise over how far one unit moves the count.

    Returns:
        (σ⁻² - n⁻²)^(-1/2), above σ.

    Raises:
        PlanError: n isn't a finite number above σ: nothing would be left for the gradients.

    >>> round(raised_noise(0.8, 4.0), 6)
    0.816497
    """
    number(
        "count_noise_multiplier",
        count_noise_multiplier,
        lambda v: v > noise_multiplier and noise_multiplier / v < 1,
        f"finite and > the noise multiplier, {noise_multiplier}",
    )
    ratio = noise_multiplier / count_noise_multiplier
    return noise_multiplier / math.sqrt((1.0 - ratio) * (1.0 + ratio))


def event_fields(event: Event) -> dict[str, str | int | float]:
    """The event as plain values, for a ledger entry; every one of them is needed to read it."""
    return {
        "kind": event.kind,
        "neighbouring": event.neighbouring,
        "sampling": event.sampling,
        "unit": event.unit,
        "clip_norm": event.clip_norm,
        **asdict(event),
    }


def event_from_fields(values: Mapping[str, Any]) -> Event:
    """The inverse of `event_fields`.

    Raises:
        PlanError: An unknown kind, a key too many or too few, or an impossible value.
    """
    kind = values.get("kind")
    cls = KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise PlanError(expected("event kind", kind, f"one of {', '.join(KINDS)}"))
    own = {field.name for field in fields(cls)}
    fixed = {"kind", "neighbouring", "sampling", "unit", "clip_norm"} - own
    if set(values) != own | fixed:
        odd = sorted((own | fixed).symmetric_difference(values))
        raise PlanError(f"the event has missing or unknown fields: {', '.join(odd)}")
    for name in sorted(fixed):
        if values[name] != getattr(cls, name):
            raise PlanError(expected(f"event {name}", values[name], f"to be {getattr(cls, name)}"))
    return cls(**{name: values[name] for name in own})


def unit_of(events: Iterable[Event]) -> Unit | None:
    """The unit that all events share; None without events.

    Raises:
        PlanError: They don't share one: say whose loss is meant (see `epsilon_for`).
    """
    units = {event.unit for event in events}
    if len(units) > 1:
        raise PlanError("events of both units: one figure of epsilon can't be about both")
    return units.pop() if units else None


def number(field: str, value: object, ok: Callable[[float], bool], required: str) -> None:
    """Refuse anything but a finite number that is `ok`."""
    is_number = isinstance(value, float) or type(value) is int
    largest = sys.float_info.max
    if not (is_number and -largest <= value <= largest and ok(float(value))):  # type: ignore[operator, arg-type]
        raise PlanError(expected(field, value, required))


def word(field: str, value: object) -> None:
    """Refuse anything but a short lower-case word."""
    ok = isinstance(value, str) and 0 < len(value) <= 64
    if not (ok and all(c.isascii() and (c.islower() or c.isdigit() or c in "-_") for c in value)):  # type: ignore[attr-defined]
        raise PlanError(expected(field, value, "a lower-case word of at most 64 letters"))


def _check(event: Event) -> None:
    number("noise_multiplier", event.noise_multiplier, lambda v: v > 0, "finite and > 0")
    number("clip_norm", event.clip_norm, lambda v: 0 < v < math.inf, "finite and > 0")
    if type(event.steps) is not int or not 1 <= event.steps <= MOST_STEPS:
        raise PlanError(expected("steps", event.steps, "a whole number >= 1"))
    if event.unit not in UNITS:
        raise PlanError(expected("unit", event.unit, f"one of {', '.join(UNITS)}"))

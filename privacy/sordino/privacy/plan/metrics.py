"""A paid metric: a client's loss or accuracy, clipped, noised and charged like everything else.

What isn't paid for isn't sent. The same mechanism serves early stopping: the coordinator decides
from the noised values alone, and every look is charged, whether or not it stops.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar, Literal, NoReturn, final

import numpy as np
from numpy.typing import ArrayLike

from sordino.core import canonical
from sordino.core.errors import PlanError, expected
from sordino.privacy import accounting, noise
from sordino.privacy.accounting import Event, MetricGaussian, StopGaussian
from sordino.privacy.ledger import Charge
from sordino.privacy.noise import NoiseSource
from sordino.privacy.plan.charged import redeem
from sordino.privacy.plan.fields import (
    check_schedule,
    encode,
    finite,
    fixed,
    noise_scale,
    positive,
)


@final
@dataclass(frozen=True, kw_only=True)
class MetricPlan:
    """Some looks at one metric of each client; noise on the device, unit record.

    A look: each record's value is moved by the public `centre` and clipped to [-`clip_norm`,
    `clip_norm`] (one that isn't finite counts as zero); the sum is noised, divided by the public
    `divisor`, and moved back. One record added or removed moves the sum by at most `clip_norm`: by
    its own clipped value, and by nothing else, since no count is released and the divisor is public
    (a mean over the private number of records would move with that number too). So the result is
    the mean of the n records only as far as the divisor is right: it is `centre` plus n / `divisor`
    times the mean's distance from it. A value in a known range costs least about its middle.

    Attributes:
        run_id: A name of its own: charges are told apart by run and round.
        rounds: How many looks.
        metric: What is looked at: `loss`, `accuracy`.
        purpose: `metric`, or `stop` where the looks decide when to stop.
        noise_multiplier: σ.
        clip_norm: C, half the width of the range that a value is clipped to.
        centre: The middle of that range.
        divisor: The public constant that the noised sum is divided by.
        delta: The δ of the claim.
        steps_per_round: Always 1.

    Raises:
        PlanError: A value is impossible.
    """

    kind: ClassVar[str] = "sordino.metric-plan"

    run_id: str
    rounds: int
    metric: str
    purpose: Literal["metric", "stop"]
    noise_multiplier: float
    clip_norm: float
    divisor: float
    delta: float
    centre: float = 0.0
    steps_per_round: Literal[1] = 1
    trust: Literal["local"] = "local"
    unit: Literal["record"] = "record"
    neighbouring: Literal["add-or-remove-one"] = "add-or-remove-one"
    noise: Literal["rounded-gaussian"] = "rounded-gaussian"

    def __post_init__(self) -> None:
        check_schedule(self)
        positive(self, "noise_multiplier", at_most=accounting.LARGEST_NOISE)
        positive(self, "clip_norm")
        positive(self, "divisor")
        positive(self, "delta", below=1.0)
        finite(self, "centre")
        noise.grid_step(self.clip_norm, 1)
        fixed(self, trust="local", unit="record", neighbouring="add-or-remove-one")
        fixed(self, noise="rounded-gaussian")
        if self.steps_per_round != 1:
            raise PlanError(expected("steps_per_round", self.steps_per_round, "to be 1"))
        if self.purpose not in ("metric", "stop"):
            raise PlanError(expected("purpose", self.purpose, "one of metric, stop"))
        self.round_event()  # refuses a metric's name that is no word

    def canonical(self) -> bytes:
        """The plan's only encoding."""
        return encode(self)

    @property
    def sha256(self) -> str:
        """The plan's name: SHA-256 of `canonical()`, hex."""
        return canonical.sha256_hex(self.canonical())

    def round_event(self) -> Event:
        """What one look is charged as."""
        return self._event(1)

    def total_event(self) -> Event:
        """What all looks are charged as."""
        return self._event(self.rounds)

    def event_fields(self) -> dict[str, str | int | float]:
        """`round_event` as the ledger keeps it."""
        return accounting.event_fields(self.round_event())

    @property
    def noise_std(self) -> float:
        """The noise's standard deviation in one client's answer."""
        scale = noise_scale(self.noise_multiplier, self.clip_norm, 1)
        return scale * noise.grid_step(self.clip_norm, 1) / self.divisor

    def _event(self, steps: int) -> Event:
        cls = MetricGaussian if self.purpose == "metric" else StopGaussian
        return cls(
            metric=self.metric,
            noise_multiplier=self.noise_multiplier,
            steps=steps,
            clip_norm=self.clip_norm,
        )


_KEY = object()


@final
class MetricMechanism:
    """One charged look: the only thing that releases a metric. Made by `open_metric` alone."""

    def __init__(self, plan: MetricPlan, source: NoiseSource, *, _key: object = None) -> None:
        if _key is not _KEY:
            raise PlanError("a metric is opened by open_metric, with a charge from the ledger")
        self._plan, self._source = plan, source
        self._open = True
        self._process = os.getpid()

    def release(self, values: ArrayLike) -> float:
        """The noised sum of the clipped values over the divisor, about the centre; once.

        Args:
            values: One a record, exact and private.

        Raises:
            PlanError: It was released before, or the values aren't a row of numbers.
        """
        given = np.asarray(values, dtype=np.float64)
        if given.ndim != 1:
            raise PlanError(expected("metric values", given.shape, "to be one a record"))
        if not self._open or os.getpid() != self._process:
            raise PlanError("this look was released before: a charge is good for one")
        self._open = False
        plan = self._plan
        step = noise.grid_step(plan.clip_norm, 1)
        known = given[np.isfinite(given)]
        clipped = np.clip(known - plan.centre, -plan.clip_norm, plan.clip_norm)
        # Each value on the grid by itself: whole steps add up without error.
        total = np.array([np.trunc(clipped / step).sum() * step])
        scale = noise_scale(plan.noise_multiplier, plan.clip_norm, 1)
        noised = noise.release_on_grid(total, step=step, scale=scale, source=self._source)
        return plan.centre + float(noised[0]) / plan.divisor

    def __reduce__(self) -> NoReturn:
        raise PlanError("a metric can't be copied: it would be drawn twice for one charge")


def open_metric(plan: MetricPlan, charge: Charge, source: NoiseSource) -> MetricMechanism:
    """Open a charged look at a metric.

    Raises:
        PlanError: Not a metric's plan, or not a fresh charge of it.
    """
    if type(plan) is not MetricPlan:
        raise PlanError(expected("plan", type(plan).__name__, "to be a MetricPlan"))
    redeem(plan, charge)
    return MetricMechanism(plan, source, _key=_KEY)

"""Plans as public, frozen data: their values, their one encoding, and how a run's plan is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, final

from sordino.core import canonical
from sordino.core.errors import PlanError, expected
from sordino.privacy import accounting, noise
from sordino.privacy.accounting import AdaptiveClipGaussian, PoissonSampledGaussian
from sordino.privacy.plan.fields import check_schedule, encode, fixed, positive

WIDEST: Final = 1000.0
"""The most that an adaptive clip norm's largest may be over its smallest: one grid serves both."""

LIGHTEST: Final = 0.01
"""The least that a record's count weighs beside its gradient: below, the grid would swallow it."""


@final
@dataclass(frozen=True, kw_only=True)
class AdaptiveClip:
    """How a plan's clip norm follows a private quantile (Andrew et al. 2021, algorithm 1).

    After each step c becomes c·exp(-`rate`·x), where x is the noised sum of (within c) - `quantile`
    over the batch's records, divided by the plan's public divisor. On average x is 0 exactly where
    `quantile` of the records are within c, whatever their number, which is private: the paper's
    count, over a number of users that is known, would be off by as much as the divisor is.

    Attributes:
        start: c of the first step, where nothing is remembered.
        smallest: c never falls below; the plan's own `clip_norm` is what it never passes.
        quantile: γ.
        rate: How fast c moves, at most by a factor of e to it in one step.
        count_noise_multiplier: n: the count's noise over how far one record moves the count, which
            is max(γ, 1 - γ).

    Raises:
        PlanError: A value is impossible.
    """

    start: float
    smallest: float
    quantile: float
    rate: float
    count_noise_multiplier: float

    def __post_init__(self) -> None:
        positive(self, "start")
        positive(self, "smallest")
        positive(self, "quantile", below=1.0)
        positive(self, "rate", at_most=1.0)
        positive(self, "count_noise_multiplier", at_most=accounting.LARGEST_NOISE)


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole run of DP-SGD on each client, noise on the device (`trust = "local"`), unit record.

    Each of the `rounds` times `steps_per_round` steps: Poisson batch, per-record clip to
    `clip_norm`, sum, Gaussian noise, division by the public `divisor`. One record added or removed
    moves the clipped sum by at most `clip_norm`, and the sum on its grid by at most `sensitivity`;
    the noise's standard deviation is `noise_multiplier` times the latter, so that the accounted
    multiplier is the one that holds. It holds no seed and no ε.

    With `adaptive`, `clip_norm` is the largest that the clip norm may become. The count that it
    follows is one more coordinate of each step's sum, under the same noise, and `noise_multiplier`
    is of both: see `accounting.AdaptiveClipGaussian`.

    Raises:
        PlanError: A value is impossible.
    """

    kind: ClassVar[str] = "sordino.plan"

    run_id: str
    rounds: int
    steps_per_round: int
    sampling_rate: float
    noise_multiplier: float
    clip_norm: float
    divisor: float
    delta: float
    trust: Literal["local"] = "local"
    unit: Literal["record"] = "record"
    neighbouring: Literal["add-or-remove-one"] = "add-or-remove-one"
    sampling: Literal["poisson"] = "poisson"
    noise: Literal["rounded-gaussian"] = "rounded-gaussian"
    adaptive: AdaptiveClip | None = None

    def __post_init__(self) -> None:
        _check_steps(self)
        positive(self, "noise_multiplier", at_most=accounting.LARGEST_NOISE)
        positive(self, "clip_norm")
        positive(self, "delta", below=1.0)
        self._check_adaptive()
        self.grid_step(1)  # refuses a clip norm that no grid can hold
        fixed(self, trust="local", unit="record", neighbouring="add-or-remove-one")
        fixed(self, noise="rounded-gaussian")

    def canonical(self) -> bytes:
        """The plan's only encoding."""
        return encode(self)

    @property
    def sha256(self) -> str:
        """The plan's name: SHA-256 of `canonical()`, hex."""
        return canonical.sha256_hex(self.canonical())

    @property
    def count_weight(self) -> float:
        """The most that a record's count adds to a step's sum, over the clip norm; 0 if fixed."""
        if self.adaptive is None:
            return 0.0
        count_noise = self.adaptive.count_noise_multiplier
        return accounting.raised_noise(self.noise_multiplier, count_noise) / count_noise

    def grid_step(self, size: int) -> float:
        """γ: the public grid of sums of `size` gradients, a power of two (see `noise.grid_step`).

        It is the same at every clip norm that an adaptive plan may come to.
        """
        if self.adaptive is None:
            return noise.grid_step(self.clip_norm, size)
        return noise.grid_step(self.adaptive.smallest, size + 1)

    def sensitivity(self, size: int, clip_norm: float | None = None) -> float:
        """Δ: how far one record moves a sum of `size` gradients on the grid, in L2.

        With an adaptive clip, of the gradients and the count beside them.

        Args:
            size: d.
            clip_norm: The present clip norm; None: the plan's, which is the largest.
        """
        norm, step = clip_norm or self.clip_norm, self.grid_step(size)
        if self.adaptive is None:
            return noise.rounded_sensitivity(norm, step, size)
        joint = math.hypot(norm, norm * self.count_weight) * (1 + 2.0**-50)
        return noise.rounded_sensitivity(joint, step, size + 1)

    def noise_scale(self, size: int, clip_norm: float | None = None) -> float:
        """The noise's standard deviation in steps of the grid, at least noise_multiplier·Δ/γ."""
        return noise.noise_scale(
            self.noise_multiplier, self.sensitivity(size, clip_norm), self.grid_step(size)
        )

    def noise_std(self, size: int) -> float:
        """The noise's standard deviation before it is rounded to the grid."""
        return self.noise_scale(size) * self.grid_step(size)

    def round_event(self) -> PoissonSampledGaussian | AdaptiveClipGaussian:
        """What one round is charged as."""
        return self._event(self.steps_per_round)

    def total_event(self) -> PoissonSampledGaussian | AdaptiveClipGaussian:
        """What the whole run is charged as."""
        return self._event(self.rounds * self.steps_per_round)

    def event_fields(self) -> dict[str, str | int | float]:
        """`round_event` as the ledger keeps it."""
        return accounting.event_fields(self.round_event())

    def _check_adaptive(self) -> None:
        rule = self.adaptive
        if rule is None:
            return
        if type(rule) is not AdaptiveClip:
            raise PlanError(expected("adaptive", type(rule).__name__, "to be an AdaptiveClip"))
        if not rule.smallest <= rule.start <= self.clip_norm:
            between = f"between adaptive.smallest ({rule.smallest}) and the plan's clip_norm"
            raise PlanError(expected("adaptive.start", rule.start, between))
        if not self.clip_norm <= WIDEST * rule.smallest:
            most = f"<= {WIDEST:g} times adaptive.smallest ({rule.smallest})"
            raise PlanError(expected("clip_norm", self.clip_norm, most))
        if not self.count_weight >= LIGHTEST:  # or a count's noise that leaves no gradient
            required = f"small enough that the count weighs at least {LIGHTEST} of the clip norm"
            count_noise = rule.count_noise_multiplier
            raise PlanError(expected("adaptive.count_noise_multiplier", count_noise, required))

    def _event(self, steps: int) -> PoissonSampledGaussian | AdaptiveClipGaussian:
        if self.adaptive is not None:
            return AdaptiveClipGaussian(
                sampling_rate=self.sampling_rate,
                noise_multiplier=self.noise_multiplier,
                count_noise_multiplier=self.adaptive.count_noise_multiplier,
                quantile=self.adaptive.quantile,
                steps=steps,
                clip_norm=self.clip_norm,
            )
        return PoissonSampledGaussian(
            sampling_rate=self.sampling_rate,
            noise_multiplier=self.noise_multiplier,
            steps=steps,
            clip_norm=self.clip_norm,
        )


@final
@dataclass(frozen=True, kw_only=True)
class NoPrivacyPlan:
    """The twin without clip, noise and guarantee: for baselines and bit-for-bit tests.

    A type of its own, so that nothing which wants a `Plan` can be handed one by mistake.
    """

    kind: ClassVar[str] = "sordino.plan-without-privacy"

    run_id: str
    rounds: int
    steps_per_round: int
    sampling_rate: float
    divisor: float
    trust: Literal["none"] = "none"
    sampling: Literal["poisson"] = "poisson"

    def __post_init__(self) -> None:
        _check_steps(self)
        fixed(self, trust="none")

    def canonical(self) -> bytes:
        """The plan's only encoding."""
        return encode(self)

    @property
    def sha256(self) -> str:
        """The plan's name: SHA-256 of `canonical()`, hex."""
        return canonical.sha256_hex(self.canonical())


def _check_steps(plan: Plan | NoPrivacyPlan) -> None:
    check_schedule(plan)
    positive(plan, "sampling_rate", at_most=1.0)
    positive(plan, "divisor")
    fixed(plan, sampling="poisson")

"""Plans as public, frozen data: their values, their one encoding, and how a run's plan is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from sordino.core import canonical
from sordino.privacy import accounting, noise
from sordino.privacy.accounting import PoissonSampledGaussian
from sordino.privacy.plan.fields import check_schedule, encode, fixed, positive


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole run of DP-SGD on each client, noise on the device (`trust = "local"`), unit record.

    Each of the `rounds` times `steps_per_round` steps: Poisson batch, per-record clip to
    `clip_norm`, sum, Gaussian noise, division by the public `divisor`. One record added or removed
    moves the clipped sum by at most `clip_norm`, and the sum on its grid by at most `sensitivity`;
    the noise's standard deviation is `noise_multiplier` times the latter, so that the accounted
    multiplier is the one that holds. It holds no seed and no ε.

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

    def __post_init__(self) -> None:
        _check_steps(self)
        positive(self, "noise_multiplier", at_most=accounting.LARGEST_NOISE)
        positive(self, "clip_norm")
        positive(self, "delta", below=1.0)
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

    def grid_step(self, size: int) -> float:
        """γ: the public grid of sums of `size` values, a power of two (see `noise.grid_step`)."""
        return noise.grid_step(self.clip_norm, size)

    def sensitivity(self, size: int) -> float:
        """Δ: how far one record moves a sum of `size` values on the grid, in L2."""
        return noise.rounded_sensitivity(self.clip_norm, self.grid_step(size), size)

    def noise_scale(self, size: int) -> float:
        """The noise's standard deviation in steps of the grid, at least noise_multiplier·Δ/γ."""
        return noise.noise_scale(
            self.noise_multiplier, self.sensitivity(size), self.grid_step(size)
        )

    def noise_std(self, size: int) -> float:
        """The noise's standard deviation before it is rounded to the grid."""
        return self.noise_scale(size) * self.grid_step(size)

    def round_event(self) -> PoissonSampledGaussian:
        """What one round is charged as."""
        return self._event(self.steps_per_round)

    def total_event(self) -> PoissonSampledGaussian:
        """What the whole run is charged as."""
        return self._event(self.rounds * self.steps_per_round)

    def event_fields(self) -> dict[str, str | int | float]:
        """`round_event` as the ledger keeps it."""
        return accounting.event_fields(self.round_event())

    def _event(self, steps: int) -> PoissonSampledGaussian:
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

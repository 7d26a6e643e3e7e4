"""Central trust as public, frozen data: the coordinator adds the noise, the unit is the user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from sordino.core import canonical
from sordino.core.errors import PlanError, expected
from sordino.privacy import accounting, noise
from sordino.privacy.accounting import Event, PoissonSampledGaussian, UserGaussian
from sordino.privacy.plan.fields import (
    check_schedule,
    count,
    encode,
    fixed,
    noise_scale,
    positive,
    sensitivity,
)


@final
@dataclass(frozen=True, kw_only=True)
class CentralPlan:
    """A whole run in which the coordinator is trusted to add the noise; unit user.

    In each of `rounds` rounds every client clips its whole update to `clip_norm`; the coordinator
    sums, adds noise of `noise_multiplier` times the sum's sensitivity once, and divides by the
    planned `cohort`, whoever answered: a missing device counts as zero. One user added or removed
    moves the sum by at most `clip_norm` (on its grid: `sensitivity`).

    Amplification is claimed only with `sampling = "poisson"`: the coordinator itself draws each
    user's coin of `sampling_rate` in every round, takes updates from nobody else, and keeps the
    coins secret. A device can't see whether it does, so it charges itself without amplification.

    Attributes:
        run_id: The run's name.
        rounds: How many sums will be released.
        steps_per_round: Local steps of a client. Not part of the guarantee, like the batches.
        noise_multiplier: z.
        clip_norm: C.
        delta: The δ of the run's claim.
        population: How many users there are, as the coordinator says.
        cohort: The divisor: how many are planned for a round.
        sampling: Whether users are sampled.
        sampling_rate: q of a user; 1 without sampling.
        batch_rate: Poisson rate of the local batches.
        batch_divisor: What a local batch's sum of gradients is divided by.

    Raises:
        PlanError: A value is impossible.
    """

    kind: ClassVar[str] = "sordino.central-plan"

    run_id: str
    rounds: int
    steps_per_round: int
    noise_multiplier: float
    clip_norm: float
    delta: float
    population: int
    cohort: int
    sampling: Literal["none", "poisson"]
    sampling_rate: float
    batch_rate: float
    batch_divisor: float
    trust: Literal["central"] = "central"
    unit: Literal["user"] = "user"
    neighbouring: Literal["add-or-remove-one"] = "add-or-remove-one"
    noise: Literal["rounded-gaussian"] = "rounded-gaussian"

    def __post_init__(self) -> None:
        check_schedule(self)
        positive(self, "noise_multiplier", at_most=accounting.LARGEST_NOISE)
        positive(self, "clip_norm")
        positive(self, "delta", below=1.0)
        positive(self, "sampling_rate", at_most=1.0)
        positive(self, "batch_rate", at_most=1.0)
        positive(self, "batch_divisor")
        count(self, "population", most=2**40)
        count(self, "cohort", most=2**20)
        noise.grid_step(self.clip_norm, 1)  # refuses a clip norm that no grid can hold
        fixed(self, trust="central", unit="user", neighbouring="add-or-remove-one")
        fixed(self, noise="rounded-gaussian")
        self._check_sampling()

    def canonical(self) -> bytes:
        """The plan's only encoding."""
        return encode(self)

    @property
    def sha256(self) -> str:
        """The plan's name: SHA-256 of `canonical()`, hex."""
        return canonical.sha256_hex(self.canonical())

    def grid_step(self, size: int) -> float:
        """γ: the public grid of updates and sums of `size` values, a power of two."""
        return noise.grid_step(self.clip_norm, size)

    def sensitivity(self, size: int) -> float:
        """Δ: how far one user moves a sum of `size` values on the grid, in L2."""
        return sensitivity(self.clip_norm, size)

    def noise_scale(self, size: int) -> float:
        """The noise's standard deviation in steps of the grid, at least noise_multiplier·Δ/γ."""
        return noise_scale(self.noise_multiplier, self.clip_norm, size)

    def round_event(self) -> UserGaussian:
        """What a device charges for one round: without amplification, which it can't verify."""
        return UserGaussian(
            noise_multiplier=self.noise_multiplier, steps=1, clip_norm=self.clip_norm
        )

    def event_fields(self) -> dict[str, str | int | float]:
        """`round_event` as a device's ledger keeps it."""
        return accounting.event_fields(self.round_event())

    def total_event(self) -> Event:
        """What the whole run costs a user, sampled as the plan says: the coordinator's claim."""
        return self._release_event(self.rounds)

    @property
    def releases(self) -> CentralReleases:
        """The same plan as the coordinator's own ledger charges it."""
        return CentralReleases(plan=self)

    def _release_event(self, steps: int) -> Event:
        if self.sampling == "none":
            return UserGaussian(
                noise_multiplier=self.noise_multiplier, steps=steps, clip_norm=self.clip_norm
            )
        return PoissonSampledGaussian(
            sampling_rate=self.sampling_rate,
            noise_multiplier=self.noise_multiplier,
            steps=steps,
            clip_norm=self.clip_norm,
            unit="user",
        )

    def _check_sampling(self) -> None:
        if self.sampling not in ("none", "poisson"):
            raise PlanError(expected("sampling", self.sampling, "one of none, poisson"))
        if (self.sampling == "none") != (self.sampling_rate == 1):
            required = "1 without sampling, and below 1 where amplification is claimed"
            raise PlanError(expected("sampling_rate", self.sampling_rate, required))
        if abs(self.cohort - self.sampling_rate * self.population) >= 1:
            required = f"sampling_rate times the population ({self.population})"
            raise PlanError(expected("cohort", self.cohort, required))


@final
@dataclass(frozen=True, kw_only=True)
class CentralReleases:
    """A central plan as its coordinator charges it: one release a round, sampled as planned."""

    plan: CentralPlan

    @property
    def run_id(self) -> str:
        """The plan's run."""
        return self.plan.run_id

    @property
    def rounds(self) -> int:
        """How many releases were announced."""
        return self.plan.rounds

    @property
    def unit(self) -> str:
        """The user."""
        return self.plan.unit

    @property
    def neighbouring(self) -> str:
        """The plan's relation."""
        return self.plan.neighbouring

    @property
    def sha256(self) -> str:
        """The plan's name."""
        return self.plan.sha256

    def round_event(self) -> Event:
        """One release."""
        return self.plan._release_event(1)

    def event_fields(self) -> dict[str, str | int | float]:
        """`round_event` as the coordinator's ledger keeps it."""
        return accounting.event_fields(self.round_event())

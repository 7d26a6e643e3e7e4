"""Rounds: the only objects that sample, clip and draw, each for one charge of one plan."""

from __future__ import annotations

import os
import threading
from typing import Any, Final, NoReturn, Protocol, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sordino.core.errors import PlanError, expected
from sordino.privacy import clipping, noise, sampling
from sordino.privacy.ledger import Charge
from sordino.privacy.noise import NoiseSource
from sordino.privacy.plan.adaptive import ClipMemory, Follower
from sordino.privacy.plan.charged import redeem
from sordino.privacy.plan.plans import NoPrivacyPlan, Plan

_KEY: Final = object()
_ROUNDING: Final = 1 + 2.0**-9  # the grid adds at most 2^-11 of C to a record, float32 far less


class Mechanism(Protocol):
    """What a local trainer needs for one round: `RoundMechanism`, or its twin without privacy."""

    @property
    def steps(self) -> int:
        """How many steps the round has, all of which must be run."""
        ...

    @property
    def divisor(self) -> float:
        """The public constant that the noised sum is divided by, whatever the batch's size."""
        ...

    @property
    def finished(self) -> bool:
        """True once every step has had its noise."""
        ...

    def sample(self, population: int) -> NDArray[np.intp]:
        """Begin the next step: the indices of its batch, possibly none."""
        ...

    def words(self, size: int) -> NDArray[np.uint64]:
        """`size` words of 64 fair bits, for a record's views; the batch and the noise need none."""
        ...

    def clip_factors(self, norms: ArrayLike) -> NDArray[np.floating[Any]]:
        """Factors for some of the batch's records; 0 means replace by zeros. Each record once."""
        ...

    def release(self, total: ArrayLike) -> NDArray[np.float64]:
        """End the step: the whole clipped sum in, the noised sum out."""
        ...


class _Steps:
    """The order of a round: sample → clip every record of the batch → release, `total` times."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.batch = 0  # records of the open step
        self._unclipped: int | None = None  # None: between steps
        self._size: int | None = None
        self._process = os.getpid()
        self._thread: int | None = None  # the one that begins the first step

    def may_begin(self) -> None:
        self._check_process()
        if self._unclipped is not None:
            raise PlanError(f"step {self.done + 1} is still open: release its sum before sampling")
        if self.done == self.total:
            raise PlanError(f"all {self.total} charged steps are done: charge another round")

    def begin(self, batch: int) -> None:
        self.batch = self._unclipped = batch

    def clip(self, records: int) -> None:
        if self._unclipped is None:
            raise PlanError("nothing to clip: sample a batch first")
        if records > self._unclipped:
            raise PlanError(
                expected("norms", records, f"for at most the {self._unclipped} unclipped records")
            )
        self._unclipped -= records

    def end(self, size: int) -> None:
        self._check_process()
        if self._unclipped is None:
            raise PlanError("no step is open: one sum is released for each sampled batch")
        if self._unclipped:
            raise PlanError(f"{self._unclipped} records of the batch were not clipped")
        if size != (self._size or size):
            raise PlanError(expected("the clipped sum's size", size, f"to be {self._size}"))
        self._size, self._unclipped = size, None
        self.done += 1

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise PlanError("a round can't go on in a forked process: noise would be drawn twice")
        self._thread = self._thread or threading.get_ident()
        if threading.get_ident() != self._thread:
            raise PlanError("a round can't go on in another thread: noise might be drawn twice")


@final
class RoundMechanism:
    """One charged round: the only thing that draws for a `Plan`. Made by `open_round` alone.

    Enforces the order of each step and their number. It can't be copied, pickled or forked. For one
    thread.
    """

    def __init__(
        self,
        plan: Plan,
        source: NoiseSource,
        memory: ClipMemory | None = None,
        *,
        _key: object = None,
    ) -> None:
        if _key is not _KEY:
            raise PlanError("a round is opened by open_round, with a charge from the ledger")
        self._plan = plan
        self._source = source
        self._memory = memory
        self._follower: Follower | None = None
        if plan.adaptive is not None:
            start = memory.read(plan, plan.adaptive) if memory else plan.adaptive.start
            self._follower = Follower(plan, plan.adaptive, start)
        self._steps = _Steps(plan.steps_per_round)

    @property
    def plan(self) -> Plan:
        """The plan this round belongs to."""
        return self._plan

    @property
    def clip_norm(self) -> float:
        """The present clip norm: the plan's, or what an adaptive one came to."""
        return self._follower.clip_norm if self._follower else self._plan.clip_norm

    @property
    def noise_label(self) -> str:
        """What the report says under `noise.source`."""
        return self._source.label

    @property
    def steps(self) -> int:
        """See `Mechanism`."""
        return self._steps.total

    @property
    def divisor(self) -> float:
        """See `Mechanism`."""
        return self._plan.divisor

    @property
    def finished(self) -> bool:
        """See `Mechanism`."""
        return self._steps.done == self._steps.total

    def sample(self, population: int) -> NDArray[np.intp]:
        """Begin the next step with a Poisson batch.

        Raises:
            PlanError: Every charged step is done, or the step before has had no noise yet.
        """
        self._steps.may_begin()
        batch = sampling.poisson_sample(population, self._plan.sampling_rate, self._source.coins)
        self._steps.begin(len(batch))
        return batch

    def words(self, size: int) -> NDArray[np.uint64]:
        """See `Mechanism`."""
        return self._source.coins(size)

    def clip_factors(self, norms: ArrayLike) -> NDArray[np.floating[Any]]:
        """Factors that bring records of the batch down to the clip norm (see `clipping`).

        Raises:
            PlanError: No batch is open, or more norms than the batch has unclipped records.
        """
        given = np.asarray(norms)
        self._steps.clip(given.size)
        if self._follower:
            self._follower.note(given)
        return clipping.clip_factors(given, self.clip_norm)

    def release(self, total: ArrayLike) -> NDArray[np.float64]:
        """End the step: the clipped sum on its grid, with the step's only draw of noise.

        The noise's standard deviation is the noise multiplier times the sum's sensitivity on the
        grid (see `Plan.sensitivity`). The result may go anywhere: it is what ε is about. With an
        adaptive clip the count of the batch's records within the clip norm is one more coordinate
        of the same draw, and moves the clip norm of the next step.

        Args:
            total: The clipped sum of the batch's records, float32 or float64, one dimension.
                Records that were put on the plan's grid one by one sum without error; a sum in
                floating point is off by an amount that grows with the batch, which is private.

        Raises:
            PlanError: No batch is open, some record wasn't clipped, the size changed in the round,
                a value isn't finite, or the sum is longer than so many clipped records can make
                it. Nothing was drawn and nothing is released.
        """
        given = noise.check_sum(total)
        self._check_length(given)
        plan, size = self._plan, given.size
        self._steps.end(size)  # recorded first: a draw that fails is still the step's draw
        step, scale = plan.grid_step(size), plan.noise_scale(size, self.clip_norm)
        if self._follower is None:
            return noise.release_on_grid(given, step=step, scale=scale, source=self._source)
        joint = np.append(given.astype(np.float64), self._follower.coordinate(step))
        noised = noise.release_on_grid(joint, step=step, scale=scale, source=self._source)
        self._follower.follow(float(noised[-1]))
        if self.finished and self._memory:
            self._memory.write(plan, self.clip_norm)
        return noised[:-1]

    def _check_length(self, total: NDArray[np.floating[Any]]) -> None:
        """Catch a sum that wasn't clipped: its noise would be too small for it.

        It can't catch every such sum, only one that gives itself away; an empty batch's is zero.
        """
        most = self._steps.batch * self.clip_norm * _ROUNDING
        wide = np.asarray(total, dtype=np.float64)
        with np.errstate(over="ignore"):
            length = np.sqrt(wide @ wide)
        if not length <= most:
            raise PlanError(
                "the sum is longer than the batch's records can make it: clip each with its factor"
            )

    def __reduce__(self) -> NoReturn:
        raise PlanError("a round can't be copied: it would draw twice for one charge")


@final
class NoPrivacyMechanism:
    """The twin of `RoundMechanism`: same sampler and order; no clip, no noise, NaN records out."""

    def __init__(self, plan: NoPrivacyPlan, source: NoiseSource) -> None:
        self._plan = plan
        self._source = source
        self._steps = _Steps(plan.steps_per_round)

    @property
    def plan(self) -> NoPrivacyPlan:
        """The plan this round belongs to."""
        return self._plan

    @property
    def steps(self) -> int:
        """See `Mechanism`."""
        return self._steps.total

    @property
    def divisor(self) -> float:
        """See `Mechanism`."""
        return self._plan.divisor

    @property
    def finished(self) -> bool:
        """See `Mechanism`."""
        return self._steps.done == self._steps.total

    def sample(self, population: int) -> NDArray[np.intp]:
        """Begin the next step with a Poisson batch."""
        self._steps.may_begin()
        batch = sampling.poisson_sample(population, self._plan.sampling_rate, self._source.coins)
        self._steps.begin(len(batch))
        return batch

    def words(self, size: int) -> NDArray[np.uint64]:
        """See `Mechanism`."""
        return self._source.coins(size)

    def clip_factors(self, norms: ArrayLike) -> NDArray[np.floating[Any]]:
        """1 for a record with a finite norm, else 0."""
        given = np.asarray(norms)
        self._steps.clip(given.size)
        factors: NDArray[np.floating[Any]] = np.isfinite(given).astype(
            np.float32 if given.dtype == np.float32 else np.float64
        )
        return factors

    def release(self, total: ArrayLike) -> NDArray[np.float64]:
        """End the step: the sum as it is."""
        given = np.array(total, np.float64)
        self._steps.end(given.size)
        return given


def open_round(
    plan: Plan, charge: Charge, source: NoiseSource, memory: ClipMemory | None = None
) -> RoundMechanism:
    """Open a charged round for training.

    Args:
        plan: The plan that was charged.
        charge: The ledger's proof, used up by this call.
        source: Where noise and coins come from; its label goes to the report.
        memory: Where an adaptive clip norm goes on from round to round; None: each round begins
            at the plan's `start`.

    Raises:
        PlanError: Not a private plan, not a charge, a charge of another plan, run or event, or one
            that has been used.
    """
    if type(plan) is not Plan:
        raise PlanError(expected("plan", type(plan).__name__, "to be a Plan"))
    redeem(plan, charge)
    return RoundMechanism(plan, source, memory, _key=_KEY)


def open_round_without_privacy(plan: NoPrivacyPlan, source: NoiseSource) -> NoPrivacyMechanism:
    """Open a round of a plan without privacy; nothing is charged, for nothing is promised.

    Raises:
        PlanError: A private plan.
    """
    if type(plan) is not NoPrivacyPlan:
        raise PlanError(expected("plan", type(plan).__name__, "to be a NoPrivacyPlan"))
    return NoPrivacyMechanism(plan, source)

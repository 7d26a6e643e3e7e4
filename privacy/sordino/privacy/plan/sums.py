"""Central trust at work: a client's clip of its whole update, and the coordinator's noised sum."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final, NoReturn, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sordino.core.errors import PlanError, expected
from sordino.privacy import clipping, noise, sampling
from sordino.privacy.ledger import Charge
from sordino.privacy.noise import NoiseSource
from sordino.privacy.plan.central import CentralPlan
from sordino.privacy.plan.charged import redeem
from sordino.privacy.plan.plans import NoPrivacyPlan
from sordino.privacy.plan.rounds import NoPrivacyMechanism, open_round_without_privacy

_KEY: Final = object()
_MOST_UPDATES: Final = 1 << 20


@final
class UserMechanism:
    """One charged round of a client under central trust. Made by `open_update` alone.

    The local steps are free: what leaves is `clip_update` of their outcome, once. It still shows
    the client to the coordinator, which is trusted to add the noise.
    """

    def __init__(
        self, plan: CentralPlan, steps: NoPrivacyMechanism, *, _key: object = None
    ) -> None:
        if _key is not _KEY:
            raise PlanError("a client's round is opened by open_update, with a charge")
        self._plan, self._steps, self._clipped = plan, steps, False

    @property
    def plan(self) -> CentralPlan:
        """The plan this round belongs to."""
        return self._plan

    @property
    def steps(self) -> int:
        """How many local steps the round has."""
        return self._steps.steps

    @property
    def divisor(self) -> float:
        """What a local batch's sum is divided by."""
        return self._steps.divisor

    @property
    def finished(self) -> bool:
        """True once every step is done."""
        return self._steps.finished

    def sample(self, population: int) -> NDArray[np.intp]:
        """Begin the next local step: the indices of its batch."""
        return self._steps.sample(population)

    def words(self, size: int) -> NDArray[np.uint64]:
        """`size` words of 64 fair bits, for a record's views."""
        return self._steps.words(size)

    def clip_factors(self, norms: ArrayLike) -> NDArray[np.floating[Any]]:
        """1 for a record with a finite gradient, else 0: the clip is the whole update's."""
        return self._steps.clip_factors(norms)

    def release(self, total: ArrayLike) -> NDArray[np.float64]:
        """End the local step: the sum as it is. It doesn't leave the device."""
        return self._steps.release(total)

    def clip_update(
        self, tensors: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, NDArray[np.float32]]:
        """The update with its norm brought down to C, on the plan's grid; once.

        Values are rounded towards zero, so that the norm stays within C. An update that isn't
        finite counts as zero.

        Raises:
            PlanError: The local steps aren't done, or the update was clipped before.
        """
        if not self.finished or self._clipped:
            raise PlanError("a round's update is clipped once, after its last step")
        self._clipped = True
        size = sum(tensor.size for tensor in tensors.values())
        step = self._plan.grid_step(size)
        squares = [float(np.square(t, dtype=np.float64).sum()) for t in tensors.values()]
        factor = float(clipping.clip_factors([np.sqrt(sum(squares))], self._plan.clip_norm)[0])
        return {
            name: (np.trunc(tensor.astype(np.float64) * factor / step) * step).astype(np.float32)
            if factor
            else np.zeros(tensor.shape, np.float32)
            for name, tensor in tensors.items()
        }

    def __reduce__(self) -> NoReturn:
        raise PlanError("a round can't be copied: a charge is good for one")


@final
class CentralSum:
    """A round's sum of users' updates. It can be added to by anybody and read by nobody.

    `release` is the only way out: it takes the ledger's charge of this plan's release, and gives
    the noised sum over the planned cohort. It can't be copied or pickled.

    Args:
        plan: The run's plan.
        size: How many values an update has.
    """

    def __init__(self, plan: CentralPlan, size: int) -> None:
        if type(plan) is not CentralPlan:
            raise PlanError(expected("plan", type(plan).__name__, "to be a CentralPlan"))
        self._plan = plan
        self._step = plan.grid_step(size)
        self._total = np.zeros(size, np.int64)
        self._count = 0
        self._released = False
        self._process = os.getpid()

    @property
    def count(self) -> int:
        """How many users answered. The coordinator's own: the noise doesn't cover it."""
        return self._count

    def add(self, update: NDArray[np.floating[Any]]) -> None:
        """Add one user's update, clipped again: a client's own clip is only its word.

        Raises:
            PlanError: It isn't a row of as many finite values, the sum is released, or full.
        """
        if self._released:
            raise PlanError("this sum was released: a late update is left out")
        given = noise.check_sum(update)
        if given.size != self._total.size or self._count >= _MOST_UPDATES:
            raise PlanError(expected("update", given.size, f"of {self._total.size} values"))
        wide = given.astype(np.float64)
        norm = np.sqrt(np.square(wide).sum())
        factor = float(clipping.clip_factors([norm], self._plan.clip_norm)[0])
        self._total += np.rint(wide * factor / self._step).astype(np.int64)
        self._count += 1

    def release(self, charge: Charge, source: NoiseSource) -> NDArray[np.float64]:
        """The noised sum over the planned cohort, once: missing devices count as zero.

        Args:
            charge: The ledger's proof that `plan.releases` is charged, used up by this call.
            source: Where the noise comes from.

        Raises:
            PlanError: Not that charge, or the sum was released before.
        """
        if self._released or os.getpid() != self._process:
            raise PlanError("this sum was released before: a second draw would be a second release")
        redeem(self._plan.releases, charge)
        self._released = True
        size = self._total.size
        noised = noise.release_on_grid(
            self._total * self._step,
            step=self._step,
            scale=self._plan.noise_scale(size),
            source=source,
        )
        return noised / self._plan.cohort

    def __reduce__(self) -> NoReturn:
        raise PlanError("a sum can't be copied: it would be released twice for one charge")


def open_update(plan: CentralPlan, charge: Charge, source: NoiseSource) -> UserMechanism:
    """Open a client's charged round under central trust.

    Args:
        plan: The plan that was charged.
        charge: The proof of the client's own ledger, used up by this call.
        source: Where the coins of the local batches come from.

    Raises:
        PlanError: Not a central plan, or not a fresh charge of it.
    """
    if type(plan) is not CentralPlan:
        raise PlanError(expected("plan", type(plan).__name__, "to be a CentralPlan"))
    redeem(plan, charge)
    local = NoPrivacyPlan(
        run_id=plan.run_id,
        rounds=plan.rounds,
        steps_per_round=plan.steps_per_round,
        sampling_rate=plan.batch_rate,
        divisor=plan.batch_divisor,
    )
    return UserMechanism(plan, open_round_without_privacy(local, source), _key=_KEY)


def sample_users(plan: CentralPlan, users: int, source: NoiseSource) -> NDArray[np.intp]:
    """Which of the known users a round asks: each by its own secret coin, or all of them.

    The result is as private as an update: who was asked may not be told to anybody.
    """
    return sampling.poisson_sample(users, plan.sampling_rate, source.coins)

"""Mechanisms that are wrong in one known way, for an audit to be tried on. Never for training.

Each is what a mistake in an installation would amount to. A `Plan` can't be opened with any of
them: they exist beside the one real way (`open_round`), which is what the self-test also runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sordino.privacy import clipping, noise, sampling
from sordino.privacy.noise import NoiseSource
from sordino.privacy.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What is wrong.

    Attributes:
        noise: The part of the accounted noise that is drawn.
        clips: Whether records are clipped.
        samples: Whether a batch is sampled; else every record is in each.
    """

    noise: float = 1.0
    clips: bool = True
    samples: bool = True


class BrokenMechanism:
    """A round of a plan with faults; see `sordino.privacy.plan.Mechanism`."""

    def __init__(self, plan: Plan, source: NoiseSource, faults: Faults) -> None:
        self.plan = plan
        self._source = source
        self._faults = faults
        self._done = 0

    @property
    def steps(self) -> int:
        """As the plan says."""
        return self.plan.steps_per_round

    @property
    def divisor(self) -> float:
        """As the plan says."""
        return self.plan.divisor

    @property
    def finished(self) -> bool:
        """True once every step is done."""
        return self._done == self.steps

    def sample(self, population: int) -> NDArray[np.intp]:
        """A batch, or everything."""
        if not self._faults.samples:
            return np.arange(population)
        rate = self.plan.sampling_rate
        return sampling.poisson_sample(population, rate, self._source.coins)

    def words(self, size: int) -> NDArray[np.uint64]:
        """`size` words of 64 fair bits."""
        return self._source.coins(size)

    def clip_factors(self, norms: ArrayLike) -> NDArray[np.floating[Any]]:
        """Factors to the clip norm, or 1."""
        given = np.asarray(norms)
        if not self._faults.clips:
            return np.ones(given.shape)
        return clipping.clip_factors(given, self.plan.clip_norm)

    def release(self, total: ArrayLike) -> NDArray[np.float64]:
        """The sum with noise, perhaps too little."""
        self._done += 1
        given = noise.check_sum(total)
        size = given.size
        return noise.release_on_grid(
            given,
            step=self.plan.grid_step(size),
            scale=self._faults.noise * self.plan.noise_scale(size),
            source=self._source,
        )


class NoiselessSource:
    """Draws zeros, so that what is left of a release is its sum: to look at the sum itself."""

    label = "none: not private"
    private = False

    def rounded_gaussian(self, size: int, scale: float) -> NDArray[np.int64]:
        """Zeros."""
        del scale
        return np.zeros(size, np.int64)

    def coins(self, size: int) -> NDArray[np.uint64]:
        """Zeros: whatever is sampled by them is taken."""
        return np.zeros(size, np.uint64)

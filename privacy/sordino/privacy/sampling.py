"""Poisson sampling: every record joins a batch by its own coin.

Amplification is proved for exactly this. Shuffling, or drawing a batch of fixed size, is another
mechanism with another ε.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sordino.core.errors import PlanError, expected

Uniforms = Callable[[int], NDArray[np.float64]]


def poisson_sample(population: int, rate: float, uniforms: Uniforms) -> NDArray[np.intp]:
    """Draw one batch: each of `population` records independently with probability `rate`.

    The batch may be empty, and its size is as private as its contents. Uniforms on a grid of 2^-53
    make the true probability `rate` rounded up to that grid.

    Args:
        population: Number of records, >= 0. Private: it never leaves the device.
        rate: Sampling rate q in (0, 1], public, the same for every client.
        uniforms: Gives n independent uniforms in [0, 1).

    Returns:
        Ascending indices into the records.

    Raises:
        PlanError: A bad population or rate, or uniforms of the wrong number or range.
    """
    if isinstance(population, bool) or not isinstance(population, int) or population < 0:
        raise PlanError(expected("population", population, "a whole number >= 0"))
    if not (math.isfinite(rate) and 0 < rate <= 1):
        raise PlanError(expected("sampling_rate", rate, "in (0, 1]"))
    draws = np.asarray(uniforms(population), dtype=np.float64)
    if draws.shape != (population,) or not ((draws >= 0) & (draws < 1)).all():
        raise PlanError("expected uniforms in [0, 1), one a record: the noise source is broken")
    return np.flatnonzero(draws < rate)

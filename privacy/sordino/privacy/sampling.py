"""Poisson sampling: every record joins a batch by its own coin.

Amplification is proved for exactly this. Shuffling, or drawing a batch of fixed size, is another
mechanism with another ε.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from sordino.core.errors import PlanError, expected

Words = Callable[[int], NDArray[np.uint64]]
"""Gives n words of 64 independent fair bits."""


def poisson_sample(population: int, rate: float, words: Words) -> NDArray[np.intp]:
    """Draw one batch: each of `population` records independently with probability `rate`, exactly.

    A record's random bits are the binary expansion of a uniform in [0, 1), which is compared with
    that of `rate`, 64 digits at a time until the two differ. No float is rounded: the probability
    is the number that `rate` is, and the number that is accounted.

    The batch may be empty, and its size is as private as its contents.

    Args:
        population: Number of records, >= 0. Private: it never leaves the device.
        rate: Sampling rate q in (0, 1], public, the same for every client.
        words: Gives n independent words of 64 fair bits.

    Returns:
        Ascending indices into the records.

    Raises:
        PlanError: A bad population or rate, or words of the wrong number or type.
    """
    if isinstance(population, bool) or not isinstance(population, int) or population < 0:
        raise PlanError(expected("population", population, "a whole number >= 0"))
    if not (math.isfinite(rate) and 0 < rate <= 1):
        raise PlanError(expected("sampling_rate", rate, "in (0, 1]"))
    if rate == 1:
        return np.arange(population)
    chosen = np.zeros(population, np.bool_)
    undecided, rest = np.arange(population), Fraction(rate)
    while undecided.size and rest:  # where rate's digits end, an equal uniform isn't below it
        digit, rest = divmod(rest * 2**64, 1)
        drawn = np.asarray(words(len(undecided)))
        if drawn.shape != undecided.shape or drawn.dtype != np.uint64:
            raise PlanError("expected words of 64 bits, one a record: the source is broken")
        chosen[undecided[drawn < np.uint64(digit)]] = True
        undecided = undecided[drawn == np.uint64(digit)]
    return np.flatnonzero(chosen)

"""The grid that sums are put on before the noise, and how far one record moves a sum on it."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sordino.core.errors import PlanError, expected
from sordino.privacy.noise.rounded import LARGEST_SCALE
from sordino.privacy.noise.sources import NoiseSource

LARGEST_LOSS: Final = Fraction(1, 1024)
"""The most of the clip norm that the grid adds to the sensitivity: below 0.1 %."""

_LARGEST_SIZE: Final = 1 << 40
_LARGEST_EXPONENT: Final = 200  # of a clip norm: keeps every step an ordinary float
_LARGEST_INDEX: Final = 2.0**52  # below, float64 holds every whole number and its half
_RUN: Final = 1 << 18  # values that are noised together


def grid_step(clip_norm: float, size: int) -> float:
    """γ: the largest power of two with γ·√size at most `clip_norm`/1024.

    A function of public numbers alone. Being a power of two, it divides and multiplies floats
    without rounding.

    Args:
        clip_norm: C, the most that one record moves the sum.
        size: d, how many values a sum has.

    Raises:
        PlanError: A value is out of range.

    >>> grid_step(1.0, 2_442_240) == 2.0**-21
    True
    """
    if type(size) is not int or not 1 <= size <= _LARGEST_SIZE:
        raise PlanError(expected("size", size, f"a whole number in 1..{_LARGEST_SIZE}"))
    if not 2.0**-_LARGEST_EXPONENT <= clip_norm <= 2.0**_LARGEST_EXPONENT:
        raise PlanError(expected("clip_norm", clip_norm, "in [2^-200, 2^200]"))
    most = (Fraction(clip_norm) * LARGEST_LOSS) ** 2 / size  # γ² may be at most this
    step = Fraction(2) ** (math.frexp(clip_norm)[1] - 10)
    while step**2 > most:
        step /= 2
    return float(step)


def rounded_sensitivity(
    clip_norm: float, step: float, size: int, *, summation_error: float = 0.0
) -> float:
    """Δ = C + γ√d + e, rounded up: how far one record moves a sum that is put on the grid, in L2.

    Rounding moves each coordinate of each of two neighbouring sums by at most γ/2, so their
    distance grows by at most γ√d. If the records are put on the grid one by one and summed there
    exactly, one record moves the sum by C + γ√d/2, and the other half is room for the rounding of
    its own gradient. Relation: add or remove one record.

    Args:
        clip_norm: C, the most that one record moves the sum before it is on the grid.
        step: γ.
        size: d.
        summation_error: e, by how much two neighbouring sums computed in floating point may differ
            beyond the exact ones, where records are not put on the grid one by one.

    Raises:
        PlanError: A value isn't finite, or is negative.

    >>> rounded_sensitivity(1.0, 2.0**-21, 2_442_240)
    1.0007451852689866
    """
    for name, value in (("clip_norm", clip_norm), ("step", step), ("error", summation_error)):
        if not (math.isfinite(value) and value >= 0):
            raise PlanError(expected(name, value, "finite and >= 0"))
    # √d rounded up to a multiple of 2^-40.
    root = Fraction(math.isqrt((size << 80) - 1) + 1, 1 << 40)
    return _up(Fraction(clip_norm) + Fraction(step) * root + Fraction(summation_error))


def noise_scale(noise_multiplier: float, sensitivity: float, step: float) -> float:
    """The noise's standard deviation in steps, rounded up: at least σ·Δ/γ.

    Raises:
        PlanError: Out of range.
    """
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise PlanError(expected("noise_multiplier", noise_multiplier, "finite and > 0"))
    exact = Fraction(noise_multiplier) * Fraction(sensitivity) / Fraction(step)
    if exact > LARGEST_SCALE:
        raise PlanError(
            expected("noise_multiplier", noise_multiplier, "such that the grid can hold the noise")
        )
    return _up(exact)


def release_on_grid(
    total: ArrayLike, *, step: float, scale: float, source: NoiseSource
) -> NDArray[np.float64]:
    """Put a sum on the grid and add a rounded Gaussian of `scale` steps: γ·(round(x/γ) + K).

    round(x/γ) is a whole number, so this equals γ·round(round(x/γ) + scale·Z): the continuous
    Gaussian mechanism on the sum's place on the grid, rounded afterwards. Nothing else of `total`
    is in the result; the digits of a float can't betray it.

    Args:
        total: The clipped sum, one dimension, float32 or float64, finite.
        step: γ, a power of two.
        scale: From `noise_scale`.
        source: Where the draws come from; independent for each value and each call.

    Returns:
        The noised sum, float64, every value a multiple of γ.

    Raises:
        PlanError: The sum isn't such an array, or doesn't fit on the grid. Nothing was drawn.
    """
    index = np.array(check_sum(total), dtype=np.float64)
    np.divide(index, step, out=index)
    np.rint(index, out=index)
    if not (np.abs(index) < _LARGEST_INDEX).all():
        raise PlanError("the clipped sum is too large for the grid: nothing was released")
    for start in range(0, len(index), _RUN):  # so that the draws take no memory beside the sum
        part = index[start : start + _RUN]
        whole = part.astype(np.int64)
        whole += source.rounded_gaussian(len(whole), scale)
        # Beyond 2^53 steps the conversion rounds a number that is private already.
        np.multiply(whole, step, out=part, dtype=np.float64)
    return index


def check_sum(total: ArrayLike) -> NDArray[np.floating]:
    """The clipped sum as a finite float array of one dimension.

    Raises:
        PlanError: It isn't one.
    """
    given = np.asarray(total)
    if given.ndim != 1 or not given.size or given.dtype not in (np.float32, np.float64):
        raise PlanError(
            expected("the clipped sum", f"{given.dtype}{given.shape}", "to be a row of floats")
        )
    if not np.isfinite(given).all():
        raise PlanError("the clipped sum isn't finite: nothing was released")
    return given


def _up(value: Fraction) -> float:
    """The smallest float >= value."""
    near = float(value)
    return near if Fraction(near) >= value else math.nextafter(near, math.inf)

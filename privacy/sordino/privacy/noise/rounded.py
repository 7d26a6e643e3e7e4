"""Many rounded Gaussians at once: float64 where its error can't matter, exact where it could.

Every draw owns 64 random bits, of which the lowest is the sign and the others begin the binary
expansion of a uniform V in (0, 1/2). The draw is the sign times round(scale·Q⁻¹(V)), see `exact`.
Here Q⁻¹ comes from `table`, together with a bound on its error; a draw that lies nearer to a
rounding boundary than that bound is decided by `exact` from the same bits. The result is thus a
function of the bits that doesn't depend on float64, nor on whether a draw was recomputed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from sordino.core.errors import PlanError, expected
from sordino.privacy.noise.exact import exact_magnitude
from sordino.privacy.noise.table import CELL_BITS, OCTAVES, UNIFORM_BITS, Table, table

LARGEST_SCALE: Final = 2.0**56  # |draw| < 100·2^56 < 2^63

_BLOCK: Final = 1 << 14  # draws at once: the buffers stay in a core's cache
_MANTISSA: Final = 52
_BIAS: Final = 1023
_CELL_SHIFT: Final = _MANTISSA - CELL_BITS
# The float v in [2^33, 2^53) of the table's first cell has this prefix; row 0 is for all below it.
_FIRST: Final = (_BIAS + UNIFORM_BITS - 1 - OCTAVES) << CELL_BITS
_ONE: Final = np.uint64(_BIAS << _MANTISSA)
_MIDDLE: Final = 1 + 2.0 ** -(CELL_BITS + 1)
_ALWAYS: Final = -1.0

Bits = Callable[[NDArray[np.uint64]], None]
"""Fills an array with independent uniform 64-bit words."""


@final
class RoundedGaussian:
    """Draws round(scale·Z), Z standard Gaussian, for one `scale`. Not for several threads."""

    def __init__(self, scale: float, *, distrust: float = 1.0) -> None:
        """Prepare for a scale.

        Args:
            scale: Standard deviation in steps of the grid, in (0, 2^56].
            distrust: Factor >= 1 on the error bound. More draws are then recomputed; none changes.

        Raises:
            PlanError: The scale is out of range.
        """
        if not (math.isfinite(scale) and 0 < scale <= LARGEST_SCALE):
            raise PlanError(expected("the noise's scale", scale, "in (0, 2^56] steps of the grid"))
        if not distrust >= 1:
            raise PlanError(
                expected("distrust", distrust, ">= 1: the bound is what makes it exact")
            )
        self._scale = float(scale)
        self._table: Table = table()
        # 2^-30 and 2^-50 are for the rounding of this line, and of `_nearest`'s comparison.
        slack = self._scale * distrust * self._table.errors * (1 + 2.0**-30) + 2.0**-50
        self._limits = np.where(slack < 0.5, 0.5 - slack, _ALWAYS)
        self._limits[0] = _ALWAYS
        self._floats = np.empty((3, _BLOCK))
        self._cells = np.empty(_BLOCK, np.intp)
        self._words = np.empty(_BLOCK, np.uint64)
        self.recomputed = 0

    def draw(self, size: int, fill: Bits, fill_further: Bits) -> NDArray[np.int64]:
        """`size` independent draws.

        Args:
            size: How many, >= 0.
            fill: The stream that gives each draw its 64 bits.
            fill_further: Another, independent one, for the rare draw that needs more.
        """
        drawn = np.empty(size, np.int64)
        for start in range(0, size, _BLOCK):
            self._block(drawn[start : start + _BLOCK], fill, fill_further)
        for buffer in (self._words, self._cells, self._floats):
            buffer.fill(0)  # what is left of the bits would give the noise away
        return drawn

    def _block(self, out: NDArray[np.int64], fill: Bits, fill_further: Bits) -> None:
        words = self._words[: len(out)]
        fill(words)
        nearest, doubtful = self._nearest(words)
        np.copyto(out, nearest, casting="unsafe")
        for at in np.flatnonzero(doubtful):
            out[at] = exact_magnitude(int(words[at]), self._scale, lambda: _one_word(fill_further))
            self.recomputed += 1
        np.negative(out, out=out, where=(words & np.uint64(1)).astype(np.bool_))

    def _nearest(self, words: NDArray[np.uint64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Rounded magnitudes, and which of them the error bound leaves in doubt."""
        n = len(words)
        value, x, spare = self._floats[:, :n]
        cells = self._cells[:n]
        # The middle of V's known interval is v·2^-54 with v odd and below 2^53: exact in a float.
        prefix = spare.view(np.uint64)
        np.right_shift(words, np.uint64(11), out=prefix)
        np.bitwise_or(prefix, np.uint64(1), out=prefix)
        np.copyto(value, prefix.view(np.int64), casting="unsafe")
        pattern = value.view(np.int64)
        np.right_shift(pattern, _CELL_SHIFT, out=cells)
        np.subtract(cells, _FIRST - 1, out=cells)
        low = x.view(np.uint64)
        np.bitwise_and(value.view(np.uint64), np.uint64((1 << _CELL_SHIFT) - 1), out=low)
        np.bitwise_or(low, _ONE, out=low)
        np.subtract(x, _MIDDLE, out=x)  # exact
        self._polynomial(cells, x, value, spare)
        np.multiply(value, self._scale, out=value)
        np.rint(value, out=x)
        np.subtract(value, x, out=value)  # exact below 2^52, where alone it can matter
        np.abs(value, out=value)
        np.take(self._limits, cells, out=spare, mode="clip")
        return x, ~(value <= spare)  # a NaN would be doubtful

    def _polynomial(
        self,
        cells: NDArray[np.intp],
        x: NDArray[np.float64],
        value: NDArray[np.float64],
        spare: NDArray[np.float64],
    ) -> None:
        """Horner's rule. A cell below the table clips to row 0, which is always in doubt."""
        *lower, leading = self._table.coefficients
        np.take(leading, cells, out=value, mode="clip")
        for coefficient in reversed(lower):
            np.multiply(value, x, out=value)
            np.take(coefficient, cells, out=spare, mode="clip")
            np.add(value, spare, out=value)


def _one_word(fill: Bits) -> int:
    word = np.empty(1, np.uint64)
    fill(word)
    return int(word[0])

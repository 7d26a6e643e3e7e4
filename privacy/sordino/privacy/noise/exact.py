"""One rounded Gaussian decided with as many random bits as it takes: the definition of the draw.

A draw is a sign and a magnitude k = round(scale·|Z|), where |Z| = Q⁻¹(V) for a uniform V in
(0, 1/2) whose binary digits are read one after the other. k is found by comparing V with the exact
tail at the two edges of k's cell; where the digits known so far don't decide, more are drawn and
the tail is computed further. So P(k) is the Gaussian's mass of the cell itself, not near it.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from statistics import NormalDist
from typing import Final

from sordino.privacy.noise.tail import upper_tail

WORD: Final = 64
_FARTHEST: Final = 100  # standard deviations: the draw is cut there, at probability 2^-7200

Words = Callable[[], int]
"""Gives the next 64 independent uniform bits."""


def exact_magnitude(word: int, scale: float, more: Words) -> int:
    """round(scale·|Z|) from the upper 63 bits of `word`, and further bits where they are needed.

    Args:
        word: 64 bits; the lowest, which is the sign, isn't looked at.
        scale: Standard deviation in steps of the grid, a float taken as the number it is.
        more: Extends V's binary expansion.
    """
    uniform = _Uniform(word >> 1, WORD, more)
    step = 1 / Fraction(scale)

    def beyond(k: int) -> bool:
        """Whether the magnitude is above k: |Z| > (k + 1/2)·step, so V < Q of it."""
        return uniform.is_below_tail((k + Fraction(1, 2)) * step)

    return _first_not(beyond, round(scale * uniform.about_quantile()))


class _Uniform:
    """V in [digits, digits + 1]·2^-bits; digits are only ever added."""

    def __init__(self, digits: int, bits: int, more: Words) -> None:
        self._digits, self._bits, self._more = digits, bits, more

    def about_quantile(self) -> float:
        """Roughly |Z|, as a place to start from: no result depends on it."""
        while not self._digits:
            self._extend()
        near = Fraction(2 * self._digits + 1, 2 << self._bits)
        return -NormalDist().inv_cdf(max(float(near), 1e-300))

    def is_below_tail(self, x: Fraction) -> bool:
        while x <= _FARTHEST:
            # Two decimal digits beyond the known binary ones: the tail is never the blunter side.
            tail = upper_tail(x, self._bits * 31 // 100 + 2)
            low = Fraction(tail.above) - Fraction(tail.error)
            high = low + 2 * Fraction(tail.error)
            if Fraction(self._digits + 1, 1 << self._bits) <= low:
                return True
            if Fraction(self._digits, 1 << self._bits) >= high:
                return False
            self._extend()
        return False

    def _extend(self) -> None:
        self._digits = self._digits << WORD | self._more()
        self._bits += WORD


def _first_not(beyond: Callable[[int], bool], guess: int) -> int:
    """The smallest k >= 0 that is not `beyond`: gallop away from the guess, then halve."""
    reach = 1
    if beyond(guess):
        low, high = guess, guess + 1
        while beyond(high):
            low, reach = high, 2 * reach
            high += reach
    else:
        low, high = guess - 1, guess
        while low >= 0 and not beyond(low):
            high, reach = low, 2 * reach
            low = max(low - reach, -1)
        low = max(low, -1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if beyond(middle) else (low, middle)
    return high

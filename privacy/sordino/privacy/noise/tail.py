"""The Gaussian's upper tail to any precision, with an error that is proved, not estimated.

Q(x) = P(Z > x) = 1/2 - φ(x)·S(x), with S(x) = Σ x^(2k+1) / (1·3·5···(2k+1)). Every term of S is
positive, so nothing cancels inside it, and the tail of the series is bounded by a geometric one.
The arithmetic is decimal's, whose four operations, square root and exponential are correctly
rounded: each has a relative error of at most 10^(1-p) at p digits.
"""

from __future__ import annotations

import decimal
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Final, NamedTuple

_GUARD: Final = 12  # digits that rounding errors may eat
_HALF: Final = Decimal("0.5")


class Tail(NamedTuple):
    """Q and φ at a point; Q is off by at most `error`, φ by a factor within 1 ± 2·`error`."""

    above: Decimal
    density: Decimal
    error: Decimal


def context(digits: int) -> decimal.Context:
    """Decimal arithmetic at `digits`, to nearest, that never turns an overflow into a number."""
    return decimal.Context(
        prec=digits,
        rounding=decimal.ROUND_HALF_EVEN,
        Emin=decimal.MIN_EMIN,
        Emax=decimal.MAX_EMAX,
        traps=[decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow],
    )


def upper_tail(x: Fraction, digits: int) -> Tail:
    """Q(x) and φ(x) for 0 <= x <= 100, Q to within 10^-digits.

    The error, with u = 10^(1-p), p the working precision and n terms: x and x² are off by 2u and
    term k by (4k+4)u, so S is by (4n+6)u, of which the cut series is one u; the exponent x²/2 is at
    most 5000, which makes e^(-x²/2) off by 15001u, and φ with √(2π) by 15010u. All relative, and
    φS <= 1/2. For n < 20,000 the sum is below 10^5·u, and p = digits + 12 leaves a million to one.
    """
    if not 0 <= x <= 100:
        raise ValueError(f"x out of range: {float(x)}")
    with decimal.localcontext(context(digits + _GUARD)):
        point = Decimal(x.numerator) / Decimal(x.denominator)
        square = point * point
        enough = Decimal(10) ** -(digits + _GUARD)
        term = total = point
        odd = 1
        # Stop where the terms at least halve and what is left is below one unit of the sum.
        while 2 * square > odd + 2 or term > enough * total:
            odd += 2
            term = term * square / odd
            total += term
        density = (-square / 2).exp() / _root_of_two_pi(digits + _GUARD)
        return Tail(_HALF - density * total, density, Decimal(10) ** -digits)


@cache
def _root_of_two_pi(digits: int) -> Decimal:
    """√(2π) to a relative error of 10^(2-digits), with π by Machin's formula in whole numbers."""
    one = int("1" + "0" * (digits + 10))

    def arctan_of_inverse(n: int) -> int:
        total = power = one // n
        k, sign = 1, 1
        while power:
            power //= n * n
            k, sign = k + 2, -sign
            total += sign * (power // k)
        return total

    pi = 4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239))
    with decimal.localcontext(context(digits)):
        return (Decimal(2 * pi) / one).sqrt()

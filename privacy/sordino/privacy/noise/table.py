"""Q⁻¹, the inverse of the Gaussian's upper tail, as polynomials with proved error bounds.

u in [2^-21, 1/2) is cut like a floating-point number: 20 octaves, 32 equal cells in each. Within a
cell Q⁻¹ is a polynomial of degree 6 in x, the distance of u's mantissa from the cell's middle. Its
float64 coefficients and a bound on all that can be wrong with the evaluated value are made here,
once a process, from decimal arithmetic; docs/noise.md derives the bound.
"""

from __future__ import annotations

import decimal
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sordino.privacy.noise.tail import context, upper_tail

OCTAVES: Final = 20
CELL_BITS: Final = 5
DEGREE: Final = 6
UNIFORM_BITS: Final = 54  # u = v·2^-54 for an odd v: the middle of an interval of width 2^-53

_TAYLOR: Final = 12
_DIGITS: Final = 50
_HALF_WIDTH: Final = 2.0 ** -(CELL_BITS + 1)  # of a cell, in units of the mantissa
# Twice the unit roundoff of round-to-nearest: the bounds hold in every rounding mode.
_ULP: Final = 2.0**-52
_MARGIN: Final = 1.01  # for the rounding of the bounds themselves: a few dozen operations each


@dataclass(frozen=True)
class Table:
    """Row 0 is for every u below the table and is never to be trusted; then cells, u ascending.

    Attributes:
        coefficients: One contiguous array a power of x, the constant first.
        errors: For each cell, the most that the polynomial, evaluated by Horner's rule in float64
            at the u of an interval and then multiplied once, differs from Q⁻¹ of any point of the
            interval, relative to the multiplier.
    """

    coefficients: tuple[NDArray[np.float64], ...]
    errors: NDArray[np.float64]


@cache
def table() -> Table:
    """The table, made at the first use of a process (a fifth of a second)."""
    rows, errors = [[0.0] * (DEGREE + 1)], [1.0]
    with decimal.localcontext(context(_DIGITS)):
        for octave in range(OCTAVES):
            for cell in range(1 << CELL_BITS):
                coefficients, error = _cell(octave - OCTAVES - 1, cell)
                rows.append(coefficients)
                errors.append(error)
    columns = np.ascontiguousarray(np.array(rows).T)
    columns.flags.writeable = False
    bounds = np.array(errors)
    bounds.flags.writeable = False
    return Table(tuple(columns), bounds)


def _cell(exponent: int, cell: int) -> tuple[list[float], float]:
    """Coefficients and error bound on u = 2^exponent·(1 + (cell + 1/2)/32 + x), |x| <= 1/64."""
    unit = Decimal(2) ** exponent
    half = unit * Decimal(_HALF_WIDTH)
    middle = unit * (1 + Decimal(2 * cell + 1) / (2 << CELL_BITS))
    near = NormalDist().inv_cdf(float(middle))  # exact in float: middle has few binary digits
    point = Decimal(-near)
    tail = upper_tail(Fraction(-near), _DIGITS - 12)
    far = point + Decimal("1.06") * half / tail.density
    _check_far(point, far, tail.density, half)
    off = middle - tail.above  # 1e-16 of u: what float's inverse lacks
    steepest = derivative_sizes(far, _density(far))
    # In s = x/half-width, in [-1, 1]; the middle is moved from Q(point) to u's own.
    taylor = [
        size * (-1) ** k for k, size in enumerate(_taylor_sizes(point, tail.density, half, _TAYLOR))
    ]
    shifted = _shift([point, *taylor[1:]], off / half)
    cut = float(steepest[_TAYLOR + 1] * _scaled(half, _TAYLOR + 1)) * 1.001
    lowered, economy = economize(shifted, DEGREE)
    coefficients = [float(c / Decimal(_HALF_WIDTH) ** k) for k, c in enumerate(lowered)]
    width = 2.0**-UNIFORM_BITS * float(steepest[1])
    rounding = _rounding([abs(float(c)) for c in lowered])
    return coefficients, _MARGIN * (cut + economy + width + rounding + 2.0**-90)


def _density(z: Decimal) -> Decimal:
    return upper_tail(Fraction(0), _DIGITS - 12).density * (-z * z / 2).exp()


def _check_far(point: Decimal, far: Decimal, density: Decimal, half: Decimal) -> None:
    """Q falls by at least φ(far)·(far - point) between the two: is that more than half a cell?

    Then Q⁻¹ stays below `far` on the whole cell, with room for the 1e-16 that `point` is off.
    """
    fall = density * ((point - far) * (point + far) / 2).exp() * (far - point)
    if not fall > half * Decimal("1.001"):
        raise ArithmeticError("the table's error bound doesn't hold")


@cache
def _polynomials() -> list[list[int]]:
    """P_n with (Q⁻¹)^(n) = (-1)^n·P_n(z)/φ(z)^n at z = Q⁻¹(u): P_1 = 1, P_(n+1) = P_n' + n·z·P_n.

    All coefficients are >= 0, so that each derivative's size grows with z.
    """
    made = [[0], [1]]
    for n in range(1, _TAYLOR + 1):
        derivative = [k * c for k, c in enumerate(made[n])][1:]
        raised = [0, *(n * c for c in made[n])]
        made.append(
            [(derivative[k] if k < len(derivative) else 0) + raised[k] for k in range(len(raised))]
        )
    return made


def derivative_sizes(z: Decimal, density: Decimal) -> list[Decimal]:
    """|(Q⁻¹)^(n)| at z, for n from 0 (left as 0) to one above Taylor's degree."""
    sizes, power = [], Decimal(1)
    for polynomial in _polynomials():
        value = Decimal(0)
        for coefficient in reversed(polynomial):
            value = value * z + coefficient
        sizes.append(value / power)
        power *= density
    return sizes


def _scaled(half: Decimal, n: int) -> Decimal:
    """half^n/n!."""
    value = Decimal(1)
    for k in range(1, n + 1):
        value = value * half / k
    return value


def _taylor_sizes(z: Decimal, density: Decimal, half: Decimal, degree: int) -> list[Decimal]:
    sizes = derivative_sizes(z, density)
    return [sizes[k] * _scaled(half, k) for k in range(degree + 1)]


def _shift(polynomial: Sequence[Decimal], by: Decimal) -> list[Decimal]:
    """Coefficients of p(s + by)."""
    shifted = list(polynomial)
    for start in range(len(shifted) - 1):
        for k in range(len(shifted) - 2, start - 1, -1):
            shifted[k] += by * shifted[k + 1]
    return shifted


def economize(polynomial: Sequence[Decimal], degree: int) -> tuple[list[Decimal], float]:
    """Lower the degree on [-1, 1] by Chebyshev polynomials; gives the most that it changes."""
    lowered, change = list(polynomial), Decimal(0)
    for k in range(len(lowered) - 1, degree, -1):
        lead = lowered[k] / 2 ** (k - 1)
        change += abs(lead)  # |T_k| <= 1
        for i, c in enumerate(_chebyshev(k)):
            lowered[i] -= lead * c
    return lowered[: degree + 1], float(change)


@cache
def _chebyshev(k: int) -> list[int]:
    before, this = [1], [0, 1]
    for _ in range(k - 1):
        doubled = [0, *(2 * c for c in this)]
        for i, c in enumerate(before):
            doubled[i] -= c
        before, this = this, doubled
    return this


def _rounding(sizes: Sequence[float]) -> float:
    """What rounding the coefficients, Horner's rule and one product more can change in float64.

    With B_k the sum of |c_i| for i >= k, Horner's k-th value is at most B_k in size; its product
    with x is off by one ulp of B_(k+1), its sum by one ulp of B_k.
    """
    error, above = 0.0, 0.0
    for size in reversed(sizes):
        error += _ULP * (above + above + size) * _MARGIN
        above += size
    coefficients = _ULP * above
    return (error + coefficients + _ULP * above) * _MARGIN

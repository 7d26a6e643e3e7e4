"""What every measure asks of its inputs, refused in the same words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sized
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sordino.core.errors import AuditError, expected

LEVEL: Final = 0.05
"""The chance of a false alarm that a whole family of looks may have."""

MOST: Final = 10**12
"""Of anything that is counted: no audit has more, and a float holds it exactly."""

Floats = NDArray[np.float64]


def column(field: str, values: ArrayLike, *, least: int = 1) -> Floats:
    """Values as one finite column.

    Raises:
        AuditError: Not one-dimensional, fewer than `least`, or not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size < least:
        raise AuditError(expected(field, array.shape, f"of shape (n,), n >= {least}"))
    if not np.isfinite(array).all():
        where = int(np.flatnonzero(~np.isfinite(array))[0])
        required = "finite: leave out what the model couldn't score"
        raise AuditError(expected(f"{field}[{where}]", float(array[where]), required))
    return array


def same_length(**columns: Sized) -> None:
    """Refuse columns of which one is longer than another.

    Raises:
        AuditError: Naming them.
    """
    sizes = {name: len(values) for name, values in columns.items()}
    if len(set(sizes.values())) > 1:
        raise AuditError(expected(" and ".join(sizes), tuple(sizes.values()), "of one length"))


def inside(field: str, value: float, low: float, high: float, *, closed: bool = False) -> None:
    """Refuse a number that isn't in (low, high), or in [low, high] if `closed`.

    Raises:
        AuditError: Naming it.
    """
    number = isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)
    if not (number and (low <= value <= high if closed else low < value < high)):
        bounds = f"[{low:g}, {high:g}]" if closed else f"({low:g}, {high:g})"
        raise AuditError(expected(field, value, f"in {bounds}"))


def whole(field: str, value: int, least: int, most: int = MOST) -> None:
    """Refuse anything but a whole number from `least` to `most`.

    Raises:
        AuditError: Naming it.
    """
    if type(value) is not int or not least <= value <= most:
        bounds = f">= {least}" if most == MOST else f"in {least}..{most}"
        raise AuditError(expected(field, value, f"a whole number {bounds}"))


def one_of(field: str, value: str, allowed: Iterable[str]) -> None:
    """Refuse a word that isn't among the known ones.

    Raises:
        AuditError: Naming it and them.
    """
    known = tuple(allowed)
    if value not in known:
        raise AuditError(expected(field, value, f"one of {', '.join(known)}"))

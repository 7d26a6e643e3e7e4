"""What all plans share: one encoding, and the checks of their fields."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import asdict
from typing import Any, Final

from sordino.core import canonical
from sordino.core.errors import PlanError, expected
from sordino.privacy import noise

VERSION: Final = 2  # 1 drew its noise in floating point, off any grid
MOST_COUNT: Final = 1_000_000  # rounds, and steps of a round
_RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


def encode(plan: Any) -> bytes:
    """The only encoding of a plan; what a plan doesn't have (None) isn't in it."""
    values = {name: value for name, value in asdict(plan).items() if value is not None}
    return canonical.encode({"kind": plan.kind, "version": VERSION, **values})


def check_schedule(plan: Any) -> None:
    """Refuse a run's name or a number of rounds or steps that can't be."""
    if not (isinstance(plan.run_id, str) and _RUN_ID.fullmatch(plan.run_id)):
        raise PlanError(
            expected("run_id", plan.run_id, "1-128 letters, digits or ._:- after a letter or digit")
        )
    for name in ("rounds", "steps_per_round"):
        count(plan, name)


def positive(plan: Any, name: str, *, below: float = math.inf, at_most: float = math.inf) -> None:
    """Refuse a number that isn't finite, > 0 and within its bounds, and make it a float."""
    value = getattr(plan, name)
    number = isinstance(value, float) or type(value) is int
    if not (number and 0 < value < below and value <= min(at_most, sys.float_info.max)):
        bound = "in (0, 1)" if below == 1 else "finite and > 0"
        if math.isfinite(at_most):
            bound = f"in (0, {at_most:g}]"
        raise PlanError(expected(name, value, bound))
    object.__setattr__(plan, name, float(value))  # 1 and 1.0 are one plan with one encoding


def finite(plan: Any, name: str) -> None:
    """Refuse anything but a finite number, and make it a float."""
    value = getattr(plan, name)
    number = isinstance(value, float) or type(value) is int
    if not (number and abs(value) <= sys.float_info.max):
        raise PlanError(expected(name, value, "finite"))
    object.__setattr__(plan, name, float(value))


def fixed(plan: Any, **values: str) -> None:
    """Refuse any other value of a field that has only one."""
    for name, required in values.items():
        if getattr(plan, name) != required:
            raise PlanError(expected(name, getattr(plan, name), f"to be {required}"))


def count(plan: Any, name: str, most: int = MOST_COUNT) -> None:
    """Refuse anything but a whole number from 1 on."""
    value = getattr(plan, name)
    if type(value) is not int or not 1 <= value <= most:
        raise PlanError(expected(name, value, f"a whole number in 1..{most}"))


def sensitivity(clip_norm: float, size: int) -> float:
    """Δ: how far one unit moves a sum of `size` values that is put on its grid, in L2."""
    return noise.rounded_sensitivity(clip_norm, noise.grid_step(clip_norm, size), size)


def noise_scale(noise_multiplier: float, clip_norm: float, size: int) -> float:
    """The noise's standard deviation in steps of the grid, at least noise_multiplier·Δ/γ."""
    step = noise.grid_step(clip_norm, size)
    return noise.noise_scale(noise_multiplier, sensitivity(clip_norm, size), step)

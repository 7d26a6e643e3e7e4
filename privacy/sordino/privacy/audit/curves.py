"""Trade-off curves, as the audit needs them: how much "wrong" so much "right" must cost.

A canary's two worlds, in and out, give any event masses P and Q. A mechanism's claim is a bound on
P given Q: P ≤ δ(ε) + e^ε·Q and the same with the two exchanged, for every point (ε, δ(ε)) of its
curve, in both directions. The inverse is the least Q for a given P.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from scipy.special import ndtr, ndtri

from sordino.core.errors import AuditError, expected
from sordino.privacy.accounting import Event, delta_curve
from sordino.privacy.audit.checks import Floats

Inverse: TypeAlias = Callable[[Floats], Floats]
_POINTS = 201


@dataclass(frozen=True, kw_only=True)
class PointsCurve:
    """What points (ε, δ) promise together; between them nothing is assumed.

    Attributes:
        points: (ε, δ), each an upper bound in both directions. Fewer points promise less, so a
            coarse curve is rejected less often, never more.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        array = np.asarray(self.points, dtype=np.float64)
        if array.ndim != 2 or array.shape[1] != 2 or not len(array):
            raise AuditError(expected("points", array.shape, "(epsilon, delta), at least one"))
        sound = np.isfinite(array).all() and (array >= 0).all() and (array[:, 1] <= 1).all()
        if not sound:
            raise AuditError("expected every point to have finite epsilon >= 0 and delta in [0, 1]")

    def inverse(self, reached: Floats) -> Floats:
        """The least Q that the points allow beside P = `reached`."""
        epsilons, deltas = self._columns
        return np.asarray(_least(epsilons, deltas, reached).max(axis=0))

    @cached_property
    def _columns(self) -> tuple[Floats, Floats]:
        points = np.asarray(self.points)[:, :, np.newaxis]
        return points[:, 0], points[:, 1]


@dataclass(frozen=True, kw_only=True)
class GaussianCurve:
    """μ-GDP: no better told apart than N(0, 1) and N(μ, 1) (Dong, Roth, Su 2022)."""

    mu: float

    def inverse(self, reached: Floats) -> Floats:
        """Φ(Φ⁻¹(P) - μ)."""
        return gaussian(np.asarray(self.mu))(reached)


def claimed_curve(events: Sequence[Event], delta: float) -> PointsCurve | None:
    """The curve of what was charged, by pessimistic PLD: what an alarm is raised against.

    Args:
        events: One holder's events, of one unit.
        delta: The claim's. The curve reaches from ε = 0 to twice the ε at it.

    Returns:
        None if nothing finite is claimed.

    Raises:
        PlanError: δ is not in (0, 1), or the events are of both units.
    """
    points = delta_curve(events, delta, _POINTS)
    return PointsCurve(points=points) if points else None


def approximate(epsilons: Floats, delta: float) -> Inverse:
    """The inverse of (ε, δ) alone, one ε an element."""

    def inverse(reached: Floats) -> Floats:
        return _least(epsilons, np.asarray(delta), reached)

    return inverse


def gaussian(mus: Floats) -> Inverse:
    """The inverse of μ-GDP, one μ an element."""

    def inverse(reached: Floats) -> Floats:
        return np.asarray(ndtr(ndtri(np.clip(reached, 0.0, 1.0)) - mus))

    return inverse


def _least(epsilons: Floats, deltas: Floats, reached: Floats) -> Floats:
    scale = np.exp(np.minimum(epsilons, 700.0))
    straight = (reached - deltas) / scale
    turned = 1 - deltas - scale * (1 - reached)
    return np.maximum(0.0, np.maximum(straight, turned))

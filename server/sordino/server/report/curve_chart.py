"""The claim's δ(ε) curve and the Gaussian that dominates it, as a static drawing with its table."""

from __future__ import annotations

import math

import numpy as np

from sordino.core.stats import ceil_digits, round_up
from sordino.privacy.accounting import gaussian_delta
from sordino.privacy.claims import Claim
from sordino.server.report import formats, svg
from sordino.server.report.charts import Chart
from sordino.server.report.svg import Axis

_WIDTH, _HEIGHT = 440, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 428, 34, 190
_TITLE = "δ at every ε"


def curve_chart(claim: Claim) -> Chart | None:
    """δ against ε on a logarithmic scale, down to where the dominating Gaussian still dominates.

    Both lines are upper bounds: the loss's own curve, which the claim is one point of, and the
    smallest μ-GDP above it. None where the claim has no curve.
    """
    shown = [(e, d) for e, d in claim.delta_curve if d >= claim.mu_smallest_delta]
    if len(shown) < 2:
        return None
    curves = {"By PLD": shown}
    if claim.mu is not None:
        epsilons = np.array([e for e, _ in shown])
        deltas = gaussian_delta(claim.mu, epsilons)
        curves[f"Gaussian, μ = {claim.mu:g}"] = list(zip(epsilons, deltas, strict=True))
    point = f"ε ≤ {formats.epsilon(claim.epsilon)} at δ = {formats.power(claim.delta)}"
    return Chart(
        key="curve",
        title=_TITLE,
        svg=svg.figure(
            "curve",
            _TITLE,
            f"Upper bounds on δ, falling as ε grows: {' and '.join(curves)}. The claim: {point}.",
            (_WIDTH, _HEIGHT),
            *_drawing(curves, claim, point),
        ),
        columns=("ε", *(f"δ, {name}" for name in curves)),
        rows=tuple(
            (
                f"{round_up(epsilon, 3):.3f}",
                *(ceil_digits(curve[i][1]) for curve in curves.values()),
            )
            for i, (epsilon, _) in enumerate(shown)
        ),
    )


def _drawing(curves: dict[str, list[tuple[float, float]]], claim: Claim, point: str) -> list[str]:
    marks = svg.ticks(0.0, max(e for curve in curves.values() for e, _ in curve))
    across = Axis(0.0, marks[-1], _LEFT, _RIGHT)
    lowest = math.floor(math.log10(claim.mu_smallest_delta))
    up = Axis(lowest, 0, _BOTTOM, _TOP)
    body = []
    for power in range(lowest, 1, 2):
        y = up.place(power)
        body.append(svg.line(_LEFT, y, _RIGHT, y, "grid"))
        body.append(svg.text(formats.power(10.0**power), _LEFT - 8, y + 4, "tick", "end"))
    for mark, label in zip(marks, svg.tick_labels(marks), strict=True):
        body.append(svg.text(label, across.place(mark), _BOTTOM + 20, "tick", "middle"))
    body.append(svg.text("ε", _RIGHT, _HEIGHT - 8, "tick", "end"))
    body.append(svg.text("δ", 0, _TOP + 4, "tick"))
    # The claim's own curve last: it lies on top where the two touch.
    for kind, curve in reversed(list(zip(("main", "side"), curves.values(), strict=False))):
        places = [(across.place(e), up.place(math.log10(d))) for e, d in curve]
        body.append(svg.path(places, f"line {kind}"))
    for index, (kind, name) in enumerate(zip(("main", "side"), curves, strict=False)):
        body.append(svg.rect(_LEFT + 110 * index, 2, 11, 11, f"bar {kind}"))
        body.append(svg.text(name, _LEFT + 110 * index + 17, 12, "value small"))
    x, y = across.place(claim.epsilon), up.place(math.log10(claim.delta))
    label = svg.text(point, x - 9, y + 14, "value small", "end")  # there, no line can be
    return [*body, svg.dot(x, y, "point", 5), label]

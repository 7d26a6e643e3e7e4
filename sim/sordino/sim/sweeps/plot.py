"""A static drawing of figures against a quantity, with whiskers over seeds and level lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sordino.core.stats import round_down, round_up
from sordino.server.report import formats, svg
from sordino.server.report.charts import Chart
from sordino.server.report.svg import Axis
from sordino.sim.sweeps.outcome import SeedFigure

MOST_CURVES = 4  # in one drawing
_WIDTH = 440
_LEFT, _RIGHT, _TALL = 48, 430, 168
_ROW = 18  # of the legend
_LONGEST_NAME = 58
_SPARED = 34  # between two marks below the axis
_LOGARITHMIC = 3.0  # from this ratio on


@dataclass(frozen=True, kw_only=True)
class Point:
    """A figure at a place; `written` is the place in words, for the axis and the table."""

    x: float
    written: str
    figure: SeedFigure


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points that belong together; joined by a line unless they are a mere cloud."""

    name: str
    points: tuple[Point, ...]
    joined: bool = True


@dataclass(frozen=True, kw_only=True)
class Level:
    """A figure that doesn't depend on the quantity: a line across the drawing.

    `of` is the number, from 1, of the curve that it belongs to; 0: it belongs to all of them.
    """

    name: str
    figure: SeedFigure
    dotted: bool = False
    of: int = 0

    @property
    def kind(self) -> str:
        """How the line is drawn."""
        return f"level{' dotted' * self.dotted}{f' c{self.of}' * (self.of > 0)}"


@dataclass(frozen=True)
class _Space:
    """Where values lie in the drawing."""

    across: Axis
    logarithmic: bool
    up: Axis

    def x(self, value: float) -> float:
        return self.across.place(math.log10(value) if self.logarithmic else value)

    def y(self, value: float) -> float:
        """A height; what lies beyond the drawing is at its edge."""
        return self.up.place(min(max(value, self.up.low), self.up.high))


def plot(
    key: str,
    title: str,
    quantity: str,
    figure: str,
    curves: Sequence[Curve],
    levels: Sequence[Level] = (),
) -> Chart | None:
    """Draw curves over a quantity.

    Args:
        key: The drawing's name in the page.
        title: Above it.
        quantity: What is on the axis below.
        figure: What is on the axis at the left.
        curves: At most `MOST_CURVES`.
        levels: Lines across.

    Returns:
        The drawing and its numbers; None where no curve has a point.
    """
    points = [point for curve in curves for point in curve.points]
    if not points:
        return None
    top = 12 + _ROW * (len(curves) + len(levels))
    space = _space(points, levels, top)
    body = [*_legend(curves, levels), *_axes(space, points, quantity, figure, top)]
    for level in levels:
        y = space.y(level.figure.mean)
        body.append(svg.line(_LEFT, y, _RIGHT, y, level.kind))
    for index, curve in enumerate(curves, 1):
        body += _curve(space, curve, f"c{index}")
    said = "; ".join(f"{c.name}: {_spoken(c)}" for c in curves if c.points)
    across = "".join(f" {one.name}: {formats.signed(one.figure.mean)}." for one in levels)
    description = f"{figure} against {quantity}. {said}.{across}"
    return Chart(
        key=key,
        title=title,
        svg=svg.figure(key, title, description, (_WIDTH, top + _TALL + 40), *body),
        columns=("", quantity, "Mean", "Interval", "Seeds"),
        rows=(
            *((c.name, p.written, *_cells(p.figure)) for c in curves for p in c.points),
            *((one.name, "", *_cells(one.figure)) for one in levels),
        ),
        simulation_only=True,
    )


def written_interval(figure: SeedFigure) -> str:
    """An interval over seeds rounded outwards; one seed has none."""
    if figure.low is None or figure.high is None:
        return "one seed"
    low, high = round_down(figure.low, 3), round_up(figure.high, 3)
    return f"{formats.signed(low)} to {formats.signed(high)}"


def _space(points: Sequence[Point], levels: Sequence[Level], top: float) -> _Space:
    figures = [*(p.figure for p in points), *(one.figure for one in levels)]
    values = [0.0, *(v for one in figures for v in (*one.values, one.mean))]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    ends = [e for one in figures for e in (one.low, one.high) if e is not None]
    # Two seeds can make an interval so wide that nothing else would be seen: it runs off the edge.
    low = max(min([low, *ends]), low - 0.5 * span)
    high = min(max([high, *ends]), high + 0.5 * span)
    xs = [point.x for point in points]
    logarithmic = min(xs) > 0 and max(xs) / min(xs) >= _LOGARITHMIC
    left, right = min(xs), max(xs)
    if logarithmic:
        left, right = math.log10(left), math.log10(right)
    room = (right - left) * 0.08 or abs(right) * 0.5 or 1.0
    return _Space(
        across=Axis(left - room, right + room, _LEFT, _RIGHT),
        logarithmic=logarithmic,
        up=Axis(low - 0.04 * span, high + 0.04 * span, top + _TALL, top),
    )


def _legend(curves: Sequence[Curve], levels: Sequence[Level]) -> list[str]:
    kinds = [f"curve c{i}" for i in range(1, len(curves) + 1)]
    kinds += [one.kind for one in levels]
    names = [curve.name for curve in curves]
    names += [f"{one.name} {formats.signed(one.figure.mean)}" for one in levels]
    body = []
    for row, (kind, name) in enumerate(zip(kinds, names, strict=True)):
        y = 8 + _ROW * row
        short = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
        body += [svg.line(0, y, 22, y, kind), svg.text(short, 30, y + 4, "value small")]
    return body


def _axes(
    space: _Space, points: Sequence[Point], quantity: str, figure: str, top: float
) -> list[str]:
    low, high = space.up.low, space.up.high
    marks = [mark for mark in svg.ticks(low, high) if low <= mark <= high]
    body = []
    for mark, label in zip(marks, svg.tick_labels(marks), strict=True):
        y = space.y(mark)
        body.append(svg.line(_LEFT, y, _RIGHT, y, "axis" if mark == 0 else "grid"))
        body.append(svg.text(label, _LEFT - 8, y + 4, "tick", "end"))
    bottom = top + _TALL
    free = -math.inf
    for x, label in sorted({(space.x(p.x), p.written) for p in points}):
        if x >= free:
            body.append(svg.text(label, x, bottom + 18, "tick", "middle"))
            free = x + _SPARED
    body.append(svg.text(figure, 0, bottom + 36, "tick"))
    body.append(svg.text(quantity, _RIGHT, bottom + 36, "tick", "end"))
    return body


def _curve(space: _Space, curve: Curve, kind: str) -> list[str]:
    body = []
    places = [(space.x(p.x), space.y(p.figure.mean)) for p in curve.points]
    if curve.joined and len(places) > 1:
        body.append(svg.path(places, f"curve {kind}"))
    for point, (x, y) in zip(curve.points, places, strict=True):
        low, high = point.figure.low, point.figure.high
        if low is not None and high is not None:
            ends = space.y(low), space.y(high)
            body.append(svg.line(x, ends[0], x, ends[1], f"reach {kind}"))
            body += [
                svg.line(x - 4, space.y(end), x + 4, space.y(end), f"reach {kind}")
                for end in (low, high)
                if space.up.low <= end <= space.up.high
            ]
        body.append(svg.dot(x, y, f"spot {kind}"))
    return body


def _spoken(curve: Curve) -> str:
    return ", ".join(f"{p.written} {formats.signed(p.figure.mean)}" for p in curve.points)


def _cells(figure: SeedFigure) -> tuple[str, str, str]:
    return formats.signed(figure.mean), written_interval(figure), str(len(figure.values))


def in_drawings(curves: Sequence[Curve]) -> list[tuple[Curve, ...]]:
    """The curves, so many in each drawing that they can be told apart."""
    return [
        tuple(curves[start : start + MOST_CURVES]) for start in range(0, len(curves), MOST_CURVES)
    ]

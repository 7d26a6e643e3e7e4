"""The few SVG pieces that the charts are made of: pure functions from numbers to markup.

Colours and type come from the page's style sheet by class, so one drawing serves light, dark and
paper. There is no namespace attribute: the markup stands inside HTML and refers to nothing.
"""

from __future__ import annotations

import html
import itertools
import math
from dataclasses import dataclass


def element(name: str, *children: str, **attributes: str | float) -> str:
    """One element; a trailing or inner underscore in an attribute's name is its hyphen."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{''.join(children)}</{name}>"


def text(content: str, x: float, y: float, kind: str, anchor: str = "start") -> str:
    """Escaped text of the class `kind`."""
    return element("text", html.escape(content), x=x, y=y, class_=kind, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line of the class `kind`."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    """A rectangle of the class `kind`."""
    return element("rect", x=x, y=y, width=max(width, 0.0), height=max(height, 0.0), class_=kind)


def dot(x: float, y: float, kind: str, radius: float = 3.5) -> str:
    """A data point."""
    return element("circle", cx=x, cy=y, r=radius, class_=kind)


def path(points: list[tuple[float, float]], kind: str) -> str:
    """An open line through `points`."""
    steps = " L".join(f"{x:.2f} {y:.2f}" for x, y in points)
    return element("path", d=f"M{steps}", class_=kind)


def figure(
    key: str, title: str, description: str, size: tuple[int, int], *body: str, top: int = 0
) -> str:
    """The whole drawing from `top` down, named and described for those who don't see it."""
    names = (f"{key}-title", f"{key}-desc")
    return element(
        "svg",
        element("title", html.escape(title), id=names[0]),
        element("desc", html.escape(description), id=names[1]),
        *body,
        viewBox=f"0 {top} {size[0]} {size[1] - top}",
        role="img",
        aria_labelledby=" ".join(names),
    )


@dataclass(frozen=True)
class Axis:
    """A linear scale from values to places in the drawing."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Where `value` lies."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round values that span [low, high], about `wanted` of them.

    >>> ticks(0, 8)
    [0.0, 2.0, 4.0, 6.0, 8.0]
    """
    span = high - low if high > low else max(abs(high), 1.0)
    rough = span / wanted
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def tick_labels(marks: list[float]) -> list[str]:
    """The marks as text, all with the decimals that their step needs.

    >>> tick_labels([3.38, 3.4])
    ['3.38', '3.40']
    """
    step = min((b - a for a, b in itertools.pairwise(marks)), default=1.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    while decimals < 12 and abs(round(step, decimals) - step) > step * 1e-6:
        decimals += 1
    return [f"{mark:.{decimals}f}".replace("-", "\N{MINUS SIGN}") for mark in marks]


def _attribute(value: str | float) -> str:
    if isinstance(value, str):
        return html.escape(value)
    return f"{value:.2f}".rstrip("0").rstrip(".")

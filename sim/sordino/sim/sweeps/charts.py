"""The drawings of a sweep: utility against ε, against the noise, against the traffic."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from sordino.server.report import formats
from sordino.server.report.charts import Chart
from sordino.sim.sweeps.outcome import Finished, Group, SweepResult
from sordino.sim.sweeps.plot import Curve, Level, Point, in_drawings, plot

GAIN = "gain, nats per token"
WITHOUT_PRIVACY = "Without privacy"
ALONE = "Each client alone, without noise"
_PRIVATE = "Private federation"

Quantity = Callable[[Finished], float | None]


def utility_charts(result: SweepResult) -> list[Chart]:
    """Gain against ε, beside both baselines."""
    return _over(result, "utility", "Utility against ε", "ε", _epsilon, formats.epsilon)


def noise_charts(result: SweepResult) -> list[Chart]:
    """Gain against the noise multiplier."""
    title, quantity = "Utility against the noise level", "noise multiplier σ"
    return _over(result, "noise", title, quantity, _noise, formats.short)


def traffic_charts(result: SweepResult) -> list[Chart]:
    """Gain against all bytes sent, as a cloud: nothing says what lies between two settings."""
    title, quantity = "Utility against traffic", "bytes of all clients, both ways"
    return _over(result, "bytes", title, quantity, _bytes, formats.size, joined=False)


def leakage_charts(result: SweepResult) -> list[Chart]:
    """What audits saw, against what was promised; none where no run was audited."""
    series: dict[str, list[Point]] = {}
    for group in result.groups:
        place, leaked = group.figure(_epsilon), group.figure(lambda run: run.leaked)
        if place is not None and leaked is not None:
            point = Point(x=place.mean, written=formats.epsilon(place.mean), figure=leaked)
            series.setdefault(group.series, []).append(point)
    curves = [
        Curve(name=name or _PRIVATE, points=tuple(sorted(points, key=lambda point: point.x)))
        for name, points in series.items()
    ]
    drawn = (
        plot(f"leakage-{n}", "Audited lower bound against ε", "ε", "ε seen to leak, at least", some)
        for n, some in enumerate(in_drawings(curves), 1)
    )
    return [chart for chart in drawn if chart is not None]


def _epsilon(run: Finished) -> float | None:
    return run.epsilon


def _noise(run: Finished) -> float | None:
    return run.report.noise.noise_multiplier


def _bytes(run: Finished) -> float | None:
    return float(run.bytes)


def _over(
    result: SweepResult,
    key: str,
    title: str,
    quantity: str,
    of: Quantity,
    write: Callable[[float], str],
    *,
    joined: bool = True,
) -> list[Chart]:
    groups = [group for group in result.groups if group.figure(of) is not None]
    series: dict[str, list[Group]] = {}
    for group in groups:
        series.setdefault(group.series, []).append(group)
    if quantity != "ε" and all(len(own) == 1 for own in series.values()):
        series = {"": groups}  # every setting a curve of one point: they are one cloud
        joined = False
    curves = [
        Curve(name=name or _PRIVATE, points=_points(own, of, write), joined=joined)
        for name, own in series.items()
    ]
    charts = []
    drawings = in_drawings([curve for curve in curves if curve.points])
    for number, some in enumerate(drawings, 1):
        shown = [series[_key(curve, series)] for curve in some]
        part = f", {number} of {len(drawings)}" if len(drawings) > 1 else ""
        chart = plot(f"{key}-{number}", title + part, quantity, GAIN, some, _levels(shown))
        charts += [chart] if chart else []
    return charts


def _key(curve: Curve, series: dict[str, list[Group]]) -> str:
    return curve.name if curve.name in series else ""


def _points(
    groups: Sequence[Group], of: Quantity, write: Callable[[float], str]
) -> tuple[Point, ...]:
    points = []
    for group in groups:
        place, gain = group.figure(of), group.figure(lambda run: run.gain)
        if place is not None and gain is not None:
            points.append(Point(x=place.mean, written=write(place.mean), figure=gain))
    return tuple(sorted(points, key=lambda point: point.x))


def _levels(curves: Sequence[Sequence[Group]]) -> list[Level]:
    """Both baselines, once for each that is another."""
    distinct: dict[tuple[str, ...], tuple[int, Group]] = {}
    for number, groups in enumerate(curves, 1):
        for group in groups:
            names = (run.cell.baseline.name for run in group.runs if run.cell.baseline is not None)
            distinct.setdefault(tuple(names), (number, group))
    levels = []
    for number, group in distinct.values():
        several = len(distinct) > 1
        of = f" ({group.series})" if several and group.series else ""
        for name, figure, dotted in (
            (WITHOUT_PRIVACY, group.figure(lambda run: run.without_privacy), False),
            (ALONE, group.figure(lambda run: run.alone), True),
        ):
            if figure is not None:
                own = number if several else 0
                levels.append(Level(name=name + of, figure=figure, dotted=dotted, of=own))
    return levels


def kept(group: Group) -> float | None:
    """Which part of the gain without privacy the private runs keep."""
    private, without = (group.figure(f) for f in (_gain, _without))
    if private is None or without is None or without.mean <= 0:
        return None
    return private.mean / without.mean


def _gain(run: Finished) -> float | None:
    return run.gain


def _without(run: Finished) -> float | None:
    return run.without_privacy


def mean_bytes(group: Group) -> float:
    """Bytes of all clients both ways, over the seeds."""
    return statistics.fmean(run.bytes for run in group.runs)

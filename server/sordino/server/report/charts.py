"""The report's charts, each a static drawing with the table of its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sordino.server.report import formats, svg
from sordino.server.report.schema import RunReport, UtilityFigures
from sordino.server.report.svg import Axis

_WIDTH = 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 436, 34, 184  # of a drawing by round
_SEPARATE_ROUNDS = 24  # more rounds than this are drawn as one line
_LABELLED_POINTS = 8  # more points than this and the values stand in the table only
_BASELINES = (
    ("private", "Private"),
    ("no_privacy", "No privacy"),
    ("no_federation", "No federation"),
)
_CLIPPED = {"record": "Records clipped", "user": "Updates clipped"}
_SUMS = {"record": "one step of a client", "user": "one released sum"}


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawing, and the same numbers as a table."""

    key: str
    title: str
    svg: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    simulation_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Series:
    """One figure per round, how it is drawn, and what its table column says."""

    name: str
    values: tuple[float | None, ...]
    written: tuple[str, ...]
    kind: str = "main"


def all_charts(report: RunReport) -> dict[str, Chart]:
    """Every chart that the report has numbers for, by key."""
    charts = (
        utility_chart(report),
        epsilon_chart(report),
        noise_chart(report),
        loss_chart(report),
        bytes_chart(report),
        updates_chart(report),
        time_chart(report),
        memory_chart(report),
    )
    return {chart.key: chart for chart in charts if chart is not None}


def utility_chart(report: RunReport) -> Chart | None:
    """Gain in held-out loss of the private run and both baselines, with intervals."""
    known = [
        (label, figures)
        for key, label in _BASELINES
        if (figures := getattr(report.utility, key)) is not None
    ]
    if not known:
        return None
    ends = [v for _, f in known for v in (f.interval.low, f.interval.high, f.interval.estimate)]
    axis, marks = _gain_axis(ends)
    bottom = 14 + 42 * len(known)
    body = [svg.line(axis.place(m), 10, axis.place(m), bottom, "grid") for m in marks]
    for index, (label, figures) in enumerate(known):
        body += _gain_row(axis, 14 + 42 * index, label, figures)
    body.append(svg.line(axis.place(0), 6, axis.place(0), bottom, "axis"))
    for mark, label in zip(marks, svg.tick_labels(marks), strict=True):
        body.append(svg.text(label, axis.place(mark), bottom + 16, "tick", "middle"))
    body.append(svg.text("nats per token", 436, bottom + 16, "tick", "end"))
    level = round(100 * known[0][1].interval.level)
    title = "Gain in held-out loss"
    said = "; ".join(f"{name} {formats.signed(f.interval.estimate)}" for name, f in known)
    description = f"Nats per token, whiskers are {level} % intervals. {said}."
    return Chart(
        key="utility",
        title=title,
        svg=svg.figure("utility", title, description, (_WIDTH, bottom + 26), *body),
        columns=("Run", "Gain", f"{level} % interval", "Loss before", "Loss after", "Perplexity"),
        rows=tuple(_gain_cells(label, figures) for label, figures in known),
        simulation_only=report.only_in_simulation("$.utility"),
    )


def _gain_axis(ends: Sequence[float]) -> tuple[Axis, list[float]]:
    """An axis just wide enough for zero and every whisker, with the round values inside it."""
    low, high = min(0.0, *ends), max(0.0, *ends)
    span = (high - low) or 1.0
    low, high = low - 0.03 * span * (low < 0), high + 0.03 * span
    return Axis(low, high, 108, 316), [m for m in svg.ticks(low, high, 4) if low <= m <= high]


def _gain_row(axis: Axis, top: float, label: str, figures: UtilityFigures) -> list[str]:
    gain = figures.interval
    middle = top + 16
    left, right = sorted((axis.place(0), axis.place(gain.estimate)))
    kind = "bar main" if label == _BASELINES[0][1] else "bar side"
    low, high = axis.place(gain.low), axis.place(gain.high)
    return [
        svg.text(label, 0, middle + 4.5, "label"),
        svg.rect(left, middle - 9, right - left, 18, kind),
        *_whisker(low, high, middle),
        svg.text(formats.signed(gain.estimate), 436, middle - 2, "value strong", "end"),
        svg.text(formats.interval(gain), 436, middle + 13, "value small", "end"),
    ]


def _whisker(low: float, high: float, y: float) -> list[str]:
    """An interval; the halo keeps it visible on a dark bar."""
    lines = ((low, y, high, y), (low, y - 5, low, y + 5), (high, y - 5, high, y + 5))
    return [svg.line(*ends, kind) for kind in ("halo", "whisker") for ends in lines]


def _gain_cells(label: str, figures: UtilityFigures) -> tuple[str, ...]:
    return (
        label,
        formats.signed(figures.interval.estimate),
        formats.interval(figures.interval),
        formats.plain(figures.loss_before),
        formats.plain(figures.loss_after),
        formats.plain(figures.perplexity_after, 2),
    )


def epsilon_chart(report: RunReport) -> Chart | None:
    """ε spent by the end of each round, against what was asked for."""
    values = tuple(figures.epsilon for figures in report.rounds)
    series = Series(name="ε spent", values=values, written=tuple(map(formats.epsilon, values)))
    title = "ε spent, by round"
    target = report.guarantee.epsilon.target
    return _line_chart(report, "epsilon", title, series, target=target, from_zero=True)


def loss_chart(report: RunReport) -> Chart | None:
    """Held-out loss of the shared adapter after each round."""
    values = tuple(figures.loss for figures in report.rounds)
    series = Series(name="Loss", values=values, written=tuple(map(formats.plain, values)))
    title = "Held-out loss, nats per token"
    marked = report.only_in_simulation("$.rounds[*].loss")
    return _line_chart(report, "loss", title, series, simulation_only=marked)


def bytes_chart(report: RunReport) -> Chart | None:
    """Bytes sent by and to all clients in each round."""
    up = tuple(figures.bytes_up / 1e6 for figures in report.rounds)
    down = tuple(figures.bytes_down / 1e6 for figures in report.rounds)
    series = (
        Series(name="Up", values=up, written=tuple(map(formats.megabytes, up))),
        Series(name="Down", values=down, written=tuple(map(formats.megabytes, down)), kind="side"),
    )
    return _bar_chart(report, "bytes", "Traffic of all clients, MB", series, "bytes_up")


def updates_chart(report: RunReport) -> Chart | None:
    """Updates that were summed and that were refused in each round."""
    summed = tuple(figures.updates for figures in report.rounds)
    refused = tuple(figures.dropped for figures in report.rounds)
    series = (
        Series(name="Summed", values=summed, written=tuple(map(formats.count, summed))),
        Series(
            name="Refused", values=refused, written=tuple(map(formats.count, refused)), kind="side"
        ),
    )
    return _bar_chart(report, "updates", "Updates", series, "updates")


def time_chart(report: RunReport) -> Chart | None:
    """Wall time of each round."""
    values = tuple(figures.wall_s for figures in report.rounds)
    written = tuple(formats.plain(value, 1) for value in values)
    series = Series(name="Time", values=values, written=written)
    return _bar_chart(report, "time", "Wall time, s", (series,), "wall_s")


def memory_chart(report: RunReport) -> Chart | None:
    """Peak resident memory of the largest process in each round."""
    values = tuple(figures.peak_rss_mb for figures in report.rounds)
    written = tuple(formats.plain(value, 0) for value in values)
    series = Series(name="Peak", values=values, written=written)
    return _bar_chart(report, "memory", "Peak memory of one process, MB", (series,), "peak_rss_mb")


def noise_chart(report: RunReport) -> Chart | None:
    """How often the clip acted, and how the clipped sum compares with the noise on it."""
    clipped, ratio = report.noise.clip_fraction, report.noise.update_snr
    body: list[str] = []
    rows: list[tuple[str, ...]] = []
    top = 16
    clips, sums = _CLIPPED[report.guarantee.unit], _SUMS[report.guarantee.unit]
    if clipped is not None:
        shares = [c.clip_fraction for c in report.clients if c.clip_fraction is not None]
        span = (min(shares), max(shares)) if len(shares) > 1 else (clipped, clipped)
        body += _clip_row(top, clips, clipped, span)
        rows.append((clips, formats.share(clipped)))
        if shares:
            rows.append(("Least and most of a client", " to ".join(map(formats.share, span))))
        top += 84
    if ratio:
        body += _ratio_row(top, sums, ratio)
        rows.append((f"Signal ÷ noise in {sums}", formats.short(ratio)))
        top += 84
    if not rows:
        return None
    title = "What clip and noise did"
    description = "; ".join(": ".join(row) for row in rows) + "."
    marked = any(report.only_in_simulation(f"$.noise.{k}") for k in ("clip_fraction", "update_snr"))
    return Chart(
        key="noise",
        title=title,
        svg=svg.figure("noise", title, description, (_WIDTH, top - 10), *body),
        columns=("Figure", "Value"),
        rows=tuple(rows),
        simulation_only=marked,
    )


def _clip_row(top: float, name: str, clipped: float, span: tuple[float, float]) -> list[str]:
    axis = Axis(0, 1, 0, 436)
    low, high = map(axis.place, span)
    label = f"{name}, whisker: least and most of a client" if high > low else name
    body = [
        svg.text(label, 0, top, "label"),
        svg.text(formats.share(clipped), 436, top, "value strong", "end"),
        svg.rect(0, top + 12, 436, 18, "bar track"),
        svg.rect(0, top + 12, axis.place(clipped), 18, "bar main"),
    ]
    if high > low:
        body += _whisker(low, high, top + 21)
    body.append(svg.text("0", 0, top + 47, "tick"))
    body.append(svg.text("100 %", 436, top + 47, "tick", "end"))
    return body


def _ratio_row(top: float, sums: str, ratio: float) -> list[str]:
    low = min(-2, math.floor(math.log10(ratio)))
    high = max(1, math.ceil(math.log10(ratio)))
    axis = Axis(low, high, 0, 436)
    middle, equal = top + 21, axis.place(0)
    body = [
        svg.text(f"Signal ÷ noise in {sums}", 0, top, "label"),
        svg.text(formats.short(ratio), 436, top, "value strong", "end"),
        svg.line(0, middle, 436, middle, "axis"),
        svg.line(equal, top + 10, equal, top + 32, "target"),
    ]
    for power in range(low, high + 1):
        x = axis.place(power)
        anchor = "start" if power == low else "end" if power == high else "middle"
        label = "equal" if power == 0 else f"{10.0**power:g}"
        body.append(svg.line(x, middle - 3, x, middle + 3, "axis"))
        body.append(svg.text(label, x, top + 47, "tick", anchor))
    return [*body, svg.dot(axis.place(math.log10(ratio)), middle, "point", 6)]


def _line_chart(
    report: RunReport,
    key: str,
    title: str,
    series: Series,
    *,
    target: float | None = None,
    from_zero: bool = False,
    simulation_only: bool = False,
) -> Chart | None:
    known = [(i, v) for i, v in enumerate(series.values) if v is not None]
    if not known:
        return None
    spanned = [v for _, v in known] + ([target] if target is not None else [])
    axis, body = _vertical_axis(0.0 if from_zero else min(spanned), max(spanned))
    places = _round_places(len(series.values))
    points = [(places[i], axis.place(v)) for i, v in known]
    if target is not None:
        y = axis.place(target)
        body.append(svg.line(_LEFT, y, _RIGHT, y, "target"))
        body.append(svg.text(f"target {formats.epsilon(target)}", _LEFT + 6, y - 6, "value small"))
    body.append(svg.path(points, "line main"))
    if len(points) <= _SEPARATE_ROUNDS:
        body += [svg.dot(x, y, "point") for x, y in points]
    labelled = points if len(points) <= _LABELLED_POINTS else points[-1:]
    rising = points[-1][1] <= points[0][1]
    for (x, y), (index, _) in zip(labelled, known[-len(labelled) :], strict=True):
        below = y + 18 if rising else y - 10
        anchor = "middle" if x < _RIGHT - 20 else "end"
        body.append(svg.text(series.written[index], x, below, "value small", anchor))
    return _by_round(
        report, key, title, (series,), body, target=target, simulation_only=simulation_only
    )


def _bar_chart(
    report: RunReport, key: str, title: str, series: Sequence[Series], figure: str
) -> Chart | None:
    known = [v for s in series for v in s.values if v is not None]
    if not known:
        return None
    axis, body = _vertical_axis(0.0, max(known))
    places = _round_places(len(report.rounds))
    for order, one in enumerate(series):
        if len(places) > _SEPARATE_ROUNDS:
            pairs = zip(places, one.values, strict=True)
            points = [(x, axis.place(v)) for x, v in pairs if v is not None]
            body += [svg.path(points, f"line {one.kind}")] if points else []
        else:
            body += _bars(axis, places, one, order, len(series))
    body.append(svg.line(_LEFT, _BOTTOM, _RIGHT, _BOTTOM, "axis"))
    marked = report.only_in_simulation(f"$.rounds[*].{figure}")
    return _by_round(report, key, title, series, body, simulation_only=marked)


def _bars(axis: Axis, places: Sequence[float], one: Series, order: int, of: int) -> list[str]:
    slot = (_RIGHT - _LEFT) / len(places)
    width = min(44.0, 0.72 * slot / of)
    body = []
    for place, value, written in zip(places, one.values, one.written, strict=True):
        if value is None:
            continue
        x, y = place + (order - of / 2) * width, axis.place(value)
        body.append(svg.rect(x, y, 0.92 * width, _BOTTOM - y, f"bar {one.kind}"))
        if len(places) * of <= _LABELLED_POINTS:
            body.append(svg.text(written, x + 0.46 * width, y - 6, "value small", "middle"))
    return body


def _vertical_axis(low: float, high: float) -> tuple[Axis, list[str]]:
    marks = svg.ticks(low, high)
    axis = Axis(marks[0], marks[-1], _BOTTOM, _TOP)
    body = [svg.line(_LEFT, axis.place(m), _RIGHT, axis.place(m), "grid") for m in marks]
    body += [
        svg.text(label, _LEFT - 8, axis.place(m) + 4, "tick", "end")
        for m, label in zip(marks, svg.tick_labels(marks), strict=True)
    ]
    return axis, body


def _round_places(rounds: int) -> list[float]:
    slot = (_RIGHT - _LEFT) / rounds
    return [_LEFT + slot * (i + 0.5) for i in range(rounds)]


def _by_round(
    report: RunReport,
    key: str,
    title: str,
    series: Sequence[Series],
    body: list[str],
    *,
    target: float | None = None,
    simulation_only: bool = False,
) -> Chart:
    places = _round_places(len(report.rounds))
    every = math.ceil(len(places) / 10)
    for x, figures in list(zip(places, report.rounds, strict=True))[::every]:
        body.append(svg.text(str(figures.round), x, _BOTTOM + 22, "tick", "middle"))
    body.append(svg.text("round", _LEFT - 8, _BOTTOM + 22, "tick", "end"))
    top = 12  # above a drawing without a legend nothing stands
    if len(series) > 1:
        body += _legend(series)
        top = 0
    columns = ["Round", *(one.name for one in series)]
    rows = [
        [str(figures.round), *(one.written[i] for one in series)]
        for i, figures in enumerate(report.rounds)
    ]
    if target is not None:
        columns.append("Target")
        rows = [[*row, formats.epsilon(target)] for row in rows]
    last = ", ".join(f"{one.name} {one.written[-1]}" for one in series)
    description = f"{len(rows)} rounds; in the last one: {last}."
    return Chart(
        key=key,
        title=title,
        svg=svg.figure(key, title, description, (_WIDTH, _BOTTOM + 30), *body, top=top),
        columns=tuple(columns),
        rows=tuple(map(tuple, rows)),
        simulation_only=simulation_only,
    )


def _legend(series: Sequence[Series]) -> list[str]:
    body = []
    for index, one in enumerate(series):
        x = _LEFT + 84 * index
        body.append(svg.rect(x, 2, 11, 11, f"bar {one.kind}"))
        body.append(svg.text(one.name, x + 17, 12, "value small"))
    return body

"""What an audit found, as static drawings, each with the table of its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sordino.server.report import formats, svg
from sordino.server.report.charts import Chart
from sordino.server.report.leakage import (
    AttackFigures,
    Between,
    BoundFigures,
    ExposureFigures,
    Leakage,
)
from sordino.server.report.schema import RunReport
from sordino.server.report.svg import Axis

_WIDTH, _HEIGHT = 440, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 428, 34, 190
_STYLES = ("main", "side", "third")
_LEAST_RATE = 1e-3
_TABLE_RATES = (0.001, 0.01, 0.1, 0.5)
_SHOWN_ATTACK = "reference"


def audit_charts(report: RunReport) -> dict[str, Chart]:
    """Every chart that the report's audit has numbers for, by key."""
    found = report.leakage
    charts = (
        bounds_chart(report),
        roc_chart(report),
        exposure_chart(found),
        *(prompts_chart(found, target) for target in _targets(found)),
    )
    return {chart.key: chart for chart in charts if chart is not None}


def bounds_chart(report: RunReport) -> Chart | None:
    """ε by round: what is promised, and what each adversary's guesses show, on one axis."""
    main = _main_label(report.leakage)
    bounds = [bound for bound in report.leakage.bounds if bound.label == main]
    rounds = sorted({bound.round for bound in bounds})
    if not rounds:
        return None
    spent = {figures.round: figures.epsilon for figures in report.rounds}
    upper = [(number, e) for number in rounds if (e := spent.get(number)) is not None]
    tallest = [e for _, e in upper] + [b.epsilon_lower for b in bounds] + [_ceiling(bounds)]
    axis, body = _vertical(0.0, max(tallest))
    places = {number: _place(i, len(rounds)) for i, number in enumerate(rounds)}
    if len(upper) > 0:
        body.append(svg.path([(places[n], axis.place(e)) for n, e in upper], "line target-line"))
        body += [svg.dot(places[n], axis.place(e), "point target-point") for n, e in upper]
    y = axis.place(_ceiling(bounds))
    body.append(svg.line(_LEFT, y, _RIGHT, y, "grid dashed"))
    body.append(svg.text("most that could be shown", _RIGHT, y - 5, "value small", "end"))
    names = sorted({bound.adversary for bound in bounds})
    for kind, name in zip(_STYLES, names, strict=False):
        own = [
            (places[b.round], axis.place(b.epsilon_lower)) for b in bounds if b.adversary == name
        ]
        body.append(svg.path(own, f"line {kind}"))
        body += [svg.dot(x, y, f"point {kind}") for x, y in own]
    for number, x in places.items():
        body.append(svg.text(str(number), x, _BOTTOM + 20, "tick", "middle"))
    body.append(svg.text("round", _LEFT - 8, _BOTTOM + 20, "tick", "end"))
    body += _legend([("target-bar", "upper"), *zip(_STYLES, names, strict=False)])
    title = "ε by round: promised, and shown by guesses"
    last = ", ".join(f"{b.adversary} {_lower(b.epsilon_lower)}" for b in report.leakage.whole
                     if b.label == main)  # fmt: skip
    return Chart(
        key="audit-bounds",
        title=title,
        svg=svg.figure("audit-bounds", title, f"Lower bounds for the whole run: {last}.",
                       (_WIDTH, _HEIGHT), *body),
        columns=("Run", "Adversary", "Round", "ε at most", "ε at least", "Estimate", "Ceiling",
                 "Guesses", "Right", "p"),
        rows=tuple(_bound_cells(bound, spent) for bound in report.leakage.bounds),
    )  # fmt: skip


def roc_chart(report: RunReport) -> Chart | None:
    """Membership inference on logarithmic axes: what matters is few false alarms."""
    attacks = report.leakage.attacks
    shown = [attack for attack in attacks if attack.attack == _SHOWN_ATTACK] or list(attacks[:1])
    if not shown:
        return None
    low = math.log10(_LEAST_RATE)
    across, up = Axis(low, 0, _LEFT, _RIGHT), Axis(low, 0, _BOTTOM, _TOP)
    body: list[str] = []
    for power in range(int(low), 1):
        x, y, label = across.place(power), up.place(power), f"{10.0**power:g}"
        body.append(svg.line(_LEFT, y, _RIGHT, y, "grid"))
        body.append(svg.text(label, _LEFT - 8, y + 4, "tick", "end"))
        body.append(svg.text(label, x, _BOTTOM + 20, "tick", "middle"))
    body.append(svg.text("false-positive rate", _RIGHT, _HEIGHT - 6, "tick", "end"))
    body.append(svg.line(_LEFT, _BOTTOM, _RIGHT, _TOP, "target"))
    for kind, attack in zip(_STYLES, shown, strict=False):
        body.append(svg.path(_corners(attack, across, up), f"line {kind}"))
    body += _legend([(kind, a.label) for kind, a in zip(_STYLES, shown, strict=False)])
    title = f"Membership inference, attack {shown[0].attack}: true against false positives"
    said = "; ".join(f"{a.label}: AUC {formats.plain(a.auc.estimate)}" for a in shown)
    return Chart(
        key="audit-roc",
        title=title,
        svg=svg.figure("audit-roc", title, f"Logarithmic axes; dashed is chance. {said}.",
                       (_WIDTH, _HEIGHT), *body),
        columns=("Run", "Attack", "AUC", "Interval", "TPR at 1 % FPR", "Realised FPR",
                 *(f"TPR at {rate:g}" for rate in _TABLE_RATES)),
        rows=tuple(_attack_cells(attack) for attack in attacks),
        simulation_only=report.only_in_simulation("$.leakage.attacks[*]"),
    )  # fmt: skip


def exposure_chart(found: Leakage) -> Chart | None:
    """How well planted codes are known, against chance; the table has those never planted too."""
    groups = list(found.exposure)
    if not groups:
        return None
    main = _main_label(found)
    most = max(group.repetitions for group in groups)
    ceiling = groups[0].ceiling
    bins = max(1, math.ceil(ceiling))
    shown = [
        (kind, f"{g.label}, {_times(g.repetitions)}", _shares(g.bits, bins))
        for kind, g in zip(
            ("main", "side"),
            [g for g in groups if g.repetitions == most and g.label == main]
            + [g for g in groups if g.repetitions == most and g.label != main],
            strict=False,
        )
    ]
    null = _by_chance(bins)
    axis, body = _vertical(0.0, max([*null, *(s for _, _, shares in shown for s in shares)]))
    slot = (_RIGHT - _LEFT) / bins
    width = 0.8 * slot / len(shown)
    for order, (kind, _, shares) in enumerate(shown):
        for i, share in enumerate(shares):
            x, y = _LEFT + slot * i + 0.1 * slot + order * width, axis.place(share)
            body.append(svg.rect(x, y, 0.92 * width, _BOTTOM - y, f"bar {kind}"))
    steps = [(_LEFT + slot * (i + dx), axis.place(v)) for i, v in enumerate(null) for dx in (0, 1)]
    body.append(svg.path(steps, "line target-line"))
    for i in range(bins):
        body.append(svg.text(str(i), _LEFT + slot * i, _BOTTOM + 20, "tick", "middle"))
    body.append(svg.text("bits of exposure", _RIGHT, _HEIGHT - 6, "tick", "end"))
    body += _legend([*((kind, name) for kind, name, _ in shown), ("target-bar", "chance")], 150)
    title = "Exposure of planted codes"
    said = "; ".join(f"{g.label}, {_times(g.repetitions)}: mean {g.mean:.2f}" for g in groups)
    return Chart(
        key="audit-exposure",
        title=title,
        svg=svg.figure("audit-exposure", title, f"Shares by whole bits. {said}.",
                       (_WIDTH, _HEIGHT), *body),
        columns=("Run", "Planted", "Codes", "Mean, bits", "Largest", "Ceiling", "p",
                 "Above chance"),
        rows=tuple(_exposure_cells(group) for group in groups),
    )  # fmt: skip


def prompts_chart(found: Leakage, target: str) -> Chart:
    """How many hidden texts each family of attacks brought out, by model, with intervals."""
    rows = [one for one in found.prompts if one.target == target]
    families = list(dict.fromkeys(one.family for one in rows))
    stages = list(dict.fromkeys(one.stage for one in rows))
    tall = 14 * len(stages) + 12
    axis = Axis(0, 1, 116, 400)
    bottom = 24 + tall * len(families)
    body = [svg.line(axis.place(m), 20, axis.place(m), bottom, "grid") for m in (0, 0.5, 1)]
    for index, family in enumerate(families):
        top = 26 + tall * index
        body.append(svg.text(family, 0, top + tall / 2, "label"))
        for order, stage in enumerate(stages):
            one = next(r for r in rows if (r.family, r.stage) == (family, stage))
            y = top + 14 * order
            kind = _STYLES[order % len(_STYLES)]
            span = axis.place(one.leaked.estimate) - axis.place(0)
            body.append(svg.rect(axis.place(0), y, span, 10, f"bar {kind}"))
            low, high = axis.place(one.leaked.low), axis.place(one.leaked.high)
            body.append(svg.line(low, y + 5, high, y + 5, "whisker"))
    for mark in (0, 0.5, 1):
        body.append(svg.text(f"{mark:.0%}", axis.place(mark), bottom + 16, "tick", "middle"))
    body += _legend(list(zip(_STYLES, stages, strict=False)), 110)
    title = f"Leakage of {target}, by family of attacks"
    power = "" if all(r.power for r in rows) else " The untouched base leaks too little: no power."
    shared = f"Share of {rows[0].prompts} texts, by {rows[0].criterion}, with intervals"
    return Chart(
        key=f"audit-{target.replace(' ', '-')}",
        title=title,
        svg=svg.figure(f"audit-{target.replace(' ', '-')}", title, f"{shared}.{power}",
                       (_WIDTH, bottom + 26), *body),
        columns=("Model", "Family", "Leaked", "Interval", "Never seen", "Texts"),
        rows=tuple(
            (r.stage, r.family, formats.share(r.leaked.estimate), _shares_of(r.leaked),
             formats.share(r.control.estimate), formats.count(r.prompts))
            for r in rows
        ),
    )  # fmt: skip


def _targets(found: Leakage) -> list[str]:
    return list(dict.fromkeys(one.target for one in found.prompts))


def _main_label(found: Leakage) -> str:
    labels = [*(b.label for b in found.bounds), *(g.label for g in found.exposure)]
    return "private" if "private" in labels or not labels else labels[0]


def _ceiling(bounds: Sequence[BoundFigures]) -> float:
    return max(bound.ceiling for bound in bounds)


def _lower(value: float) -> str:
    """A lower bound, rounded down.

    >>> _lower(1.239)
    '1.23'
    """
    return f"{math.floor(value * 100 + 1e-9) / 100:.2f}"


def _bound_cells(bound: BoundFigures, spent: dict[int, float | None]) -> tuple[str, ...]:
    upper = formats.epsilon(spent.get(bound.round)) if bound.p_value is not None else "\N{EN DASH}"
    return (
        bound.label,
        bound.adversary,
        formats.count(bound.round),
        upper,
        _lower(bound.epsilon_lower),
        formats.plain(bound.estimate, 2),
        _lower(bound.ceiling),
        formats.count(bound.guesses),
        formats.count(bound.correct),
        formats.short(bound.p_value),
    )


def _attack_cells(attack: AttackFigures) -> tuple[str, ...]:
    at = attack.at_one_percent
    return (
        attack.label,
        attack.attack,
        formats.plain(attack.auc.estimate),
        f"{formats.plain(attack.auc.low)} to {formats.plain(attack.auc.high)}",
        "too few texts" if at is None else f"{formats.share(at.estimate)}, {_shares_of(at)}",
        formats.share(attack.realised),
        *(formats.share(_rate_at(attack, rate)) for rate in _TABLE_RATES),
    )


def _rate_at(attack: AttackFigures, wanted: float) -> float:
    """The largest true-positive rate on the curve at no more than so many false ones."""
    pairs = zip(attack.false_positives, attack.true_positives, strict=True)
    return max((true for false, true in pairs if false <= wanted), default=0.0)


def _corners(attack: AttackFigures, across: Axis, up: Axis) -> list[tuple[float, float]]:
    """The curve from left to right; what is below the axes' least rate lies on their edge."""
    points = sorted(zip(attack.false_positives, attack.true_positives, strict=True))
    return [
        (
            across.place(math.log10(max(false, _LEAST_RATE))),
            up.place(math.log10(max(true, _LEAST_RATE))),
        )
        for false, true in points
    ]


def _exposure_cells(group: ExposureFigures) -> tuple[str, ...]:
    return (
        group.label,
        _times(group.repetitions),
        formats.count(len(group.bits)),
        formats.plain(group.mean, 2),
        formats.plain(max(group.bits), 2),
        formats.plain(group.ceiling, 2),
        formats.short(group.p_value),
        "yes" if group.above_null else "no",
    )


def _times(repetitions: int) -> str:
    return "never" if repetitions == 0 else f"{repetitions}\N{MULTIPLICATION SIGN}"


def _shares(bits: Sequence[float], bins: int) -> list[float]:
    counts = [0] * bins
    for value in bits:
        counts[min(int(value), bins - 1)] += 1
    return [count / len(bits) for count in counts]


def _by_chance(bins: int) -> list[float]:
    """P(exposure in [i, i + 1)) if nothing was learnt: exposure is at least x with chance 2^-x."""
    return [2.0**-i - (2.0 ** -(i + 1) if i + 1 < bins else 0.0) for i in range(bins)]


def _shares_of(interval: Between) -> str:
    return f"{formats.share(interval.low)} to {formats.share(interval.high)}"


def _vertical(low: float, high: float) -> tuple[Axis, list[str]]:
    marks = svg.ticks(low, high)
    axis = Axis(marks[0], marks[-1], _BOTTOM, _TOP)
    body = [svg.line(_LEFT, axis.place(m), _RIGHT, axis.place(m), "grid") for m in marks]
    body += [
        svg.text(label, _LEFT - 8, axis.place(m) + 4, "tick", "end")
        for m, label in zip(marks, svg.tick_labels(marks), strict=True)
    ]
    return axis, body


def _place(index: int, of: int) -> float:
    slot = (_RIGHT - _LEFT) / of
    return _LEFT + slot * (index + 0.5)


def _legend(entries: Sequence[tuple[str, str]], step: int = 100) -> list[str]:
    body = []
    for index, (kind, name) in enumerate(entries):
        body.append(svg.rect(_LEFT + step * index, 2, 11, 11, f"bar {kind}"))
        body.append(svg.text(name, _LEFT + step * index + 17, 12, "value small"))
    return body

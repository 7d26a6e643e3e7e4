"""From an audit's measures to the report's section on leakage, and into the run's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sordino.core.errors import ReportError
from sordino.privacy.audit import Audit, Entry, Exposure, Membership, OneRun, PromptLeakage, roc
from sordino.server import report as rep
from sordino.server.report import leakage as figures
from sordino.sim.audit.run import AuditOutcome

_CORNERS = 200  # a longer curve is thinned: a drawing shows no more


def write_into_report(outcome: AuditOutcome) -> Path:
    """Put what the audit found into the run's report.json and report.html; returns the page.

    Raises:
        ReportError: The run has no report, or it can't be written.
    """
    root = outcome.target.run.root
    path = root / "report.json"
    try:
        report = rep.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(f"can't read {path}: {error.strerror}") from error
    last = outcome.target.rounds(outcome.target.main)
    found = leakage_of(outcome.audit, last, alarm=bool(outcome.findings.alarms))
    _, page = rep.write_report(replace(report, leakage=found), root, outcome.claim)
    return page


def leakage_of(audit: Audit, rounds: int, *, alarm: bool) -> figures.Leakage:
    """The report's figures of an audit.

    Args:
        audit: With its figures computed.
        rounds: How many rounds the run had: "the whole run" is the last one.
        alarm: Whether something contradicts the claim.
    """
    own = [entry for entry in audit.entries if not entry.control]
    return figures.Leakage(
        status="audited",
        tier=str(audit.context.get("tier", "")),
        alarm=alarm,
        none_planted=str(audit.context.get("canaries", "")),
        bounds=tuple(_bound(e, e.measure, rounds) for e in own if isinstance(e.measure, OneRun)),
        attacks=tuple(_attack(e, e.measure) for e in own if isinstance(e.measure, Membership)),
        exposure=tuple(
            group for e in own if isinstance(e.measure, Exposure) for group in _groups(e, e.measure)
        ),
        prompts=tuple(
            row for e in own if isinstance(e.measure, PromptLeakage) for row in _rows(e, e.measure)
        ),
        findings=tuple(_finding(e) for e in audit.entries if _told_in_words(e)),
    )


def _bound(entry: Entry, measure: OneRun, rounds: int) -> figures.BoundFigures:
    found = entry.figures
    best = max(found["rules"], key=lambda rule: rule["correct"] / (rule["in"] + rule["out"]))
    scope = measure.scope.removeprefix("round ")
    return figures.BoundFigures(
        label=entry.label,
        adversary=measure.adversary,
        round=int(scope) if scope.isdecimal() else rounds,
        unit=measure.unit,
        delta=measure.delta,
        canaries=int(found["canaries"]),
        guesses=int(best["in"] + best["out"]),
        correct=int(best["correct"]),
        epsilon_lower=found["epsilon_lower"],
        estimate=found["epsilon_gaussian"],
        ceiling=found["ceiling"],
        p_value=found["p_value"],
        alarm=bool(found["alarm"]),
        verdict=found["verdict"],
    )


def _attack(entry: Entry, measure: Membership) -> figures.AttackFigures:
    found = entry.figures
    at = found["at"][0]
    false, true = roc(measure.members, measure.others)
    keep = sorted({round(i * (len(false) - 1) / _CORNERS) for i in range(_CORNERS + 1)})
    realised = at["realised"]
    return figures.AttackFigures(
        label=entry.label,
        attack=measure.attack,
        adversary=measure.adversary,
        members=int(found["members"]),
        others=int(found["others"]),
        auc=_interval(found["auc"]),
        at_one_percent=None if at["true_positives"] is None else _interval(at["true_positives"]),
        realised=None if realised is None else float(realised["estimate"]),
        refused=at["refused"] or "",
        false_positives=tuple(float(false[i]) for i in keep),
        true_positives=tuple(float(true[i]) for i in keep),
        verdict=found["verdict"],
    )


def _groups(entry: Entry, measure: Exposure) -> list[figures.ExposureFigures]:
    bits: Sequence[float] = entry.figures["exposures"]
    pairs = list(zip(bits, measure.repetitions, strict=True))
    return [
        figures.ExposureFigures(
            label=entry.label,
            repetitions=int(row["repetitions"]),
            bits=tuple(value for value, times in pairs if times == row["repetitions"]),
            ceiling=float(entry.figures["ceiling"]),
            mean=float(row["mean"]),
            p_value=float(row["p_value"]),
            above_null=bool(row["above_null"]),
        )
        for row in entry.figures["by_repetitions"]
    ]


def _rows(entry: Entry, measure: PromptLeakage) -> list[figures.PromptFigures]:
    return [
        figures.PromptFigures(
            target=measure.target,
            stage=stage["name"],
            family=family,
            criterion=measure.criterion,
            prompts=int(entry.figures["prompts"]),
            leaked=_interval(rates[measure.criterion]["leaked"]),
            control=_interval(rates[measure.criterion]["control"]),
            power=bool(entry.figures["power"]),
        )
        for stage in entry.figures["stages"]
        for family, rates in {"best of all": stage["best"], **stage["families"]}.items()
    ]


def _told_in_words(entry: Entry) -> bool:
    return bool(entry.control) or not isinstance(entry.measure, OneRun | Membership | Exposure)


def _finding(entry: Entry) -> figures.Finding:
    measure = entry.measure
    parts = [measure.kind, *(getattr(measure, n, "") for n in ("adversary", "target", "what"))]
    kind = " ".join(dict.fromkeys(part for part in parts if part and part != entry.control))
    return figures.Finding(
        label=entry.label,
        kind=kind,
        control=entry.control,
        verdict=str(entry.figures["verdict"]),
    )


def _interval(table: Mapping[str, Any]) -> figures.Between:
    estimate, low, high = (float(table[key]) for key in ("estimate", "low", "high"))
    return figures.Between(estimate=estimate, low=low, high=high)

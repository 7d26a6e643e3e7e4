"""What a simulated run's paid metric leaves behind: its lines in metrics.jsonl, its report rows."""

from __future__ import annotations

import math
from typing import Any

from sordino.privacy import accounting
from sordino.privacy.accounting import Event
from sordino.privacy.plan import CentralPlan, MetricPlan, Plan
from sordino.server.metrics import Looks
from sordino.server.plans import read_metric_plan
from sordino.server.report import MetricFigures
from sordino.sim.folder import RunFolder


def log_look(run: RunFolder, looks: Looks | None, round_number: int) -> None:
    """Write down the look that followed a round, if one did."""
    look = looks.after(round_number) if looks else None
    if look is not None:
        run.log("metric", **look.figures())


def metric_rows(run: RunFolder, variant: str) -> tuple[MetricFigures, ...]:
    """The report's rows of the looks that a variant took."""
    plan = read_metric_plan(run.state(variant))
    return () if plan is None else tuple(_row(plan, line) for line in run.events("metric"))


def events_until(
    plan: Plan | CentralPlan, metric: MetricPlan | None, every: int, rounds: int
) -> list[Event]:
    """What the claim holds by the end of a round, the looks that were due included.

    Under local trust that is what a client is charged, under central trust the coordinator.
    """
    charged = plan.releases if isinstance(plan, CentralPlan) else plan
    events: list[Event] = [charged.round_event()] * rounds
    if metric is not None:
        events += [metric.round_event()] * min(rounds // every, metric.rounds)
    return events


def _row(plan: MetricPlan, line: dict[str, Any]) -> MetricFigures:
    spent = accounting.epsilon_pld([plan.round_event()] * line["look"], plan.delta)
    return MetricFigures(
        metric=plan.metric,
        round=line["round"],
        value=line["value"],
        noise_std=line["noise_std"],
        answers=line["answers"],
        low=plan.centre - plan.clip_norm,
        high=plan.centre + plan.clip_norm,
        divisor=plan.divisor,
        noise_multiplier=plan.noise_multiplier,
        epsilon=spent if math.isfinite(spent) else None,
        delta=plan.delta,
        unit=plan.unit,
        neighbouring=plan.neighbouring,
    )

"""The plans of a run, from its settings; and where its folder keeps that of its paid metric."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sordino.core.config import ExperimentConfig
from sordino.core.durable import write_whole
from sordino.privacy.plan import (
    AnyPlan,
    MetricPlan,
    decode_metric_plan,
    metric_plan,
    plan_of_run,
)

METRIC_PLAN: Final = "metric.json"
"""The file of a metric's plan, beside `plan.json`."""


def plans_of(experiment: ExperimentConfig, run_id: str) -> tuple[AnyPlan, MetricPlan | None]:
    """A run's plan, and that of the metric that it buys, if it does.

    Raises:
        PlanError: A value is impossible, or the accountants contradict.
    """
    metric = metric_plan_of(experiment, run_id)
    plan = plan_of_run(
        experiment.privacy,
        experiment.federation,
        run_id=run_id,
        rounds=experiment.federation.rounds,
        local_steps=experiment.train.local_steps,
        metric=metric,
    )
    return plan, metric


def metric_plan_of(experiment: ExperimentConfig, run_id: str) -> MetricPlan | None:
    """The plan of the metric that a run buys; None: it buys none."""
    return metric_plan(
        experiment.metrics,
        experiment.privacy,
        run_id=run_id,
        rounds=experiment.federation.rounds,
    )


def keep_metric_plan(folder: Path, plan: MetricPlan | None) -> None:
    """Put a metric's plan beside the run's own, for whoever recomputes its ε."""
    if plan is not None:
        write_whole(folder / METRIC_PLAN, plan.canonical())


def read_metric_plan(folder: Path) -> MetricPlan | None:
    """The plan that `keep_metric_plan` wrote; None where there is none.

    Raises:
        PlanError: It can't be read.
    """
    path = folder / METRIC_PLAN
    return decode_metric_plan(path.read_bytes()) if path.is_file() else None

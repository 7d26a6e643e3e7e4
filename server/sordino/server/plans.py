"""Where a run's folder keeps the plan of its paid metric, beside the run's own."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sordino.core.durable import write_whole
from sordino.privacy.plan import MetricPlan, decode_metric_plan

METRIC_PLAN: Final = "metric.json"
"""The file of a metric's plan, beside `plan.json`."""


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

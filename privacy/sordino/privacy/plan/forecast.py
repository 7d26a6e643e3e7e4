"""How far a policy lets a plan go: before it begins, and from what a ledger holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sordino.privacy.accounting import Event
from sordino.privacy.ledger import GENESIS, WHOLE, Reserve
from sordino.privacy.plan.limits import ChargedPlan, binding_caps, counted, filter_of
from sordino.privacy.plan.metrics import MetricPlan
from sordino.privacy.policy import Cap, Policy


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """How many rounds of a plan are left for a dataset, and what bounds them.

    Attributes:
        dataset: The dataset.
        rounds: How many more rounds pass; at most what the plan announces.
        planned: What the plan announces.
        cap: The cap that lets fewest pass; None if no cap for life allows the plan's unit.
        spent: The ε that has been used of that cap, by its filter.
    """

    dataset: str
    rounds: int
    planned: int
    cap: Cap | None
    spent: float

    def __str__(self) -> str:
        if self.cap is None:
            return f"dataset {self.dataset}: no round, for no cap for life allows the plan's unit"
        span = f"{self.cap.period_days} days" if self.cap.period_days else "life"
        return (
            f"dataset {self.dataset}: {self.rounds} of {self.planned} rounds; epsilon {self.spent} "
            f"of {self.cap.epsilon} spent at delta {self.cap.delta:g}, unit {self.cap.unit}, "
            f"add-or-remove-one, over {span}, by the Rényi filter"
        )


def first_refused_round(policy: Policy, plan: ChargedPlan) -> int | None:
    """The first round of a plan that a device which has spent nothing refuses; None: it has all."""
    rounds = forecast(policy, plan, (), "any").rounds
    return None if rounds == plan.rounds else rounds + 1


def forecasts(
    policy: Policy,
    plan: ChargedPlan,
    charged: Sequence[Reserve],
    dataset: str = "",
    metric: MetricPlan | None = None,
) -> tuple[Forecast, ...]:
    """A forecast for one dataset, or for each that was ever charged.

    Args:
        policy: The device's.
        plan: The plan that would go on.
        charged: Everything that the device was charged.
        dataset: Which; empty: each that is charged, or `any` where nothing is.
        metric: What the same run buys beside: all looks that are left are set aside first.
    """
    names = [dataset] if dataset else sorted({entry.dataset for entry in charged}) or ["any"]
    return tuple(forecast(policy, plan, charged, name, metric) for name in names)


def forecast(
    policy: Policy,
    plan: ChargedPlan,
    charged: Sequence[Reserve],
    dataset: str,
    metric: MetricPlan | None = None,
) -> Forecast:
    """How many more rounds of a plan a policy lets pass for a dataset; see `forecasts`."""
    new = _next(plan, dataset)
    caps = binding_caps(policy, dataset)
    if not any(cap.unit == plan.unit and not cap.period_days for cap in caps):
        return Forecast(dataset=dataset, rounds=0, planned=plan.rounds, cap=None, spent=0.0)
    found = []
    for cap in caps:
        events = counted(cap, charged, new) + _looks_left(metric, charged, dataset)
        left = filter_of(cap).rounds_left(events, plan.round_event(), plan.rounds)
        spent = filter_of(cap).spent(events)
        found.append(
            Forecast(dataset=dataset, rounds=left, planned=plan.rounds, cap=cap, spent=spent)
        )
    return min(found, key=lambda forecast: forecast.rounds)


def _looks_left(
    metric: MetricPlan | None, charged: Sequence[Reserve], dataset: str
) -> tuple[Event, ...]:
    if metric is None:
        return ()
    done = sum((e.run_id, e.dataset) == (metric.run_id, dataset) for e in charged)
    return (metric.round_event(),) * max(metric.rounds - done, 0)


def _next(plan: ChargedPlan, dataset: str) -> Reserve:
    """What the plan's next charge would look like to a cap."""
    return Reserve(
        client="",
        index=0,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        prev=GENESIS,
        run_id=plan.run_id,
        round=1,
        dataset=dataset,
        block=WHOLE,
        unit=plan.unit,
        neighbouring=plan.neighbouring,
        event=plan.event_fields(),
        plan_sha256=plan.sha256,
        policy_sha256="",
    )

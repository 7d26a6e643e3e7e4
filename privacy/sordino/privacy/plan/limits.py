"""A device's policy coupled to plans and to the ledger: requests, and lifetime caps as a filter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sordino.core.errors import PolicyRefusedError
from sordino.privacy.accounting import DEFAULT_ORDERS, Event, Filter
from sordino.privacy.ledger import Limit, Reserve, against
from sordino.privacy.plan.central import CentralPlan
from sordino.privacy.plan.figures import events_of
from sordino.privacy.plan.metrics import MetricPlan
from sordino.privacy.plan.plans import Plan
from sordino.privacy.policy import Cap, Policy, Request

SPENT: Final = 0.99
"""From this share of a cap for life on, a dataset's block counts as spent and is retired."""

ChargedPlan = Plan | CentralPlan | MetricPlan


def request_of(
    plan: ChargedPlan,
    *,
    base_sha256: str | None = None,
    rank: int | None = None,
    targets: Sequence[str] = (),
) -> Request:
    """What a task asks, in a policy's terms."""
    common: dict[str, Any] = {
        "trust": plan.trust,
        "noise_multiplier": plan.noise_multiplier,
        "clip_norm": plan.clip_norm,
        "delta": plan.delta,
        "steps_per_round": plan.steps_per_round,
        "rounds": plan.rounds,
        "base_sha256": base_sha256,
        "rank": rank,
        "targets": tuple(targets),
    }
    if isinstance(plan, MetricPlan):
        return Request(**common, metric=plan.metric)
    if isinstance(plan, Plan):
        return Request(**common, sampling_rate=plan.sampling_rate)
    return Request(
        **common,
        sampling_rate=plan.batch_rate,
        amplified=plan.sampling != "none",
        cohort=plan.cohort,
        population=plan.population,
    )


def policy_limit(policy: Policy) -> Limit:
    """A policy's caps as the ledger's `Limit`, asked inside the transaction that charges.

    A charge passes if a cap for life binds its unit, every cap that binds it lets it pass, and its
    run has charged no later round.
    """
    limits = _Limits(policy)
    return Limit(
        would_allow=limits.would_allow,
        policy_sha256=policy.sha256,
        is_spent=limits.is_spent,
    )


def filter_of(cap: Cap) -> Filter:
    """The filter that holds a cap."""
    return Filter(
        unit=cap.unit,
        epsilon=cap.epsilon,
        delta=cap.delta,
        orders=cap.orders or DEFAULT_ORDERS,
        records_per_user=cap.records_per_user or None,
    )


@dataclass(frozen=True)
class _Limits:
    policy: Policy

    def would_allow(self, charged: Sequence[Reserve], new: Reserve) -> None:
        for entry in charged:
            if entry.run_id == new.run_id and entry.round >= new.round:
                raise PolicyRefusedError(
                    "stale-round", f"run {new.run_id} has charged round {entry.round} before"
                )
        caps = binding_caps(self.policy, new.dataset)
        if not any(cap.unit == new.unit and not cap.period_days for cap in caps):
            raise PolicyRefusedError(
                "policy-budget", f"no cap for life allows the unit {new.unit} for {new.dataset}"
            )
        (event,) = events_of([new])
        for cap in caps:
            filter_of(cap).would_allow(counted(cap, charged, new), event)

    def is_spent(self, charged: Sequence[Reserve], new: Reserve) -> bool:
        return any(
            filter_of(cap).spent(counted(cap, charged, new)) >= SPENT * cap.epsilon
            for cap in binding_caps(self.policy, new.dataset)
            if cap.unit == "record" and not cap.period_days
        )


def binding_caps(policy: Policy, dataset: str) -> tuple[Cap, ...]:
    """Every cap that a charge of this dataset must pass, whatever its unit."""
    return policy.caps_for("record", dataset) + policy.caps_for("user", dataset)


def counted(cap: Cap, charged: Sequence[Reserve], new: Reserve) -> tuple[Event, ...]:
    """The events among `charged` that compose with a new charge for a cap's unit and period.

    A user's: all of the device. A record's: all of its dataset whose time block overlaps, whichever
    unit they protect (see `accounting.gaussians` for what one unit's event costs the other).
    """
    entries = against(charged, new, cap.unit)
    if cap.period_days:
        begin = datetime.fromisoformat(new.time) - timedelta(days=cap.period_days)
        entries = tuple(entry for entry in entries if datetime.fromisoformat(entry.time) > begin)
    return events_of(entries)

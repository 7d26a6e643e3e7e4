"""What a plan and a ledger amount to: the guarantee with all that makes it a claim."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from sordino.core.errors import PlanError
from sordino.privacy import accounting
from sordino.privacy.accounting import Event, Guarantee
from sordino.privacy.ledger import Reserve, read_charges
from sordino.privacy.plan.decode import AnyPlan
from sordino.privacy.plan.plans import NoPrivacyPlan


def guarantee(
    plan: AnyPlan,
    events: Iterable[Event],
    *,
    composition: str,
    records_per_user: int | None = None,
) -> Guarantee:
    """ε of `events` at the plan's δ, with everything that makes it a claim.

    Args:
        plan: Where trust, unit and δ come from.
        events: One client's events (the clients of a run hold disjoint records: see `spent`).
        composition: What `events` cover, in words: "rounds 1-3 of run r1", "the dataset's life".
        records_per_user: If users own at most so many of a client's records, bound them too.
    """
    if isinstance(plan, NoPrivacyPlan):
        return Guarantee(
            trust="none",
            unit="none",
            neighbouring="none",
            sampling=plan.sampling,
            accountant="none",
            composition=composition,
            delta=0.0,
            epsilon_pld=math.inf,
            epsilon_rdp=math.inf,
        )
    own = list(events)
    headline = accounting.epsilon_pld(own, plan.delta)
    record, user = headline, headline
    if plan.unit == "record":
        user = accounting.epsilon_for("user", own, plan.delta, records_per_user=records_per_user)
    else:
        record = accounting.epsilon_for("record", own, plan.delta)
    return Guarantee(
        trust=plan.trust,
        unit=plan.unit,
        neighbouring=plan.neighbouring,
        sampling=plan.sampling,
        accountant=accounting.accountant(),
        composition=composition,
        delta=plan.delta,
        epsilon_pld=headline,
        epsilon_rdp=accounting.epsilon_rdp(own, plan.delta),
        user=_user(plan.unit, user, records_per_user),
        record_epsilon=record,
        user_epsilon=user,
    )


def _user(unit: str, epsilon: float, records_per_user: int | None) -> str:
    if unit == "user":
        return f"epsilon {epsilon} for a user of any number of records"
    if records_per_user is None or math.isinf(epsilon):
        return accounting.NOT_BOUNDED
    return f"epsilon {epsilon} for a user of at most {records_per_user} records"


def events_of(entries: Iterable[Reserve]) -> tuple[Event, ...]:
    """The events that ledger entries charge.

    Raises:
        PlanError: An event is of no known kind, or the entry's unit or relation isn't the event's.
    """
    events = []
    for entry in entries:
        event = accounting.event_from_fields(entry.event)
        if (entry.unit, entry.neighbouring) != (event.unit, event.neighbouring):
            raise PlanError(
                f"client {entry.client}, entry {entry.index}: {event.kind} is accounted for unit "
                f"{event.unit}, {event.neighbouring}; got {entry.unit}, {entry.neighbouring}"
            )
        events.append(event)
    return tuple(events)


def events_by_client(path: Path, run_id: str | None = None) -> dict[str, tuple[Event, ...]]:
    """Verify a ledger or an export and give each client's events, of one run or of all.

    Raises:
        LedgerError: The ledger is defective.
        PlanError: An event is unknown.
    """
    return {
        client: events_of(e for e in entries if run_id in (None, e.run_id))
        for client, entries in read_charges(path).items()
    }


def spent(path: Path, delta: float, run_id: str | None = None) -> dict[str, float]:
    """ε (PLD) of each client by its ledger alone.

    All of a client's datasets are added up, an upper bound for each. Clients hold disjoint records,
    so the record-level ε of the federation is the largest of the figures (parallel composition).
    """
    return accounting.spent(events_by_client(path, run_id), delta)

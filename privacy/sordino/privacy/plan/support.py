"""What a ledger bears out of a run: every figure of a claim, by replay, or a refusal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sordino.core.errors import ClaimError
from sordino.privacy import accounting
from sordino.privacy.accounting import (
    Dominating,
    Event,
    Guarantee,
    MetricGaussian,
    StopGaussian,
)
from sordino.privacy.ledger import KeptHead, Reserve, Verdict
from sordino.privacy.plan.central import CentralPlan
from sordino.privacy.plan.figures import events_of, guarantee
from sordino.privacy.plan.metrics import MetricPlan
from sordino.privacy.plan.plans import Plan
from sordino.privacy.plan.verification import verify_ledger


@dataclass(frozen=True, kw_only=True)
class Support:
    """A run's guarantee as its ledger alone gives it.

    Attributes:
        plan: The plan that was charged.
        guarantee: Of the holder with most charges: the others' records are protected at least so.
        event: What that holder was charged for one round.
        rounds: How many of the rounds it was charged.
        metric_event: What it was charged for one look at the run's metric; None: nothing.
        looks: How many of the looks it was charged.
        lifetime_epsilon: ε of the unit over all that the ledger holds, this run included: the
            largest of any holder.
        other_runs: Other runs that the same ledgers charge.
        holders: How many ledgers there are, by their heads' hashes.
        dominating: A Gaussian that dominates the loss.
        curve: (ε, δ) points.
    """

    plan: Plan | CentralPlan
    guarantee: Guarantee
    event: Event
    rounds: int
    metric_event: Event | None
    looks: int
    lifetime_epsilon: float
    other_runs: tuple[str, ...]
    holders: Mapping[str, str]
    dominating: Dominating
    curve: tuple[tuple[float, float], ...]


def support(
    plan: Plan | CentralPlan,
    ledger: Path,
    heads: Sequence[KeptHead] = (),
    metric: MetricPlan | None = None,
) -> Support:
    """Replay a ledger, and say what it bears out of a plan's run.

    Args:
        plan: The run's plan: under local trust, the clients' ledgers are asked, under central
            trust the coordinator's.
        ledger: An export, or a ledger.
        heads: Heads that another party kept, if there are any.
        metric: The plan of the metric that the run bought, if it did. Its looks are the run's own
            releases, and compose with the rounds.

    Raises:
        ClaimError: The ledger is defective, doesn't charge this run, or charges it as something
            else than the plans.
        LedgerError: It can't be read.
    """
    verdict = verify_ledger(ledger, delta=plan.delta, heads=heads)
    if not verdict.ok:
        raise ClaimError(f"the ledger {ledger} is defective: {verdict.defects[0]}")
    charged = _charged(plan, verdict, metric)
    most = _most(plan, charged)
    everything = [book.reserved for book in verdict.books.values()]
    events = events_of(most)
    trained = [event for event in events if not isinstance(event, MetricGaussian | StopGaussian)]
    looks = [event for event in events if isinstance(event, MetricGaussian | StopGaussian)]
    if not trained:
        raise ClaimError(f"the ledger charges run {plan.run_id} with its metric and no round")
    composition = _composition(plan, len(trained), metric, len(looks))
    return Support(
        plan=plan,
        guarantee=guarantee(plan, events, composition=composition),
        event=trained[0],
        rounds=len(trained),
        metric_event=looks[0] if looks else None,
        looks=len(looks),
        lifetime_epsilon=max(_lifetime(plan, entries) for entries in everything),
        other_runs=tuple(
            sorted({e.run_id for own in everything for e in own if not _own(plan, e)})
        ),
        holders={client: book.head for client, book in verdict.books.items()},
        dominating=accounting.dominating_gaussian(events),
        curve=accounting.delta_curve(events, plan.delta),
    )


def _own(plan: Plan | CentralPlan, entry: Reserve) -> bool:
    """Whether a charge is of the plan's run: a round, or a look (`<run>:<metric>`)."""
    return entry.run_id == plan.run_id or entry.run_id.startswith(f"{plan.run_id}:")


def _charged(
    plan: Plan | CentralPlan, verdict: Verdict, metric: MetricPlan | None
) -> dict[str, tuple[Reserve, ...]]:
    """Each holder's charges of the run; all of them must be the plans' own."""
    fields = plan.releases.event_fields() if isinstance(plan, CentralPlan) else plan.event_fields()
    known = {plan.run_id: (plan.sha256, fields)}
    if metric is not None:
        known[metric.run_id] = (metric.sha256, metric.event_fields())
    charged: dict[str, tuple[Reserve, ...]] = {}
    for client, book in verdict.books.items():
        own = tuple(entry for entry in book.reserved if _own(plan, entry))
        for entry in own:
            if known.get(entry.run_id) != (entry.plan_sha256, dict(entry.event)):
                raise ClaimError(
                    f"client {client}, entry {entry.index}: charges another plan than the claim's"
                )
        if own:
            charged[client] = own
    if not charged:
        raise ClaimError(f"the ledger charges nothing to run {plan.run_id}")
    return charged


def _lifetime(plan: Plan | CentralPlan, entries: Sequence[Reserve]) -> float:
    unit: accounting.Unit = "user" if plan.unit == "user" else "record"
    return accounting.epsilon_for(unit, events_of(entries), plan.delta)


def _most(
    plan: Plan | CentralPlan, charged: Mapping[str, tuple[Reserve, ...]]
) -> tuple[Reserve, ...]:
    """The charges that cost most: clients hold disjoint records."""
    spent = accounting.spent({c: events_of(own) for c, own in charged.items()}, plan.delta)
    return charged[max(spent, key=lambda client: spent[client])]


def _composition(
    plan: Plan | CentralPlan, rounds: int, metric: MetricPlan | None, looks: int
) -> str:
    text = f"the {rounds} rounds of run {plan.run_id} that were charged, of {plan.rounds} announced"
    if metric is None:
        return text
    return f"{text}, and {looks} looks at its {metric.metric}, of {metric.rounds} announced"

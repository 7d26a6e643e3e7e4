"""What the rounds of a run amount to, by its plans alone: no device tells a coordinator its ε.

An upper bound of what a device released to this run. What its ledger was charged may be more, for a
round that it didn't answer, and is the ledger's to say, as is what it did for others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from sordino.core import canonical
from sordino.privacy.accounting import Event, Guarantee
from sordino.privacy.plan import (
    CentralPlan,
    MetricPlan,
    NoPrivacyPlan,
    decode_metric_plan,
    decode_plan,
    guarantee,
)


def of_plan(plan: bytes, metric: bytes = b"") -> Guarantee:
    """The guarantee of all that a run announces.

    Args:
        plan: Its plan's canonical encoding.
        metric: That of the metric that it buys besides; empty: none.
    """
    rounds = decode_plan(plan).rounds
    if not metric:
        return of_rounds(((plan, rounds),), f"all {rounds} announced rounds of the run, no other")
    looks = decode_metric_plan(metric).rounds
    scope = f"all {rounds} announced rounds of the run and {looks} looks at its metric, no other"
    return of_rounds(((metric, looks), (plan, rounds)), scope)


@lru_cache(maxsize=1024)
def of_rounds(rounds: Sequence[tuple[bytes, int]], composition: str) -> Guarantee:
    """The guarantee of some rounds of a run, and of looks at its metric.

    Args:
        rounds: Canonical encodings of the plans, each with how many rounds were under it; hashable.
            The last one's δ and trust are the guarantee's, and it isn't a metric's.
        composition: What these rounds are, in words.
    """
    last = decode_plan(rounds[-1][0])
    if isinstance(last, NoPrivacyPlan):
        return guarantee(last, (), composition=composition)
    events: list[Event] = []
    for data, number in rounds:
        if canonical.decode(data).get("kind") == MetricPlan.kind:
            events += [decode_metric_plan(data).round_event()] * number
            continue
        plan = decode_plan(data)
        if isinstance(plan, NoPrivacyPlan):  # one round without privacy leaves none to the others
            return guarantee(plan, (), composition=composition)
        # Under central trust each round is one sum, sampled as planned.
        charged = plan.releases if isinstance(plan, CentralPlan) else plan
        events += [charged.round_event()] * number
    return guarantee(last, events, composition=composition)

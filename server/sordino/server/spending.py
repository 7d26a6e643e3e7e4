"""What the rounds of a run amount to, by its plans alone: no device tells a coordinator its ε.

An upper bound of what a device released to this run. What its ledger was charged may be more, for a
round that it didn't answer, and is the ledger's to say, as is what it did for others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from sordino.privacy.accounting import Event, Guarantee
from sordino.privacy.plan import AnyPlan, CentralPlan, NoPrivacyPlan, decode_plan, guarantee


def of_plan(plan: bytes) -> Guarantee:
    """The guarantee of all rounds that a plan announces.

    Args:
        plan: Its canonical encoding.
    """
    rounds = decode_plan(plan).rounds
    return of_rounds(((plan, rounds),), f"all {rounds} announced rounds of the run, and no other")


@lru_cache(maxsize=1024)
def of_rounds(rounds: Sequence[tuple[bytes, int]], composition: str) -> Guarantee:
    """The guarantee of some rounds of a run.

    Args:
        rounds: Canonical encodings of the run's plans, each with how many rounds were under it;
            hashable. δ and trust are the last one's.
        composition: What these rounds are, in words.
    """
    plans = [(decode_plan(plan), number) for plan, number in rounds]
    last = plans[-1][0]
    unbounded = next((plan for plan, _ in plans if isinstance(plan, NoPrivacyPlan)), None)
    if unbounded is not None:  # one round without privacy leaves none to the others
        return guarantee(unbounded, (), composition=composition)
    events = [event for plan, number in plans for event in _events(plan, number)]
    return guarantee(last, events, composition=composition)


def _events(plan: AnyPlan, rounds: int) -> list[Event]:
    """What so many rounds release: under central trust one sum each, sampled as planned."""
    if isinstance(plan, NoPrivacyPlan):
        return []
    charged = plan.releases if isinstance(plan, CentralPlan) else plan
    return [charged.round_event()] * rounds

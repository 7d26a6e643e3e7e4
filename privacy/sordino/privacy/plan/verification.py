"""Verifying an exported ledger, ε included: what an auditor runs, far from the device.

`python -m sordino.privacy.verify` is its command line for a machine with nothing of the fleet.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from sordino.core.errors import PlanError, PolicyError
from sordino.privacy import accounting
from sordino.privacy.accounting import Unit
from sordino.privacy.ledger import (
    Checks,
    KeptHead,
    Limit,
    Reserve,
    Verdict,
    verify_export,
)
from sordino.privacy.plan.figures import events_of
from sordino.privacy.plan.limits import policy_limit
from sordino.privacy.policy import Policy

DELTA = 1e-5


class Replay:
    """ε of charges by pessimistic PLD at one δ: the ledger's `Accountant`."""

    def __init__(self, delta: float) -> None:
        self.delta = delta
        self._known: dict[tuple[object, ...], float] = {}  # clients resemble each other

    def check(self, entry: Reserve) -> None:
        """Refuse an event that can't be accounted for.

        Raises:
            PlanError: Naming the entry.
        """
        events_of([entry])

    def epsilon(self, charges: Sequence[Reserve], unit: str) -> float:
        """Upper bound on one unit's ε of charges that may protect either; infinite: not bounded."""
        events = Counter(events_of(charges))
        key = (unit, *sorted(events.items(), key=repr))
        if key not in self._known:
            whose: Unit = "user" if unit == "user" else "record"
            self._known[key] = accounting.epsilon_for(whose, events.elements(), self.delta)
        return self._known[key]


def verify_ledger(
    path: Path,
    *,
    delta: float = DELTA,
    heads: Sequence[KeptHead] = (),
    policies: Sequence[Policy] = (),
    max_epsilon: float | None = None,
    artefacts: Path | None = None,
    all_artefacts: bool = False,
) -> Verdict:
    """Verify an export, or a ledger itself; see `sordino.privacy.ledger.Checks`.

    With `policies`, each charge is held against the caps of the one that it names, with everything
    that was charged before it; one that names none of them is a defect.

    Raises:
        LedgerError: The file, or the folder of artefacts, can't be read at all.
        PlanError: δ is not in (0, 1).
    """
    if not 0 < delta < 1:
        raise PlanError(f"expected delta in (0, 1), got {delta!r}")
    checks = Checks(
        accountant=Replay(delta),
        heads=heads,
        limits=_limits(policies),
        max_epsilon=max_epsilon,
        artefacts=artefacts,
        all_artefacts=all_artefacts,
    )
    return verify_export(path, checks)


def _limits(policies: Sequence[Policy]) -> dict[str, Limit]:
    def unknown(charged: Sequence[Reserve], new: Reserve) -> None:
        name = new.policy_sha256[:12] or "none"
        raise PolicyError(f"charged under another policy than those given: {name}")

    limits = {policy.sha256: policy_limit(policy) for policy in policies}
    return {"": Limit(would_allow=unknown), **limits} if policies else {}


def describe(verdict: Verdict, delta: float) -> Iterator[str]:
    """A verdict in words, line by line; the last is the verdict itself."""
    yield (
        f"epsilon at delta {delta}, unit as said, add-or-remove-one, sampling as each event says; "
        f"{accounting.accountant()}; over every charge of the key in this file; trust as in the "
        "charged plans"
    )
    for client, book in verdict.books.items():
        states = Counter(standing.state for standing in book.charges.values())
        listing = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        yield f"client {client}: {book.count} entries, head {book.head}; {listing or 'no charge'}"
        for budget in verdict.budgets:
            if budget.client == client:
                scope = f"dataset {budget.dataset}, block {budget.block}"
                figure = "not bounded" if math.isinf(budget.epsilon) else f"<= {budget.epsilon}"
                where = "the whole device" if budget.unit == "user" else scope
                yield f"  unit {budget.unit}, {where}: {budget.charges} charges, epsilon {figure}"
    if verdict.artefacts or verdict.absent:
        yield f"artefacts: {verdict.artefacts} hold, {verdict.absent} not in the folder"
    for defect in verdict.defects:
        yield f"DEFECT {defect}"
    if verdict.ok:
        yield "VERDICT: nothing is wrong with this ledger" + (
            "" if verdict.heads else "; without a kept head, a cut tail can't be seen"
        )
    else:
        count = len(verdict.defects)
        plural = "" if count == 1 else "s"
        yield f"VERDICT: do not believe this ledger: {count} defect{plural}"

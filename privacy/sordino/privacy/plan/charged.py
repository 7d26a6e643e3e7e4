"""What every opening checks: that this very thing is durably charged, and not opened yet."""

from __future__ import annotations

from typing import Protocol

from sordino.core.errors import PlanError, expected
from sordino.privacy.ledger import Charge


class Charged(Protocol):
    """What a charge is held against."""

    @property
    def run_id(self) -> str:
        """The run."""
        ...

    @property
    def rounds(self) -> int:
        """How many rounds were announced."""
        ...

    @property
    def sha256(self) -> str:
        """The plan's name."""
        ...

    def event_fields(self) -> dict[str, str | int | float]:
        """The event of one round."""
        ...


def redeem(plan: Charged, charge: Charge) -> None:
    """Use a charge up.

    Raises:
        PlanError: Not a charge, a charge of another plan, run or event, or one that has been used.
    """
    if type(charge) is not Charge:
        raise PlanError(expected("charge", type(charge).__name__, "to be a Charge of the ledger"))
    entry = charge.entry
    charged = (entry.plan_sha256, entry.run_id, entry.event)
    if charged != (plan.sha256, plan.run_id, plan.event_fields()) or entry.round > plan.rounds:
        raise PlanError(f"entry {entry.index} of client {entry.client} charges another plan")
    if not charge.redeem():
        raise PlanError(f"round {entry.round} was opened before: a charge is good for one round")

"""What every release of a client goes through: charge, make, keep by hash, write down, send.

A retry finds what was kept and sends the same bytes, with no second charge and no second draw.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sordino.core.errors import LedgerError, PlanError
from sordino.core.kept import KeptUpdates
from sordino.privacy.ledger import Charge, Hook, Ledger, Limit
from sordino.privacy.plan import ChargedPlan

LEDGER = "ledger.db"
UPDATES = "updates"

Make = Callable[[Charge], tuple[bytes, object | None]]
"""Makes the answer's bytes from a fresh charge; beside them what the device saw, which stays."""


def answer_once(
    plan: ChargedPlan,
    round_number: int,
    make: Make,
    *,
    state_dir: Path,
    client_id: str,
    dataset_id: str,
    limit: Limit | None,
    at: Hook,
) -> tuple[bytes, object | None]:
    """The bytes that a round of a plan is answered with, made now or kept from before.

    To be called under the client's lock.

    Args:
        plan: What is charged; it has passed the device's policy.
        round_number: Which round, or look, of it.
        make: Touches the data and draws the noise; called only once the charge is durable.
        state_dir: The client's own folder.
        client_id: Whose ledger it is.
        dataset_id: What is charged.
        limit: The policy's caps.
        at: Told each step as it is reached.

    Returns:
        The bytes, and what was seen if they were made now.

    Raises:
        PlanError: The round was answered under another plan.
        LedgerError: It was charged and abandoned, or the disk refuses.
        SordinoError: What `limit` or `make` raised.
    """
    ledger = Ledger(state_dir / LEDGER, client_id, at=at)
    kept = KeptUpdates(state_dir / UPDATES)
    settle(ledger, kept)
    known = ledger.find(plan.run_id, round_number)
    if known is not None and known.state == "released":
        if known.reserve.plan_sha256 != plan.sha256:
            raise PlanError("this round was answered under another plan")
        return kept.read(plan.sha256, round_number, known.artefact), None
    at("task:checked")
    charge = ledger.charge(plan, round_number, dataset_id, limit=limit)
    try:
        data, seen = make(charge)
        at("update:trained")
        digest = kept.keep(plan.sha256, round_number, data)
    except BaseException:
        with suppress(LedgerError):  # else the next start does it
            ledger.abandon(charge.number, "failed")
        raise
    at("update:kept")
    ledger.release(charge.number, digest)
    return data, seen


def settle(ledger: Ledger, kept: KeptUpdates) -> None:
    """Finish what a crash cut short: a kept update is released, any other round abandoned.

    Only under the client's lock: a commit without an outcome is then nobody's work any more.
    """
    for standing in ledger.standings:
        if standing.state != "commit":
            continue
        reserve = standing.reserve
        digest = kept.find(reserve.plan_sha256, reserve.round)
        if digest:
            ledger.release(standing.number, digest)
        else:
            ledger.abandon(standing.number, "interrupted")

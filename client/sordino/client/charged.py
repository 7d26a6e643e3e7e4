"""What every release of a client goes through: charge, make, keep by hash, write down, send.

A retry finds what was kept and sends the same bytes, with no second charge and no second draw.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sordino.core import durable
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


def find_answer(
    state_dir: Path, client_id: str, run_id: str, round_number: int
) -> tuple[str, bytes]:
    """What became of a round's charge, and the kept answer if it was released.

    For whoever owes somebody an answer and isn't sure whether it was made; nothing is charged, made
    or drawn. What a crash cut short is finished first.

    Returns:
        The state of the charge, empty where there is none; and the bytes, empty unless it is
        ``released``.

    Raises:
        LedgerError: The ledger can't be read or believed, or the bytes are gone.
    """
    if not (state_dir / LEDGER).exists():
        return "", b""
    with durable.locked(state_dir / "lock"):
        ledger = Ledger(state_dir / LEDGER, client_id)
        kept = KeptUpdates(state_dir / UPDATES)
        settle(ledger, kept)
        known = ledger.find(run_id, round_number)
        if known is None or known.state != "released":
            return known.state if known else "", b""
        data = kept.read(known.reserve.plan_sha256, round_number, known.artefact)
        return known.state, data


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

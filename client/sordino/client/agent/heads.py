"""Signed heads of the device's own ledger: what an update's receipt and a greeting carry."""

from __future__ import annotations

from pathlib import Path

from sordino.core.contract import SignedHead
from sordino.core.errors import ContractError, LedgerError
from sordino.core.records import Receipt
from sordino.privacy.ledger import Opened, Rekeyed
from sordino.privacy.ledger.entries import parse_line
from sordino.privacy.ledger.export import read_lines
from sordino.privacy.ledger.keys import signature_holds


def signed_head(ledger: Path, index: int | None = None) -> SignedHead | None:
    """An entry of a ledger by index and hash, with the signature that it was written with.

    Args:
        ledger: The ledger's file.
        index: Which entry; None: the last.

    Returns:
        None where there is no ledger yet, or it is empty, or has no such entry.

    Raises:
        LedgerError: It can't be read.
    """
    if not ledger.is_file():
        return None
    lines = read_lines(ledger)
    if index is not None:
        lines = lines[: index + 1] if index < len(lines) else []
    if not lines:
        return None
    key = signer = ""
    for line in lines:
        signer = key
        if b'"public_key"' in line:
            entry = parse_line(line).entry
            if isinstance(entry, Opened | Rekeyed):  # a new key is signed in by the one before
                signer, key = key or entry.public_key, entry.public_key
    last = parse_line(lines[-1])
    return SignedHead(
        receipt=Receipt(ledger_head=last.entry.sha256, entry_index=last.entry.index),
        public_key=signer,
        signature=last.signature,
    )


def check_not_rolled_back(ledger: Path, known: SignedHead) -> None:
    """Refuse to go on with a ledger that is behind, or beside, a head that another party kept.

    Raises:
        LedgerError: Somebody put an older copy back, or another ledger in its place.
        ContractError: ``wrong-receipt``: nobody ever signed that head.
    """
    if not signature_holds(known.public_key, known.receipt.ledger_head, known.signature):
        raise ContractError("wrong-receipt", "the head that the coordinator keeps isn't signed")
    own = signed_head(ledger, known.receipt.entry_index)
    if own != known:
        raise LedgerError(
            f"{ledger} was rolled back: the coordinator keeps its entry "
            f"{known.receipt.entry_index}, which is not here. Restore the ledger that was in use; "
            "what it charged can't be forgotten"
        )

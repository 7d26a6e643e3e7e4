"""The device's own ledger: what was spent, durable before any noise is drawn.

A round goes through `reserve` (the cap is checked and the budget set aside, in one transaction),
`commit` (the point of no return; what it gives back is the proof without which no round opens),
and `release` (the bytes that may leave, by hash) or `abandon`. `charge` is the first two. Every one
of them returns only when its entry is on stable storage.

Charges never expire: neither a changed file, nor deleted data, nor another run or model brings
budget back. A ledger whose database is gone while its key is here refuses to begin again.

A cut tail, or an older copy put back together with its key, can't be seen from the device alone:
let another party keep `head`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from sordino.core.errors import LedgerError, SordinoError, expected
from sordino.privacy.ledger.book import Standing
from sordino.privacy.ledger.charges import KEY, Charge, Limit
from sordino.privacy.ledger.entries import (
    WHOLE,
    Abandoned,
    Chargeable,
    Commit,
    Head,
    Released,
    Reserve,
    Retired,
)
from sordino.privacy.ledger.writer import Hook, Page, Pen


def no_hook(step: str) -> None:
    """The hook that does nothing."""


@final
class Ledger:
    """A client's own ledger. Several processes may share it: writers wait for one another.

    Args:
        path: The database; made with its folders if absent, readable by its owner only. The key
            lies beside it, `<name>.key`, and its lock, `<name>.lock`.
        client_id: Whose ledger this is. A file of another client is refused.
        now: The clock.
        at: Told each step as it is reached.

    Raises:
        LedgerError: It can't be read or written, is damaged, or one of its two files is missing.
    """

    def __init__(
        self,
        path: Path,
        client_id: str,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        at: Hook = no_hook,
    ) -> None:
        if not client_id:
            raise LedgerError(expected("client_id", client_id, "not empty"))
        self.path = path
        self.client_id = client_id
        self._pen = Pen(path, client_id, now=now, at=at)

    @property
    def standings(self) -> tuple[Standing, ...]:
        """Every charge and how far it came, oldest first, freshly read."""
        with self._pen.page("read") as page:
            return tuple(page.book.charges.values())

    @property
    def head(self) -> Head:
        """Where the ledger stands. Let another party keep it: it exposes a rollback."""
        with self._pen.page("read") as page:
            return page.book.head_to_keep()

    def find(self, run_id: str, round_number: int) -> Standing | None:
        """The charge of a run's round, if there is one."""
        with self._pen.page("read") as page:
            return page.book.find(run_id, round_number)

    def charge(
        self,
        plan: Chargeable,
        round_number: int,
        dataset_id: str,
        *,
        block: str = WHOLE,
        limit: Limit | None = None,
    ) -> Charge:
        """Reserve and commit one round's event, and return the proof.

        From here on the round is spent, whether or not it is trained, finished or sent. A round
        that was reserved with the same terms, and not committed, goes on.

        Args:
            plan: The plan whose round is to begin.
            round_number: 1 .. plan.rounds.
            dataset_id: The stable name of the records that will be used.
            block: Their time block, where the dataset is divided into blocks.
            limit: The device's lifetime cap.

        Raises:
            LedgerError: This run's round is already charged (resend the kept bytes), the round is
                not in the plan, the block is retired, or the disk refuses.
            SordinoError: What `limit` raised: nothing new is charged.
        """
        number = self.reserve(plan, round_number, dataset_id, block=block, limit=limit)
        return self.commit(number)

    def reserve(
        self,
        plan: Chargeable,
        round_number: int,
        dataset_id: str,
        *,
        block: str = WHOLE,
        limit: Limit | None = None,
    ) -> int:
        """Check the cap and set the budget aside; see `charge`. Returns the charge's number."""
        if type(round_number) is not int or not 1 <= round_number <= plan.rounds:
            raise LedgerError(expected("round", round_number, f"in 1..{plan.rounds}"))
        terms: dict[str, Any] = {
            "run_id": plan.run_id,
            "round": round_number,
            "dataset": dataset_id,
            "block": block,
            "unit": plan.unit,
            "neighbouring": plan.neighbouring,
            "event": plan.event_fields(),
            "plan_sha256": plan.sha256,
        }
        with self._pen.page("write") as page:
            known = page.book.find(plan.run_id, round_number)
            if known is not None and (known.state != "reserve" or known.reserve.terms() != terms):
                raise LedgerError(
                    f"round {round_number} of run {plan.run_id} is already charged to client "
                    f"{self.client_id} (entry {known.number}): a retry resends the same bytes"
                )
            policy = limit.policy_sha256 if limit else ""
            entry = known.reserve if known else page.next(Reserve, **terms, policy_sha256=policy)
            refusal = _refusal(page, entry, limit)
            if refusal is None and known is None:
                page.append(entry)
        if refusal is not None:  # only now, so that a retirement is kept
            raise refusal
        return entry.index

    def commit(self, number: int) -> Charge:
        """Pass the point of no return of a reservation, once, and return the proof."""
        with self._pen.page("write") as page:
            commit = page.next(Commit, charge=number)
            page.append(commit)
            reserve = page.book.charges[number].reserve
        return Charge(reserve, commit, _key=KEY)

    def release(self, number: int, artefact_sha256: str) -> None:
        """Write down the bytes that may leave; call it when they are kept, before they are sent.

        Raises:
            LedgerError: The charge isn't committed, or was released or abandoned before.
        """
        with self._pen.page("write") as page:
            page.append(page.next(Released, charge=number, artefact=artefact_sha256))

    def abandon(self, number: int, reason: str) -> None:
        """Write down that nothing of a charge will ever leave. It stays charged.

        Args:
            number: The charge.
            reason: A stable word that says nothing of the data: `failed`, `interrupted`.

        Raises:
            LedgerError: The charge was released or abandoned before.
        """
        with self._pen.page("write") as page:
            page.append(page.next(Abandoned, charge=number, reason=reason))

    def retire(self, dataset_id: str, block: str = WHOLE) -> None:
        """Let a block go for good: nothing is charged to it any more.

        Raises:
            LedgerError: It was retired before.
        """
        with self._pen.page("write") as page:
            page.append(page.next(Retired, dataset=dataset_id, block=block))

    def rotate_key(self) -> str:
        """Replace the signing key; the old one signs the new one in. Returns the new public key.

        Raises:
            LedgerError: The disk refuses; the old key is then still good.
        """
        return self._pen.rotate()


def _refusal(page: Page, entry: Reserve, limit: Limit | None) -> SordinoError | None:
    """What the limit says against an entry; a block that is spent is retired on this page."""
    if limit is None:
        return None
    others = tuple(charged for charged in page.book.reserved if charged.index != entry.index)
    try:
        limit.would_allow(others, entry)
    except SordinoError as error:
        retired = page.book.is_retired(entry.dataset, entry.block)
        if limit.is_spent is not None and not retired and limit.is_spent(others, entry):
            page.append(page.next(Retired, dataset=entry.dataset, block=entry.block))
        return error
    return None

"""What a charge is allowed by, and what proves that it is durable."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, final

from sordino.core.errors import LedgerError
from sordino.privacy.ledger.entries import Commit, Reserve

KEY: Final = object()  # the ledger's own: who holds it makes charges


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A lifetime cap, asked inside the transaction that charges.

    Attributes:
        would_allow: Called with everything that is charged to the device, and with a new charge;
            raises a `SordinoError` to refuse, and then nothing is charged. `against` picks what
            adds up with the new one, for either unit.
        policy_sha256: The policy this cap comes from; it is written beside the charge.
        is_spent: Asked after a refusal, about the same: whether no charge to this block that the
            policy allows could still fit. The block is then retired for good.
    """

    would_allow: Callable[[Sequence[Reserve], Reserve], None]
    policy_sha256: str = ""
    is_spent: Callable[[Sequence[Reserve], Reserve], bool] | None = None


@final
class Charge:
    """Proof that a commit is durable. Made by `Ledger` alone; good for one round, once.

    It can't be copied or pickled, and a forked process can't use its parent's.
    """

    __slots__ = ("_commit", "_lock", "_process", "_reserve", "_used")

    def __init__(self, reserve: Reserve, commit: Commit, *, _key: object = None) -> None:
        if _key is not KEY:
            raise LedgerError("a charge comes from Ledger.charge: nothing else proves durability")
        self._reserve = reserve
        self._commit = commit
        self._used = False
        self._process = os.getpid()
        self._lock = threading.Lock()

    @property
    def entry(self) -> Reserve:
        """What is charged."""
        return self._reserve

    @property
    def commit(self) -> Commit:
        """The durable commit; its hash was the ledger's head when the round could begin."""
        return self._commit

    @property
    def number(self) -> int:
        """How the ledger calls this charge."""
        return self._reserve.index

    def redeem(self) -> bool:
        """True the first time, False ever after."""
        with self._lock:
            fresh = not self._used and self._process == os.getpid()
            self._used = True
        return fresh

    def __reduce__(self) -> NoReturn:
        raise LedgerError("a charge can't be copied: it is good for one round, once")

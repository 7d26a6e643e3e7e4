"""What a fleet holds an update against, apart from how it is kept."""

from __future__ import annotations

from typing import Protocol

from sordino.core.contract import SignedHead
from sordino.server.store import Round


class Work(Protocol):
    """The check of a run's updates. The state machine sees bytes alone."""

    def check(self, asked: Round, data: bytes) -> SignedHead | None:
        """Hold an update against its round, and give its receipt if it has one.

        After a crash it is called again with the same arguments.

        Raises:
            ContractError: The bytes are no update.
            UpdateRejectedError: The round doesn't allow it.
        """
        ...

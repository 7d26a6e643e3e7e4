"""What a run's rounds compute, apart from how they are kept: whom to ask, what to take and make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from sordino.core.contract import SignedHead
from sordino.server.store import Round, Run


class Work(Protocol):
    """The content of a run's rounds. The state machine sees bytes alone.

    After a crash any of these is called again with the same arguments.
    """

    def choose(self, run: Run, number: int, devices: Sequence[str], wanted: int) -> Sequence[str]:
        """Whom a round asks.

        Args:
            run: The run.
            number: The round.
            devices: Those at hand, sorted.
            wanted: As many as the cohort and its reserve; not binding under secret coins.
        """
        ...

    def check(self, asked: Round, data: bytes) -> SignedHead | None:
        """Hold an update against its round, and give its receipt if it has one.

        Raises:
            ContractError: The bytes are no update.
            UpdateRejectedError: The round doesn't allow it.
        """
        ...

    def aggregate(
        self, closed: Round, adapter: bytes | None, updates: Iterable[bytes]
    ) -> bytes | None:
        """Make the next adapter of a closed round.

        Args:
            closed: The round; no more than its `asked` can have answered.
            adapter: The artefact before it; None: the public initial adapter.
            updates: Those that were accepted, one at a time, sorted by device.

        Returns:
            The artefact after it, the same bytes whenever it is called again; None: nothing of this
            round will ever leave (under central trust, its charge was spent and its noise lost).
        """
        ...

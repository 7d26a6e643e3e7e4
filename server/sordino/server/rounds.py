"""The one loop over a run's rounds: on any grid, wherever the run's standing is kept.

Where a run stands and where its results go is `Rounds`' to say: `MemoryRounds` for a simulation and
stock Flower, `sordino.server.fleet_run.DurableRounds` for a fleet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from flwr.app import Message
from flwr.serverapp import Grid

from sordino.core.errors import RoundFailedError
from sordino.core.records import Tensors
from sordino.server.strategy import RoundReport, SordinoStrategy

log = logging.getLogger(__name__)

OnRound = Callable[[int, Tensors, RoundReport], None]
OnReply = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """The round that is to be run.

    Attributes:
        number: From 1.
        strategy: Holds the plan that the round is under.
        adapter: All tensors, as they are before it.
        node_ids: Who may be asked; None: all nodes that the grid then knows.
        drawn: Whether `node_ids` are those whom its secret coins have picked already: a round that
            goes on after a restart asks the same.
        made: What it made before a restart: a look at it and its publication are left.
    """

    number: int
    strategy: SordinoStrategy
    adapter: Tensors
    node_ids: Sequence[int] | None = None
    drawn: bool = False
    made: Tensors | None = None


class Rounds(Protocol):
    """Where a run stands, and where its results go."""

    def next(self) -> Turn | None:
        """The round to run now, perhaps one that a crash cut short; None: no more."""
        ...

    def keep(self, turn: Turn, adapter: Tensors, report: RoundReport) -> bool:
        """Keep what a round made, before anything else is asked; False: it counts no more."""
        ...

    def publish(self, turn: Turn, adapter: Tensors, report: RoundReport) -> None:
        """The round is done: the next one begins from its adapter."""
        ...

    def fail(self, turn: Turn, error: RoundFailedError) -> None:
        """Too few answered: raise to end the run, or go on to the next round."""
        ...


class MemoryRounds:
    """Rounds in order, from any to the plan's last; a round that fails ends the run.

    Resuming is beginning again with the adapter that the last `on_round` was given and its round
    plus one. A round that failed may be run again as it is: clients that had already answered
    resend the same bytes. The same holds for a look at a paid metric, which is taken before
    `on_round` is told: `strategy.looks.last` is then the round's, if one follows it.

    Args:
        strategy: Holds the plan; the plan holds the number of rounds.
        adapter: All tensors, as they are before `start_round`; as they are now, afterwards.
        node_ids: The cohort; None: in each round all nodes that the grid then knows.
        start_round: The first round to run.
        on_round: Called after each round with its number, the new adapter and the report.
    """

    def __init__(
        self,
        strategy: SordinoStrategy,
        adapter: Tensors,
        *,
        node_ids: Sequence[int] | None = None,
        start_round: int = 1,
        on_round: OnRound | None = None,
    ) -> None:
        self.adapter = adapter
        self._strategy = strategy
        self._node_ids = node_ids
        self._number = start_round
        self._on_round = on_round

    def next(self) -> Turn | None:
        """See `Rounds.next`."""
        if self._number > self._strategy.plan.rounds:
            return None
        return Turn(
            number=self._number,
            strategy=self._strategy,
            adapter=self.adapter,
            node_ids=self._node_ids,
        )

    def keep(self, turn: Turn, adapter: Tensors, report: RoundReport) -> bool:
        """See `Rounds.keep`."""
        return True

    def publish(self, turn: Turn, adapter: Tensors, report: RoundReport) -> None:
        """See `Rounds.publish`."""
        self.adapter, self._number = adapter, turn.number + 1
        if self._on_round is not None:
            self._on_round(turn.number, adapter, report)

    def fail(self, turn: Turn, error: RoundFailedError) -> None:
        """See `Rounds.fail`."""
        raise error


def run_rounds(grid: Grid, rounds: Rounds, *, on_reply: OnReply | None = None) -> None:
    """Run rounds until there are no more.

    Under central trust a round that was charged before a crash asks nobody: its kept update is
    taken, or, if none was kept, the adapter stays as it was.

    Args:
        grid: Where the clients are.
        rounds: Where the run stands, and where its results go.
        on_reply: Called for each reply, good or bad, with the node that it came from.

    Raises:
        RoundFailedError: Too few valid updates, where that ends the run.
    """
    while (turn := rounds.next()) is not None:
        adapter, report = turn.made, _nothing(turn.number)
        if adapter is None:
            try:
                adapter, report = _settled(turn) or _run(grid, turn, on_reply)
            except RoundFailedError as error:
                rounds.fail(turn, error)
                continue
            log.info("round %d: %d updates of %d", turn.number, report.received, report.sent)
            if not rounds.keep(turn, adapter, report):
                continue
        if turn.strategy.looks is not None:
            turn.strategy.looks.take(grid, turn.number, adapter, turn.node_ids)
        rounds.publish(turn, adapter, report)


def _run(grid: Grid, turn: Turn, on_reply: OnReply | None) -> tuple[Tensors, RoundReport]:
    cohort = sorted(grid.get_node_ids()) if turn.node_ids is None else turn.node_ids
    strategy = turn.strategy
    messages = strategy.open_round(turn.number, turn.adapter, cohort, drawn=turn.drawn)
    timeout = strategy.federation.round_timeout_s
    replies = grid.send_and_receive(messages, timeout=timeout) if messages else ()
    return strategy.close_round(_told(replies, on_reply))


def _settled(turn: Turn) -> tuple[Tensors, RoundReport] | None:
    """What a round that was charged before a crash left; None: it may be run."""
    releases = turn.strategy.releases
    settled = releases.settle(turn.number, turn.adapter) if releases else None
    if settled is None:
        return None
    state = settled.state
    log.warning("round %d was charged before and is %s: nobody is asked", turn.number, state)
    return settled.adapter, replace(_nothing(turn.number), settled=state)


def _nothing(number: int) -> RoundReport:
    """The report of a round that asked nobody, in this life."""
    return RoundReport(
        round=number,
        sent=0,
        received=0,
        dropped=(),
        bytes_down=0,
        bytes_up=0,
        wall_s=0.0,
    )


def _told(replies: Iterable[Message], on_reply: OnReply | None) -> Iterator[Message]:
    for reply in replies:
        yield reply
        if on_reply is not None:
            on_reply(reply.metadata.src_node_id)

"""The loop over a plan's rounds: from any start round, on any grid."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from sordino.core.records import Tensors
from sordino.server.strategy import RoundReport, SordinoStrategy

log = logging.getLogger(__name__)

OnRound = Callable[[int, Tensors, RoundReport], None]
OnReply = Callable[[int], None]


def run_rounds(
    grid: Grid,
    strategy: SordinoStrategy,
    adapter: Tensors,
    *,
    node_ids: Sequence[int] | None = None,
    start_round: int = 1,
    on_round: OnRound | None = None,
    on_reply: OnReply | None = None,
) -> Tensors:
    """Run the plan's rounds from `start_round` to the last.

    Resuming is calling this again with the adapter that the last `on_round` was given and its
    round plus one. A round that failed may be run again as it is: clients that had already answered
    resend the same bytes. The same holds for a look at a paid metric, which is taken before
    `on_round` is told: `strategy.looks.last` is then the round's, if one follows it.
    Under central trust a round that was charged before a crash asks nobody: its kept update is
    taken, or, if none was kept, the adapter stays as it was.

    Args:
        grid: Where the clients are.
        strategy: Holds the plan; the plan holds the number of rounds.
        adapter: All tensors, as they are before `start_round`.
        node_ids: The cohort; None: in each round all nodes that the grid then knows.
        start_round: The first round to run.
        on_round: Called after each round with its number, the new adapter and the report.
        on_reply: Called for each reply, good or bad, with the node that it came from.

    Returns:
        The adapter after the last round.

    Raises:
        RoundFailedError: Too few valid updates.
    """
    for number in range(start_round, strategy.plan.rounds + 1):
        settled = _settled(strategy, number, adapter)
        adapter, report = settled or _run(grid, strategy, number, adapter, node_ids, on_reply)
        log.info("round %d: %d updates of %d", number, report.received, report.sent)
        if strategy.looks is not None:
            strategy.looks.take(grid, number, adapter, node_ids)
        if on_round is not None:
            on_round(number, adapter, report)
    return adapter


def _run(
    grid: Grid,
    strategy: SordinoStrategy,
    number: int,
    adapter: Tensors,
    node_ids: Sequence[int] | None,
    on_reply: OnReply | None,
) -> tuple[Tensors, RoundReport]:
    cohort = sorted(grid.get_node_ids()) if node_ids is None else node_ids
    messages = strategy.open_round(number, adapter, cohort)
    timeout = strategy.federation.round_timeout_s
    replies = grid.send_and_receive(messages, timeout=timeout) if messages else ()
    return strategy.close_round(_told(replies, on_reply))


def _settled(
    strategy: SordinoStrategy, number: int, adapter: Tensors
) -> tuple[Tensors, RoundReport] | None:
    """What a round that was charged before a crash left; None: it may be run."""
    settled = strategy.releases.settle(number, adapter) if strategy.releases else None
    if settled is None:
        return None
    log.warning("round %d was charged before and is %s: nobody is asked", number, settled.state)
    nothing = RoundReport(
        round=number,
        sent=0,
        received=0,
        dropped=(),
        bytes_down=0,
        bytes_up=0,
        wall_s=0.0,
        settled=settled.state,
    )
    return settled.adapter, nothing


def _told(replies: Iterable[Message], on_reply: OnReply | None) -> Iterator[Message]:
    for reply in replies:
        yield reply
        if on_reply is not None:
            on_reply(reply.metadata.src_node_id)

"""One message to each node, and what became of it: a bad reply is dropped with a stable word."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict

from sordino.core import app
from sordino.core.contract import REASONS
from sordino.core.errors import UpdateRejectedError, WireError
from sordino.core.wire import Envelope

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A message that brought nothing usable, and the stable word for why."""

    node_id: int
    reason: str
    detail: str = ""


@dataclass
class Asked:
    """Messages that were made, and what came back."""

    number: int
    messages: Sequence[Message]
    bytes_down: int
    started: float
    bytes_up: int = 0
    dropped: list[Dropped] = field(default_factory=list)

    @property
    def wall_s(self) -> float:
        """How long it has been."""
        return time.monotonic() - self.started

    def collect(self, replies: Iterable[Message], accept: Callable[[Envelope], None]) -> None:
        """Give each message's first reply to `accept`; drop what it refuses, and who is silent.

        Args:
            replies: As they come; none is held on to.
            accept: Takes a reply's content, or raises `UpdateRejectedError`.
        """
        waiting = _waiting(self.messages)
        for reply in replies:
            node_id = waiting.pop(reply.metadata.reply_to_message_id, None)
            self.bytes_up += app.records_size(reply.content) if reply.has_content() else 0
            try:
                if node_id is None:
                    raise UpdateRejectedError("unexpected", "no message is waiting for this reply")
                accept(_content(reply))
            except UpdateRejectedError as error:
                source = reply.metadata.src_node_id if node_id is None else node_id
                self._drop(source, error.reason, str(error))
        for node_id in waiting.values():
            self._drop(node_id, "no-reply", "nothing came before the round's end")

    def _drop(self, node_id: int, reason: str, detail: str) -> None:
        log.warning("round %d: dropped node %d: %s (%s)", self.number, node_id, reason, detail)
        self.dropped.append(Dropped(node_id=node_id, reason=reason, detail=detail))


def ask(
    content: RecordDict, nodes: Iterable[int], *, message_type: str, ttl_s: float, number: int
) -> Asked:
    """Make one message a node, all of the same content."""
    started = time.monotonic()
    messages = [
        Message(
            content,
            dst_node_id=node_id,
            message_type=message_type,
            ttl=ttl_s,
            group_id=str(number),
        )
        for node_id in nodes
    ]
    return Asked(number, messages, app.records_size(content) * len(messages), started)


def malformed(error: WireError) -> UpdateRejectedError:
    """The refusal of a reply that can't be decoded."""
    return UpdateRejectedError("malformed", str(error))


def _content(reply: Message) -> Envelope:
    if reply.has_error():
        raise UpdateRejectedError(*_error_reason(reply))
    try:
        return app.from_records(reply.content)
    except WireError as error:
        raise malformed(error) from error


def _waiting(messages: Sequence[Message]) -> dict[str, int]:
    """Which node each message's id waits for; the grid gave the ids when it sent them."""
    return {
        message.metadata.message_id or f"not sent {number}": message.metadata.dst_node_id
        for number, message in enumerate(messages)
    }


def _error_reason(reply: Message) -> tuple[str, str]:
    code, detail = reply.error.code, (reply.error.reason or "")[:200]
    if code == app.ERROR_REJECTED and detail in REASONS:  # else a client's own words
        return detail, "refused when it came"
    reason = {
        app.ERROR_REFUSED: "client-refused",
        app.ERROR_WORKER: "client-died",
        app.ERROR_EXPIRED: "too-late",
        app.ERROR_MALFORMED: "malformed",
    }.get(code, "client-error")
    return reason, f"code {code}, {detail!r}"

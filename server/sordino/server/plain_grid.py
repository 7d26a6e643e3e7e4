"""The part of Flower's Grid in which our grids don't differ."""

from __future__ import annotations

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from sordino.core import app as flower


class PlainGrid(Grid):
    """What every grid of ours does alike: it works for a run, and makes messages.

    Args:
        run_id: Flower's number of the run.
    """

    def __init__(self, run_id: int) -> None:
        self._run = flower.empty_run(run_id)

    def set_run(self, run: flower.Run) -> None:
        """Take the description of the run that this grid works for."""
        self._run = run

    @property
    def run(self) -> flower.Run:
        """The description of the run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message; `Message(...)` does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

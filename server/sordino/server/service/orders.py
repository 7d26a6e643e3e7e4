"""A task as a device is sent it: the same each time, but for the time that is left."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace
from typing import Final

from sordino.core.contract import TaskOrder, task_message
from sordino.protos.v1 import work_pb2
from sordino.server.fleet_rounds import Fleet, order_of
from sordino.server.store import Task

_MOST_ROUNDS: Final = 32


class Orders:
    """Makes the messages of tasks, from any thread.

    What a round works with is fixed when it opens, so it is read once for all of its cohort.

    Args:
        fleet: Rows and files.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._lock = threading.Lock()
        self._rounds: OrderedDict[tuple[str, int], TaskOrder] = OrderedDict()

    def message(self, task: Task) -> work_pb2.Task:
        """The message of a task.

        Raises:
            StoreError: The plan's file can't be read.
        """
        name = task.run_id, task.round
        with self._lock:
            order = self._rounds.get(name)
        if order is None:
            order = order_of(self._fleet, task)
            with self._lock:
                self._rounds[name] = order
                if len(self._rounds) > _MOST_ROUNDS:
                    self._rounds.popitem(last=False)
        left_ms = max(1, task.deadline_ms - self._fleet.now_ms())
        return task_message(replace(order, task_id=task.task_id, expires_in_ms=left_ms))

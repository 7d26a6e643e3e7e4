"""One look at the store for all streams that wait, instead of one for each."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from sordino.core.errors import SordinoError
from sordino.server.bell import Bell
from sordino.server.fleet_rounds import Fleet
from sordino.server.logs import say
from sordino.server.service.presence import Presence
from sordino.server.store import Device, Event, Task
from sordino.server.store.records import UNFINISHED_TASKS

SETTLE_S: Final = 0.02
"""Rings within so long of each other are one look."""

REST: Final = 4
"""So many times as long as a look took is the least until the next one."""

_LOG = logging.getLogger(__name__)


class Watch:
    """Hears the bell, and wakes the streams of those devices for which something changed.

    Each change that a waiting device should hear of comes with an event in the same transaction, so
    the number of the last event says whether there is anything to look for; also what another
    process wrote, which rings no bell here.

    Args:
        fleet: Whose store.
        bell: Rung when it changed.
        presence: Who waits.
        tick_s: Looks at least this often.
    """

    def __init__(self, fleet: Fleet, bell: Bell, presence: Presence, tick_s: float) -> None:
        self._fleet, self._bell, self._presence = fleet, bell, presence
        self._tick_s = tick_s
        self._number = -1
        self._known: dict[str, tuple[str, ...]] = {}

    async def run(self) -> None:
        """Watch until cancelled; a store that can't be read is tried again."""
        heard = self._bell.count
        while True:
            begun = time.monotonic()
            try:
                self._presence.wake(await asyncio.to_thread(self._look))
            except SordinoError as error:
                say(_LOG, "watch-failed", logging.ERROR, why=str(error))
            await asyncio.sleep(max(SETTLE_S, REST * (time.monotonic() - begun)))
            heard = await self._bell.listen(heard, self._tick_s)

    def _look(self) -> list[str]:
        """The devices whose state or unfinished tasks aren't what they were."""
        with self._fleet.store.read() as rows:
            number = rows.largest(Event, "number")
            if number == self._number:
                return []
            now: dict[str, tuple[str, ...]] = {
                row.device_id: (row.state,) for row in rows.all(Device)
            }
            for task in rows.all(Task, state=UNFINISHED_TASKS):
                now[task.device_id] = (*now[task.device_id], task.task_id)
        before, self._known, self._number = self._known, now, number
        return [name for name, state in now.items() if before.get(name) != state]

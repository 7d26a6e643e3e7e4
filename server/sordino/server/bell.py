"""Tells the threads and tasks of a coordinator that its store has changed.

A bell carries no news: who hears it looks at the store. So a ring that is missed costs nothing but
the wait until the next one, and what is true is in one place.
"""

from __future__ import annotations

import asyncio
import threading

from sordino.server.store import Hook, no_hook


class Bell:
    """Rung after each durable transaction; may be rung and heard from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    @property
    def count(self) -> int:
        """How often it has rung."""
        with self._changed:
            return self._count

    def hook(self, then: Hook = no_hook) -> Hook:
        """A hook for `open_fleet`: rings when a transaction is durable, then calls `then`."""

        def at(step: str) -> None:
            if step.endswith(":durable"):
                self.ring()
            then(step)

        return at

    def ring(self) -> None:
        """Wake whoever waits."""
        with self._changed:
            self._count += 1
            self._changed.notify_all()
            waiting, self._waiting = self._waiting, set()
        for loop, event in waiting:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

    def wait(self, heard: int, timeout_s: float) -> int:
        """Block until it has rung more than `heard` times, or the time is up; the present count."""
        with self._changed:
            self._changed.wait_for(lambda: self._count > heard, timeout_s)
            return self._count

    async def listen(self, heard: int, timeout_s: float) -> int:
        """`wait` for a task of a running event loop."""
        event = asyncio.Event()
        key = (asyncio.get_running_loop(), event)
        with self._changed:
            if self._count > heard:
                return self._count
            self._waiting.add(key)
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            pass
        finally:
            with self._changed:
                self._waiting.discard(key)
        return self.count

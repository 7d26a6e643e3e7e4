"""A thread with an event loop of its own, for a service beside a coordinator's other threads."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress

_LOG = logging.getLogger(__name__)

Serve = Callable[[Callable[[], None], asyncio.Event], Awaitable[None]]
"""Given what to call once it serves, and the event after which it is to end."""


class LoopThread:
    """Runs `serve` from `start` to `stop`.

    Args:
        name: The thread's.
        serve: What runs in it.
    """

    def __init__(self, name: str, serve: Serve) -> None:
        self._serve = serve
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._settled = threading.Event()  # it serves, or has ended
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    def start(self) -> None:
        """Begin, and wait until it serves; what it raises before that is raised here."""
        self._thread.start()
        self._settled.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error

    def stop(self) -> None:
        """Let it end, and wait for that. Again, or before it began: nothing."""
        if self._loop is None or self._stop is None or not self._thread.is_alive():
            return
        with suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def is_alive(self) -> bool:
        """Whether it has begun and hasn't ended."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception as error:  # whatever it was: whoever started it must know
            self._error = error
            _LOG.error("the thread %s failed", self._thread.name, exc_info=error)
        finally:
            self._settled.set()

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await self._serve(self._settled.set, self._stop)

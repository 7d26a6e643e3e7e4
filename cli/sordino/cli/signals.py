"""How a command that runs until it is stopped learns that it should."""

from __future__ import annotations

import signal
import threading
from types import FrameType


def stop_by_signal() -> threading.Event:
    """An event that the first SIGTERM or SIGINT sets; a second SIGINT interrupts at once."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    return stop

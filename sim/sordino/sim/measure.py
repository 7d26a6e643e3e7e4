"""Memory and energy of the processes that train."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

from sordino.client.device import energy_joules, resident_mb


def processor_s() -> float:
    """Processor time of this process and of those that it started and that have ended."""
    return sum(os.times()[:4])


class Meter:
    """Reads peak memory and energy since it was made."""

    def __init__(self, process_ids: Iterable[int]) -> None:
        """Start measuring.

        Args:
            process_ids: The workers; none: this process does the work.
        """
        self._ids = list(process_ids)
        self._joules = energy_joules()
        self._started = time.monotonic()

    def read(self) -> dict[str, float | None]:
        """Peak resident memory of the largest process in MB, and the machine's joules so far."""
        joules = energy_joules()
        spent = None if joules is None or self._joules is None else joules - self._joules
        return {"peak_rss_mb": self._peak_mb(), "joules": spent}

    def _peak_mb(self) -> float | None:
        files = [Path(f"/proc/{number}/status") for number in self._ids or [os.getpid()]]
        peaks = [peak for file in files if (peak := resident_mb("VmHWM", file)) is not None]
        return max(peaks, default=None)

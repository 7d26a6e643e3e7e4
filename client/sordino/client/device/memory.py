"""Memory, as the kernel tells it."""

from __future__ import annotations

from pathlib import Path


def resident_mb(field: str = "VmRSS", status: Path = Path("/proc/self/status")) -> float | None:
    """A memory field of a process: ``VmRSS`` now, ``VmHWM`` at its peak.

    Not getrusage's peak: there, what the process was before it became this program counts.

    Returns:
        MB (10⁶ bytes); None where the kernel doesn't say.
    """
    try:
        lines = status.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(found[0]) * 1024 / 1e6 if found else None


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """What could be used now without swapping; 0 where the kernel doesn't say."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else 0

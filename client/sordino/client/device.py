"""What a device can say of itself: the energy its processor has used, a process' memory."""

from __future__ import annotations

from pathlib import Path

_RAPL = Path("/sys/class/powercap")


def energy_joules(root: Path = _RAPL) -> float | None:
    """Joules since boot of all processor packages, from Intel's or AMD's RAPL counters.

    The counters wrap around after hours; a reading is only good as a difference over minutes.

    Args:
        root: The kernel's powercap folder.

    Returns:
        None where there is no counter that this user may read.
    """
    total = 0.0
    packages = [p for p in sorted(root.glob("intel-rapl:*")) if p.name.count(":") == 1]
    if not packages:
        return None
    for package in packages:
        try:
            total += int((package / "energy_uj").read_text()) / 1e6
        except (OSError, ValueError):
            return None
    return total


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

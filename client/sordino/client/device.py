"""What a device can say of itself: here, the energy its processor has used."""

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

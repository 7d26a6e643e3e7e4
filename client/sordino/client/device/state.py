"""The state a device is in: its power, how busy it is, how warm. What isn't known is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

Power = Literal["unknown", "mains", "battery", "charging"]

QUIET_PERCENT: Final = 10.0
"""Idle: for less of the last minute than this did anything wait for a processor."""

_ROOT = Path("/")


def read_conditions(root: Path = _ROOT) -> dict[str, bool]:
    """What a policy may ask of the device's state, as far as the system has a source for it.

    | condition | source | unknown where |
    |---|---|---|
    | `charging` | `/sys/class/power_supply` | there is no battery and no charger listed |
    | `idle` | `/proc/pressure/cpu`, the last minute | the kernel keeps no pressure |
    | `unmetered` | none | always |

    What is unknown is absent, and fails a policy that asks for it.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    found: dict[str, bool] = {}
    power = power_source(root)
    if power != "unknown":
        found["charging"] = power in ("mains", "charging")
    waiting = _pressure(root / "proc/pressure/cpu")
    if waiting is not None:
        found["idle"] = waiting < QUIET_PERCENT
    return found


def power_source(root: Path = _ROOT) -> Power:
    """Where the device's energy comes from."""
    supplies = sorted((root / "sys/class/power_supply").glob("*"))
    own = [supply for supply in supplies if _word(supply / "scope") != "Device"]  # not a mouse's
    batteries = [supply for supply in own if _word(supply / "type") == "Battery"]
    plugged = any(
        _word(supply / "type") in ("Mains", "USB", "Wireless") and _word(supply / "online") == "1"
        for supply in own
    )
    states = {_word(supply / "status") for supply in batteries}
    if batteries and (plugged or states & {"Charging", "Full", "Not charging"}):
        return "charging"
    if batteries:
        return "battery" if "Discharging" in states else "unknown"
    return "mains" if plugged else "unknown"


def celsius(root: Path = _ROOT) -> float | None:
    """The hottest sensor of the board; None where there is none."""
    zones = [
        *root.glob("sys/class/thermal/thermal_zone*/temp"),
        *root.glob("sys/class/hwmon/hwmon*/temp*_input"),
    ]
    found = [float(word) / 1000 for path in zones if _is_number(word := _word(path))]
    return max(found, default=None)


def _pressure(path: Path) -> float | None:
    """The part of the last minute in which something waited, percent."""
    for line in _word(path).splitlines():
        kind, *fields = line.split()
        values = dict(field.partition("=")[::2] for field in fields)
        if kind == "some" and _is_number(values.get("avg60", "")):
            return float(values["avg60"])
    return None


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""

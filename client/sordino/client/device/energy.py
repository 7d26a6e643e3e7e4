"""The energy that a machine uses, from the first source that it has.

| source | from | measured |
|---|---|---|
| `rapl` | the processor's counters, `/sys/class/powercap` | the processor packages alone |
| `ina` | a current sensor (INA219 and the like), `/sys/class/hwmon` | what its rail feeds |
| `battery` | the gauge while it discharges, `/sys/class/power_supply` | the whole device |
| `unavailable` | | nothing, and no figure is made up |

Counters are read at both ends; power is sampled and summed over time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

Source = Literal["rapl", "ina", "battery", "unavailable"]

SYS: Final = Path("/sys")
SAMPLE_S: Final = 0.1
_INA: Final = frozenset({"ina209", "ina219", "ina220", "ina226", "ina230", "ina231", "ina233"}) | {
    "ina238",
    "ina260",
    "ina2xx",
    "ina3221",
}
_RAPL = SYS / "class/powercap"


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


@dataclass(frozen=True)
class Gauge:
    """Where a figure of energy comes from.

    Attributes:
        source: What it is.
        joules: Joules so far, of a counter; None: it has none.
        watts: Watts now, of a gauge; None where there is no reading.
    """

    source: Source
    joules: Callable[[], float | None] | None = None
    watts: Callable[[], float | None] | None = None


def find_gauge(sys: Path = SYS) -> Gauge:
    """The machine's best source of energy.

    Args:
        sys: Where the kernel's ``/sys`` is.
    """
    powercap = sys / "class/powercap"
    if energy_joules(powercap) is not None:
        return Gauge("rapl", joules=lambda: energy_joules(powercap))
    for source, watts in (("ina", _ina_watts), ("battery", _battery_watts)):
        if watts(sys) is not None:
            return Gauge(source, watts=lambda watts=watts: watts(sys))  # type: ignore[misc,arg-type]
    return Gauge("unavailable")


class EnergyMeter:
    """Joules that the machine used while a block ran, everything on it included.

    Args:
        gauge: Where they are read.
        now_s: A clock that only goes on.
    """

    def __init__(self, gauge: Gauge, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self.source = gauge.source
        self.seconds = 0.0
        self.joules: float | None = None
        self._gauge = gauge
        self._now_s = now_s
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._sum: float | None = 0.0
        self._first: float | None = None
        self._began = self._sampled = 0.0

    @property
    def watts(self) -> float | None:
        """The mean over the block; None where there is no figure."""
        return None if self.joules is None or not self.seconds else self.joules / self.seconds

    def __enter__(self) -> EnergyMeter:
        self._began = self._now_s()
        if self._gauge.joules is not None:
            self._first = self._gauge.joules()
        elif self._gauge.watts is not None:
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self.joules = self._sum
            self.seconds = self._sampled - self._began  # exactly what the sum is over
            return
        if self._gauge.joules is not None:
            last = self._gauge.joules()
            # A counter that wrapped around is no figure.
            whole = last is not None and self._first is not None and last >= self._first
            self.joules = last - self._first if whole else None  # type: ignore[operator]
        self.seconds = self._now_s() - self._began

    def _sample(self) -> None:
        """Sum power over time, each reading for the time since the one before."""
        at = self._began
        while True:
            ended = self._ended.wait(SAMPLE_S)
            now = self._now_s()
            watts = self._gauge.watts() if self._gauge.watts else None
            # One reading that fails (a charger was plugged in) spoils the whole figure.
            lost = watts is None or self._sum is None
            self._sum = None if lost else self._sum + watts * (now - at)  # type: ignore[operator]
            self._sampled = at = now
            if ended:
                return


def _ina_watts(sys: Path) -> float | None:
    """The sum over the current sensors' first channels."""
    found = []
    for sensor in sorted((sys / "class/hwmon").glob("hwmon*")):
        if _word(sensor / "name") not in _INA:
            continue
        power = _number(sensor / "power1_input")  # µW
        if power is None:
            volts, amps = _number(sensor / "in1_input"), _number(sensor / "curr1_input")  # mV, mA
            power = None if volts is None or amps is None else volts * amps
        if power is not None:
            found.append(power / 1e6)
    return sum(found) if found else None


def _battery_watts(sys: Path) -> float | None:
    """The sum over the batteries; None while one of them isn't discharging."""
    found = []
    for supply in sorted((sys / "class/power_supply").glob("*")):
        if _word(supply / "type") != "Battery" or _word(supply / "scope") == "Device":
            continue
        if _word(supply / "status") != "Discharging":
            return None
        power = _number(supply / "power_now")  # µW
        if power is None:
            volts, amps = _number(supply / "voltage_now"), _number(supply / "current_now")
            power = None if volts is None or amps is None else volts * amps / 1e6  # µV × µA
        if power is None:
            return None
        found.append(abs(power) / 1e6)
    return sum(found) if found else None


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_word(path))
    except ValueError:
        return None

"""What this machine is: processor, memory, and where a figure of energy could come from."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

# What decides the speed of training, by the kernel's name for it.
_FEATURES = {
    "avx2": "avx2",
    "avx512": "avx512f",
    "avx512_bf16": "avx512_bf16",
    "amx_bf16": "amx_bf16",
    "neon": "asimd",
    "neon_bf16": "bf16",
}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine as training sees it.

    Attributes:
        system: Operating system and its version.
        processor: The processor's instruction set.
        model: The processor's name, where the kernel knows it.
        cores: Logical ones that this process may use.
        threads_per_core: Logical ones that share the units of one; None where it isn't known.
        governor: How the kernel chooses the clock rate; empty where it isn't known.
        features: Vector and bf16 units that it has.
        memory_mb: Installed.
        available_mb: What could be used now without swapping.
        energy: ``rapl``, ``ina``, ``battery`` or ``unavailable``.
    """

    system: str
    processor: str
    model: str
    cores: int
    threads_per_core: int | None
    governor: str
    features: tuple[str, ...]
    memory_mb: int
    available_mb: int
    energy: str


def read_machine(root: Path = Path("/")) -> Machine:
    """Look at this machine.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    memory = _fields(root / "proc/meminfo")
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        processor=platform.machine(),
        model=_fields(root / "proc/cpuinfo").get("model name", ""),
        cores=len(os.sched_getaffinity(0)),
        threads_per_core=_threads_per_core(root / "sys/devices/system/cpu/cpu0"),
        governor=_word(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        features=_features(root / "proc/cpuinfo"),
        memory_mb=_megabytes(memory.get("MemTotal")),
        available_mb=_megabytes(memory.get("MemAvailable")),
        energy=_energy(root / "sys"),
    )


def _fields(path: Path) -> dict[str, str]:
    """``name: value`` lines; the first of several with one name."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found


def _features(cpuinfo: Path) -> tuple[str, ...]:
    fields = _fields(cpuinfo)
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return tuple(name for name, flag in _FEATURES.items() if flag in flags)


def _threads_per_core(cpu: Path) -> int | None:
    """How many are listed, as in ``0-1`` or ``0,4``."""
    listed = _word(cpu / "topology/thread_siblings_list")
    if not listed:
        return None
    spans = [[int(n) for n in part.split("-")] for part in listed.split(",")]
    return sum(span[-1] - span[0] + 1 for span in spans)


def _megabytes(kilobytes: str | None) -> int:
    return int(kilobytes.split()[0]) // 1024 if kilobytes else 0


def _energy(sys: Path) -> str:
    """Where a figure could come from; a battery that isn't discharging now could give one, too."""
    from sordino.client.device import find_gauge

    source = find_gauge(sys).source
    if source != "unavailable":
        return source
    for supply in sorted((sys / "class/power_supply").glob("*")):
        if _word(supply / "type") == "Battery" and (supply / "power_now").is_file():
            return "battery"
    return "unavailable"


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""

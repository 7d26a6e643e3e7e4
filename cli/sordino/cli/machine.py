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
        cores: Those that this process may use.
        features: Vector and bf16 units that it has.
        memory_mb: Installed.
        available_mb: What could be used now without swapping.
        energy: ``rapl``, ``battery`` or ``unavailable``.
    """

    system: str
    processor: str
    cores: int
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
        cores=len(os.sched_getaffinity(0)),
        features=_features(root / "proc/cpuinfo"),
        memory_mb=_megabytes(memory.get("MemTotal")),
        available_mb=_megabytes(memory.get("MemAvailable")),
        energy=_energy(root / "sys/class"),
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


def _megabytes(kilobytes: str | None) -> int:
    return int(kilobytes.split()[0]) // 1024 if kilobytes else 0


def _energy(classes: Path) -> str:
    from sordino.client.device import energy_joules

    if energy_joules(classes / "powercap") is not None:
        return "rapl"
    for supply in sorted((classes / "power_supply").glob("*")):
        if _word(supply / "type") == "Battery" and (supply / "power_now").is_file():
            return "battery"
    return "unavailable"


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""

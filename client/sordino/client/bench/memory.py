"""How much memory a process holds: its pages, and its share of a mapped file. Linux only."""

from __future__ import annotations

import sys
from pathlib import Path

# What a small client process does without.
HEAVY = ("transformers", "peft", "flwr", "gguf", "datasets", "accelerate")


def reset_peak(clear: Path = Path("/proc/self/clear_refs")) -> bool:
    """Begin a new peak of resident memory; False where the kernel doesn't let us."""
    try:
        clear.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def mapped_bytes(file: Path, smaps: Path = Path("/proc/self/smaps")) -> dict[str, int]:
    """What this process holds of a mapped file.

    Returns:
        Bytes: ``Rss`` are its resident pages, ``Pss`` the same with each page shared by n
        processes counted as 1/n, ``Anonymous`` its own changed copies.
    """
    totals = {"Rss": 0, "Pss": 0, "Anonymous": 0}
    mine = False
    for line in smaps.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if "-" in name.split(" ")[0]:  # a mapping's first line: its addresses, and the file
            mine = line.endswith(f" {file}")
        elif mine and name in totals:
            totals[name] += int(value.split()[0]) * 1024
    return totals


def heavy_modules() -> list[str]:
    """Which of the large libraries this process has imported."""
    return [name for name in HEAVY if name in sys.modules]

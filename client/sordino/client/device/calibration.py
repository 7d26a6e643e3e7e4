"""Figures of a synthetic batch: the only measures of a device that may be sent.

The batch is the same on every device: random token ids of a fixed seed, never anybody's records.
What real tasks take (time, memory, energy) would tell how many records there are, so it stays in
the device's own `observations.jsonl`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from sordino.client.device.energy import Source
from sordino.core import durable
from sordino.core.errors import ConfigError, WireError
from sordino.core.records import require_sha256
from sordino.core.settings import build

CALIBRATION: Final = "calibration.json"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was measured.

    Attributes:
        base_sha256: The base that it ran on.
        tokens_per_second: Trained tokens a second, noise and all.
        peak_memory_bytes: The process' largest resident size.
        energy_source: Where energy was read.
        joules_per_token: None where it is unavailable.
        idle_watts: At rest; None where there is no sensor.
        celsius: The hottest sensor afterwards; None where there is none.
    """

    base_sha256: str
    tokens_per_second: float
    peak_memory_bytes: int
    energy_source: Source = "unavailable"
    joules_per_token: float | None = None
    idle_watts: float | None = None
    celsius: float | None = None

    def __post_init__(self) -> None:
        require_sha256("base_sha256", self.base_sha256)


def save_calibration(folder: Path, figures: Calibration) -> None:
    """Keep figures in the agent's folder."""
    durable.write_whole(folder / CALIBRATION, json.dumps(asdict(figures), indent=1) + "\n")


def load_calibration(folder: Path, base_sha256: str) -> Calibration | None:
    """The kept figures, if they are of this base."""
    figures = kept_calibration(folder)
    return figures if figures is not None and figures.base_sha256 == base_sha256 else None


def kept_calibration(folder: Path) -> Calibration | None:
    """The kept figures; None where there are none that can be read."""
    try:
        fields = json.loads((folder / CALIBRATION).read_bytes())
        known = {name: value for name, value in fields.items() if value is not None}
        return build(Calibration, known, CALIBRATION)
    except (OSError, ValueError, AttributeError, ConfigError, WireError):
        return None

"""What a device can say of itself: energy, memory, state, and the figures of a synthetic batch.

Nothing here imports torch; `synthetic` does, which runs the batch.
"""

from sordino.client.device.calibration import (
    CALIBRATION,
    Calibration,
    kept_calibration,
    load_calibration,
    save_calibration,
)
from sordino.client.device.energy import EnergyMeter, Gauge, energy_joules, find_gauge
from sordino.client.device.memory import available_bytes, resident_mb
from sordino.client.device.state import celsius, power_source, read_conditions

__all__ = [
    "CALIBRATION",
    "Calibration",
    "EnergyMeter",
    "Gauge",
    "available_bytes",
    "celsius",
    "energy_joules",
    "find_gauge",
    "kept_calibration",
    "load_calibration",
    "power_source",
    "read_conditions",
    "resident_mb",
    "save_calibration",
]

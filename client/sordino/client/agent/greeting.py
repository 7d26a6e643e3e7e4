"""What a device says of itself when it comes: capabilities, its ledger's head, and maybe more."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

from sordino.client.agent.heads import signed_head
from sordino.client.device import Calibration, available_bytes, power_source
from sordino.core import contract
from sordino.core.families import FAMILIES
from sordino.protos.v1 import fleet_pb2

MB: Final = 10**6
_POWER: Final[Mapping[str, fleet_pb2.PowerSource]] = {
    "unknown": fleet_pb2.POWER_SOURCE_UNKNOWN,
    "mains": fleet_pb2.POWER_SOURCE_MAINS,
    "battery": fleet_pb2.POWER_SOURCE_BATTERY,
    "charging": fleet_pb2.POWER_SOURCE_CHARGING,
}
_ENERGY: Final[Mapping[str, fleet_pb2.EnergySource]] = {
    "unavailable": fleet_pb2.ENERGY_SOURCE_UNAVAILABLE,
    "rapl": fleet_pb2.ENERGY_SOURCE_RAPL,
    "battery": fleet_pb2.ENERGY_SOURCE_BATTERY,
    "ina": fleet_pb2.ENERGY_SOURCE_INA,
}


def greeting(
    ledger: Path, *, memory_mb: int, storage_mb: int, calibration: Calibration | None
) -> fleet_pb2.HelloRequest:
    """Make a `HelloRequest`. Nothing in it depends on anybody's records.

    Args:
        ledger: The device's ledger; its head is said, so that a rollback shows.
        memory_mb: What a task may take; 0: what is available.
        storage_mb: What artefacts may take.
        calibration: Figures of the synthetic batch; None: the owner doesn't want them sent.
    """
    request = fleet_pb2.HelloRequest(
        revision=contract.REVISION,
        software=f"sordino {_version()}",
        capabilities=fleet_pb2.Capabilities(
            model_formats=_formats(),
            model_families=sorted(FAMILIES),
            memory_bytes=memory_mb * MB or available_bytes() or 1,
            storage_bytes=storage_mb * MB,
            cores=len(os.sched_getaffinity(0)),
            architecture=platform.machine() or "unknown",
            power=_POWER[power_source()],
        ),
    )
    if calibration is not None:
        request.calibration.CopyFrom(_calibration_message(calibration))
    head = signed_head(ledger)
    if head is not None:
        request.ledger_head.CopyFrom(contract.head_message(head))
    return request


def _calibration_message(figures: Calibration) -> fleet_pb2.Calibration:
    return fleet_pb2.Calibration(
        base_sha256=bytes.fromhex(figures.base_sha256),
        tokens_per_second=figures.tokens_per_second,
        peak_memory_bytes=figures.peak_memory_bytes,
        joules_per_token=figures.joules_per_token,
        energy_source=_ENERGY[figures.energy_source],
        idle_watts=figures.idle_watts,
        celsius=figures.celsius,
    )


def _formats() -> list[str]:
    from sordino.client.model.blocks import FORMATS  # noqa: PLC0415 - imports torch

    return [*FORMATS, "int8"]


def _version() -> str:
    try:
        return metadata.version("sordino")
    except metadata.PackageNotFoundError:
        return "unknown"

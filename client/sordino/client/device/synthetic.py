"""Runs the synthetic batch through the product's own training step."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Final

from sordino.client.bench.workload import Row, Workload, make_rows
from sordino.client.device.calibration import Calibration
from sordino.client.device.energy import EnergyMeter, find_gauge
from sordino.client.device.memory import resident_mb
from sordino.client.device.state import celsius
from sordino.client.model.store import BaseModel
from sordino.client.train import train_round
from sordino.core.adapters import adapter_manifest, complete_adapter, trained_manifest
from sordino.core.config import LoraConfig, PerformanceConfig, TrainConfig
from sordino.privacy.ledger import Ledger
from sordino.privacy.noise import system_source
from sordino.privacy.plan import Plan, open_round

STEPS: Final = 3
REST_S: Final = 5.0
_WORK: Final = Workload(tokens=64, batch=8)
_NAME: Final = "calibration"


def calibrate(
    base: BaseModel,
    performance: PerformanceConfig,
    *,
    root: Path = Path("/"),
    rest_s: float = REST_S,
) -> Calibration:
    """Measure this device on a base.

    One round of `STEPS` private steps after one that warms up, on eight records of 64 random
    tokens, all in every batch, charged to a ledger that is thrown away: no budget is anybody's.

    Args:
        base: Open.
        performance: The owner's settings, memory above all.
        root: Where ``proc`` and ``sys`` are.
        rest_s: How long power at rest is measured.
    """
    gauge = find_gauge(root / "sys")
    rows = make_rows(_WORK, base.decoder.head.rows)
    with EnergyMeter(gauge) as resting:
        if gauge.source != "unavailable":
            time.sleep(rest_s)
    _train(base, performance, rows, steps=1)
    with EnergyMeter(gauge) as meter:
        _train(base, performance, rows, steps=STEPS)
    tokens = STEPS * sum(len(row.ids) - 1 for row in rows)
    return Calibration(
        base_sha256=base.files.sha256,
        tokens_per_second=tokens / meter.seconds,
        peak_memory_bytes=int((resident_mb("VmHWM") or 0.0) * 1e6),
        energy_source=gauge.source if meter.joules is not None else "unavailable",
        joules_per_token=None if meter.joules is None else meter.joules / tokens,
        idle_watts=resting.watts,
        celsius=celsius(root),
    )


def _train(base: BaseModel, performance: PerformanceConfig, rows: list[Row], *, steps: int) -> None:
    lora = LoraConfig()
    manifest = adapter_manifest(base.files.config, lora)
    plan = Plan(
        run_id=_NAME,
        rounds=1,
        steps_per_round=steps,
        sampling_rate=1.0,
        noise_multiplier=1.0,
        clip_norm=1.0,
        divisor=float(len(rows)),
        delta=1e-5,
    )
    with tempfile.TemporaryDirectory(prefix="sordino-") as folder:
        charge = Ledger(Path(folder) / "ledger.db", _NAME).charge(plan, 1, _NAME)
        train_round(
            base.decoder,
            complete_adapter({}, manifest, lora.init_seed),
            trained_manifest(manifest, lora.aggregation, 1).names,
            rows,
            open_round(plan, charge, system_source()),
            round_number=1,
            lora=lora,
            train=TrainConfig(local_steps=steps),
            performance=performance,
        )

"""What a measuring process does when it is told to. Arguments and results are bytes: JSON.

A process holds one variant. It imports what the variant needs and nothing else, so that its
resident memory is that of a process which does this work alone.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sordino.client.bench.memory import heavy_modules, mapped_bytes, reset_peak
from sordino.client.bench.workload import (
    Stepper,
    Variant,
    Workload,
    decode_variant,
    decode_workload,
)
from sordino.client.device import resident_mb

Make = Callable[[Workload, Variant, Path], Stepper]

# What this process holds: one variant, or one base.
_steppers: list[Stepper] = []
_bases: list[Any] = []
_facts: dict[str, Any] = {}


def open_variant(workload: bytes, variant: bytes, cache: bytes) -> None:
    """Import and open the process's variant, and note what that took."""
    chosen = decode_variant(variant)
    _hush()
    start = time.perf_counter()
    make = _import(chosen.make)
    imported = time.perf_counter()
    _facts.update(imports_s=imported - start, imports_mb=resident_mb())
    stepper = make(decode_workload(workload), chosen, Path(cache.decode()))
    _facts.update(
        open_s=time.perf_counter() - imported,
        quantization=stepper.quantization,
        base_bytes=stepper.base_bytes,
        start_loss=stepper.start_loss(),
    )
    _steppers.append(stepper)


def step() -> bytes:
    """Run one step.

    Returns:
        Its seconds by the clock, and those of them that the process was computing, in all threads.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    _steppers[0].step()
    return json.dumps([time.perf_counter() - wall, time.process_time() - cpu]).encode()


def end_warm_up() -> None:
    """Tell the peak of opening and the first steps apart from that of a warm step."""
    _facts.update(opening_peak_mb=resident_mb("VmHWM"), peak_reset=reset_peak())


def weigh() -> bytes:
    """What is known of the process, and the peak of torch's bytes in one more step."""
    warm = resident_mb("VmHWM")  # before the profiler takes memory of its own
    peaks = [peak for peak in (_facts.get("opening_peak_mb"), warm) if peak is not None]
    stepper = _steppers[0]
    return json.dumps(
        {
            **_facts,
            "rss_peak_mb": max(peaks, default=None),
            "rss_warm_peak_mb": warm if _facts.get("peak_reset") else None,
            "torch_peak_bytes": stepper.torch_peak(),
            "state_bytes": stepper.state_bytes,
            "heavy_modules": heavy_modules(),
        }
    ).encode()


def open_cold(workload: bytes, variant: bytes, cache: bytes) -> bytes:
    """Open a variant in this new process and train its first step.

    The first step's own work is taken off: as much as the later ones take.

    Returns:
        ``imports_s``, ``to_first_step_s``, and the ``heavy_modules`` that were imported.
    """
    start = time.perf_counter()
    open_variant(workload, variant, cache)
    step()
    first_done = time.perf_counter() - start - _facts["imports_s"]
    later = statistics.median(json.loads(step())[0] for _ in range(3))
    return json.dumps(
        {
            "imports_s": _facts["imports_s"],
            "to_first_step_s": max(first_done - later, 0.0),
            "heavy_modules": heavy_modules(),
        }
    ).encode()


def switch_clients(times: bytes) -> bytes:
    """Seconds that the warm process takes to be ready for another client, each time."""
    switch = getattr(_steppers[0], "switch_seconds", None)
    if switch is None:
        raise TypeError("only the engine with privacy changes clients")
    return json.dumps([switch() for _ in range(int(times))]).encode()


def touch_base(workload: bytes, cache: bytes) -> None:
    """Map a base and read all of it."""
    from sordino.client.model.store import open_base, resolve_model  # noqa: PLC0415
    from sordino.core.config import ModelConfig  # noqa: PLC0415

    name = decode_workload(workload).model
    base = open_base(resolve_model(ModelConfig(name=name), Path(cache.decode())))
    _bases.append(base)
    for matrix in base.decoder.matrices.values():
        for start in range(0, matrix.rows, 4096):
            matrix.tile(start, min(start + 4096, matrix.rows))


def weigh_base() -> bytes:
    """This process's share of the mapped base, as in `mapped_bytes`, and the ``file``'s size."""
    file: Path = _bases[0].files.weights
    return json.dumps({**mapped_bytes(file), "file": file.stat().st_size}).encode()


def _hush() -> None:
    """Leave out what libraries tell their users: nobody here can act on it."""
    warnings.simplefilter("ignore")
    os.environ.update(TORCH_CPP_LOG_LEVEL="ERROR", KINETO_LOG_LEVEL="99")


def _import(reference: str) -> Make:
    module, _, name = reference.partition(":")
    make: Make = getattr(importlib.import_module(module), name)
    return make

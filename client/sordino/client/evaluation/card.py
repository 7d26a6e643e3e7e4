"""A device card: what a base with an adapter costs to run on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from sordino.client.device.energy import EnergyMeter, Gauge, Source, find_gauge
from sordino.client.device.memory import resident_mb
from sordino.client.evaluation.subject import Subject
from sordino.client.generate import GenerationModel, generate, prepare
from sordino.client.model.store import ModelFiles

PROMPT, NEW, SEED = 64, 32, 0


@dataclass(frozen=True, kw_only=True)
class DeviceCard:
    """Measured on synthetic prompts of random tokens, one at a time, greedy.

    Attributes:
        parameters: Of the base's matrices.
        file_mb: The base's file.
        adapter_mb: The adapter, float32; 0 without one.
        compression: What the base would take in float16, over its file.
        first_token_s: Until the first token after `PROMPT` tokens, the middle of the runs.
        tokens_per_s: Of the tokens after it.
        peak_mb: The process' largest resident size so far.
        energy_source: Where energy was read.
        joules_per_token: Of the whole machine, the prompt's share included; None: unavailable.
    """

    parameters: int
    file_mb: float
    adapter_mb: float
    compression: float
    first_token_s: float
    tokens_per_s: float
    peak_mb: float | None
    energy_source: Source
    joules_per_token: float | None


def measure_card(
    subject: Subject, files: ModelFiles, *, runs: int = 3, gauge: Gauge | None = None
) -> DeviceCard:
    """Write `NEW` tokens after `PROMPT` random ones, `runs` times, after one that isn't counted.

    The weights are held as a chat holds them, whatever the subject's own model does.
    """
    model = _as_deployed(subject)
    vocabulary = subject.decoder.head.rows
    chance = np.random.default_rng(SEED)
    prompts = [chance.integers(vocabulary, size=PROMPT).tolist() for _ in range(runs + 1)]
    generate(model, [prompts.pop()], max_new_tokens=NEW)
    meter = EnergyMeter(gauge or find_gauge())
    firsts, rates = [], []
    with meter:
        for prompt in prompts:
            began = time.perf_counter()
            timing = generate(model, [prompt], max_new_tokens=NEW).timing
            firsts.append(timing.first_token_s)
            rates.append((NEW - 1) / (time.perf_counter() - began - timing.first_token_s))
    size, matrices = files.weights.stat().st_size, subject.decoder.matrices.values()
    parameters = sum(matrix.rows * matrix.columns for matrix in matrices)
    values = sum(t.size for t in subject.adapter.tensors.values()) if subject.adapter else 0
    return DeviceCard(
        parameters=parameters,
        file_mb=size / 1e6,
        adapter_mb=4 * values / 1e6,
        compression=2 * parameters / size,
        first_token_s=float(np.median(firsts)),
        tokens_per_s=float(np.median(rates)),
        peak_mb=resident_mb("VmHWM"),
        energy_source=meter.source,
        joules_per_token=None if meter.joules is None else meter.joules / (runs * NEW),
    )


def _as_deployed(subject: Subject) -> GenerationModel:
    model, adapter = prepare(subject.decoder), subject.adapter
    return model.with_adapter(adapter.tensors, scale=adapter.scale) if adapter else model

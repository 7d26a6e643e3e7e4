"""Runs the variants: a process each, taking turns in an order that is shuffled in every round."""

from __future__ import annotations

import json
import os
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sordino.client.bench.workload import Variant, Workload, encode
from sordino.core.errors import ConfigError, SordinoError, expected
from sordino.sim.bench.budgets import WithinBudget, within_budgets
from sordino.sim.bench.catalogue import MAIN, TARGETS
from sordino.sim.bench.ratios import METHOD, Ratio, ratios
from sordino.sim.pool import Job, WorkerPool
from sordino.sim.progress import Progress, Silent

_WORKER = "sordino.client.bench.worker"
_SHARING = 4  # processes that map one base
_COLD = 3  # processes that open a model anew
_SWITCHES = 10


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure.

    Attributes:
        work: The batch and the model.
        variants: At least one.
        rounds: In each, every variant runs one step.
        warm_up: Steps of each variant before.
        threads: Of each process.
        seed: Of the order within the rounds.
        around: Also what surrounds the steps: the base in memory, opening it, changing clients.
    """

    work: Workload = field(default_factory=Workload)
    variants: tuple[Variant, ...] = MAIN
    rounds: int = 12
    warm_up: int = 2
    threads: int = 1
    seed: int = 0
    around: bool = True

    def __post_init__(self) -> None:
        for name in ("rounds", "warm_up", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(expected(name, getattr(self, name), ">= 1"))
        if not self.variants:
            raise ConfigError("no variant to measure: name at least one")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was seen of one variant. MB are 10⁶ bytes.

    Attributes:
        variant: What ran.
        seconds: Of each round's step by the clock, in the rounds' order.
        cpu_seconds: Those of them that the process was computing, in all threads.
        median_s: Their median.
        tokens_per_s: The batch's tokens over it.
        torch_peak_mb: Most that torch's allocator held in a step, over what it held before.
        state_mb: Adapter and optimizer state.
        base_mb: The frozen base, as it is held.
        rss_peak_mb: The process's largest resident memory, opening included.
        rss_warm_peak_mb: The same of warm steps alone; None where it can't be told apart.
        imports_mb: Resident after the imports alone.
        imports_s: Seconds of the imports.
        open_s: From there to where the first step could begin.
        quantization: How the base is held.
        start_loss: Mean loss per token at the start; equal for all variants.
        heavy_modules: Which of the large libraries the process imported.
    """

    variant: Variant
    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    median_s: float
    tokens_per_s: float
    torch_peak_mb: float
    state_mb: float
    base_mb: float
    rss_peak_mb: float | None
    rss_warm_peak_mb: float | None
    imports_mb: float | None
    imports_s: float
    open_s: float
    quantization: str
    start_loss: float
    heavy_modules: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Around:
    """What surrounds the steps.

    Attributes:
        file_mb: The base's file.
        shared_pss_mb: For each of some processes that mapped and read the base, its proportional
            share of the file's pages; the sum is what they hold together.
        shared_rss_mb: The same with every page counted in each process.
        shared_private_mb: Their own changed copies of the file's pages.
        cold_imports_s: Of new processes: seconds of the imports.
        cold_to_first_step_s: From there to where the first step begins.
        heavy_modules: Which of the large libraries a training process imported.
        switch_ms: A warm process with another client's adapter, optimizer, sampler and plan.
    """

    file_mb: float
    shared_pss_mb: tuple[float, ...]
    shared_rss_mb: tuple[float, ...]
    shared_private_mb: tuple[float, ...]
    cold_imports_s: tuple[float, ...]
    cold_to_first_step_s: tuple[float, ...]
    heavy_modules: tuple[str, ...]
    switch_ms: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Result:
    """All that was measured.

    Attributes:
        request: What was asked for.
        measured: One entry a variant.
        order: The variants' names as they ran, for each round.
        ratios: With targets where there are some.
        ratio_method: How their intervals are made.
        budgets: What it costs to keep torch's peak small, where several settings were measured.
        around: None if it wasn't asked for.
        load: The system's load averages (1, 5, 15 min) before and after: was anybody else at work?
    """

    request: Request
    measured: tuple[Measured, ...]
    order: tuple[tuple[str, ...], ...]
    ratios: tuple[Ratio, ...]
    ratio_method: str
    budgets: tuple[WithinBudget, ...]
    around: Around | None
    load: tuple[tuple[float, ...], tuple[float, ...]]


def run(request: Request, cache: Path, progress: Progress | None = None) -> Result:
    """Measure.

    Args:
        request: What.
        cache: The model cache; the baselines keep the fp32 model there.
        progress: Who is told of it.

    Raises:
        SordinoError: A variant can't be opened, or its process died.
    """
    told = progress or Silent()
    before = os.getloadavg()
    around = _around(request, cache, told) if request.around else None
    with _opened(request, cache, told) as pools:
        told.phase("warm-up", request.warm_up * len(pools))
        for _ in range(request.warm_up):
            for pool in pools.values():
                _call(pool, "step")
                told.advance()
        for pool in pools.values():
            _call(pool, "end_warm_up")
        order, times = _rounds(request, pools, told)
        told.phase("memory", len(pools))
        measured = []
        for variant in request.variants:
            facts = _call(pools[variant.name], "weigh")
            measured.append(_measured(request.work, variant, times[variant.name], facts))
            told.advance()
    return Result(
        request=request,
        measured=tuple(measured),
        order=tuple(order),
        ratios=tuple(ratios({m.variant.name: m for m in measured}, TARGETS)),
        ratio_method=METHOD,
        budgets=tuple(within_budgets(measured)),
        around=around,
        load=(before, os.getloadavg()),
    )


def _rounds(
    request: Request, pools: Mapping[str, WorkerPool], told: Progress
) -> tuple[list[tuple[str, ...]], dict[str, list[tuple[float, float]]]]:
    shuffler = random.Random(request.seed)  # noqa: S311  (an order, not a secret)
    order: list[tuple[str, ...]] = []
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in pools}
    told.phase("rounds", request.rounds * len(pools))
    for _ in range(request.rounds):
        names = list(pools)
        shuffler.shuffle(names)
        order.append(tuple(names))
        for name in names:
            wall, cpu = _call(pools[name], "step")
            times[name].append((wall, cpu))
            told.advance()
    return order, times


@contextmanager
def _opened(request: Request, cache: Path, told: Progress) -> Iterator[dict[str, WorkerPool]]:
    """A process for each variant, opened one after another, as their times are reported too."""
    pools: dict[str, WorkerPool] = {}
    told.phase("opening", len(request.variants))
    try:
        for variant in request.variants:
            setup = _job("open_variant", encode(request.work), encode(variant), _bytes(cache))
            pools[variant.name] = _pool(request, setup=setup, allocator=variant.allocator)
            pools[variant.name].wait_until_ready()
            told.advance()
        yield pools
    finally:
        for pool in pools.values():
            pool.close()


def _around(request: Request, cache: Path, told: Progress) -> Around:
    private = next(v for v in MAIN if v.name == "private")
    arguments = (encode(request.work), encode(private), _bytes(cache))
    told.phase("around the steps", _SHARING + _COLD + 1)
    shares, size = _shares(request, cache)
    told.advance(_SHARING)
    cold = []
    for _ in range(_COLD):
        with _closing(_pool(request)) as pool:
            cold.append(_call(pool, "open_cold", *arguments))
        told.advance()
    with _closing(_pool(request, setup=_job("open_variant", *arguments))) as pool:
        switches = _call(pool, "switch_clients", str(_SWITCHES).encode())
    told.advance()
    return Around(
        file_mb=size / 1e6,
        shared_pss_mb=tuple(share["Pss"] / 1e6 for share in shares),
        shared_rss_mb=tuple(share["Rss"] / 1e6 for share in shares),
        shared_private_mb=tuple(share["Anonymous"] / 1e6 for share in shares),
        cold_imports_s=tuple(c["imports_s"] for c in cold),
        cold_to_first_step_s=tuple(c["to_first_step_s"] for c in cold),
        heavy_modules=tuple(cold[0]["heavy_modules"]),
        switch_ms=tuple(1e3 * s for s in switches),
    )


def _shares(request: Request, cache: Path) -> tuple[list[dict[str, int]], int]:
    """What each of some processes holds of the base while all are alive, and the file's size."""
    setup = _job("touch_base", encode(request.work), _bytes(cache))
    pools: list[WorkerPool] = []
    try:
        for _ in range(_SHARING):
            pools.append(_pool(request, setup=setup))
        for pool in pools:
            pool.wait_until_ready()
        shares = [_call(pool, "weigh_base") for pool in pools]
    finally:
        for pool in pools:
            pool.close()
    return shares, shares[0]["file"]


def _pool(request: Request, *, setup: Job | None = None, allocator: str = "glibc") -> WorkerPool:
    return WorkerPool(
        1, threads=request.threads, setup=setup, return_freed_memory=allocator == "mmap"
    )


@contextmanager
def _closing(pool: WorkerPool) -> Iterator[WorkerPool]:
    try:
        pool.wait_until_ready()
        yield pool
    finally:
        pool.close()


def _job(function: str, *parts: bytes) -> Job:
    return Job(function, f"{_WORKER}:{function}", parts)


def _call(pool: WorkerPool, function: str, *parts: bytes) -> Any:
    """Have the pool's one process call a function, and decode what it returns.

    Raises:
        SordinoError: It failed, or its process died.
    """
    pool.submit(_job(function, *parts))
    (outcome,) = pool.poll(None)
    if outcome.error:
        raise SordinoError(f"{function} failed in its process: {outcome.error}")
    return json.loads(outcome.parts[0]) if outcome.parts else None


def _bytes(path: Path) -> bytes:
    return str(path).encode()


def _measured(
    work: Workload,
    variant: Variant,
    times: Sequence[tuple[float, float]],
    facts: Mapping[str, Any],
) -> Measured:
    seconds, cpu_seconds = zip(*times, strict=True)
    median = statistics.median(seconds)
    return Measured(
        variant=variant,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        median_s=median,
        tokens_per_s=work.batch * work.tokens / median,
        torch_peak_mb=facts["torch_peak_bytes"] / 1e6,
        state_mb=facts["state_bytes"] / 1e6,
        base_mb=facts["base_bytes"] / 1e6,
        rss_peak_mb=facts["rss_peak_mb"],
        rss_warm_peak_mb=facts["rss_warm_peak_mb"],
        imports_mb=facts["imports_mb"],
        imports_s=facts["imports_s"],
        open_s=facts["open_s"],
        quantization=facts["quantization"],
        start_loss=facts["start_loss"],
        heavy_modules=tuple(facts["heavy_modules"]),
    )

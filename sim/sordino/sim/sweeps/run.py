"""Runs a sweep: baselines first, then the cells they belong to, over worker processes.

sweeps/<name>/
├── sweep.json        what was asked for, so that a folder is never taken for another's
├── baselines/        runs without privacy and without federation: one for all cells it fits
├── cells/            a run's folder each, as `simulate` makes it
├── abandoned/        with private data: unfinished attempts, whose charges count
├── table.csv, table.parquet
└── report.html
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sordino.client.model.store import cache_root
from sordino.core.durable import make_folder, write_whole
from sordino.core.errors import ConfigError, SordinoError
from sordino.sim.fleet import totals
from sordino.sim.folder import NO_PRIVACY, PRIVATE, RunFolder
from sordino.sim.pool import Job, Outcome, WorkerPool, run_call
from sordino.sim.progress import Progress, Silent
from sordino.sim.scenarios import sections_of
from sordino.sim.sweeps import jobs
from sordino.sim.sweeps.cells import Baseline, Cell, label, lay_out
from sordino.sim.sweeps.outcome import COSTS_BUDGET, Finished, SweepResult
from sordino.sim.sweeps.page import write_page
from sordino.sim.sweeps.price import planned, spent
from sordino.sim.sweeps.spec import SweepSpec
from sordino.sim.sweeps.table import write_table

_MARK = "sweep.json"
_LOCK = "sweep.lock"


def sweep(
    scenario: str | Path | Mapping[str, Any] = "demo",
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    cells: Sequence[Mapping[str, Any]] = (),
    settings: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (0,),
    private: bool = False,
    out: Path | str = "sweeps/latest",
    workers: int = 2,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> SweepResult:
    """Sweep a grid, single cells, or both over an experiment; what is finished isn't run again.

    Args:
        scenario: Where every cell starts: a shipped name, a TOML file, or sections.
        grid: Values by dotted setting; every combination is a cell.
        cells: Further cells, each its own settings.
        settings: In every cell, over the scenario.
        seeds: Every cell is run with each.
        private: The data is private: what all cells cost together is composed and told.
        out: The sweep's folder; the same call on the same folder goes on where it was stopped.
        workers: How many cells at once, a process each; 0: one after the other, in this process.
            With processes a script needs its ``if __name__ == "__main__":``, a notebook doesn't.
        cache: The model cache; None: the user's.
        progress: Who is told of it.

    Returns:
        The folder with table and report, and every run's report; see `SweepResult`.

    Raises:
        ConfigError: A cell is impossible, which is told before anything runs.
        SordinoError: Cells failed.
    """
    spec = SweepSpec(
        start=sections_of(scenario),
        settings=settings or {},
        grid=grid or {},
        cells=cells,
        seeds=tuple(seeds),
        private=private,
    )
    return run_sweep(spec, Path(out), workers=workers, cache=cache, progress=progress)


def run_sweep(
    spec: SweepSpec,
    out: Path,
    *,
    workers: int = 2,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> SweepResult:
    """Run every cell that isn't finished yet, then write the table and the report.

    Args:
        spec: What is swept.
        out: The sweep's folder: new, empty, or the one of this sweep, which is gone on with.
            Cells that the spec no longer has stay there and are left out of the table.
        workers: How many cells at once, a process each; 0: one after the other, in this process.
        cache: The model cache; None: the user's.
        progress: Who is told of it.

    Returns:
        Its folder, every cell's report, and with private data what all cells cost together.

    Raises:
        ConfigError: A cell is impossible, the folder holds something else, or another process works
            in it; nothing was run.
        SordinoError: Cells failed; the others are finished and in the table.
    """
    cache, progress = cache or cache_root(), progress or Silent()
    _refuse_foreign(out)
    progress.say("Checking every cell ...")
    cells = lay_out(spec, cache)
    with _open(spec, out) as folder:
        progress.say(_opening(spec, cells, folder))
        failed = _Runs(folder, cells, cache, progress, keep=spec.private).run(workers)
        done = [_read(folder, cell) for cell in cells if cell.name not in failed]
        price = spent(folder, cells) if spec.private else None
        result = SweepResult(folder=folder, runs=tuple(done), price=price)
        write_table(result)
        write_page(result)
        if failed:
            raise SordinoError(_failures(failed, cells))
        return result


@dataclass
class _Runs:
    """The runs of a sweep that aren't finished, and which of them may begin."""

    folder: Path
    cells: Sequence[Cell]
    cache: Path
    progress: Progress
    keep: bool
    failed: dict[str, str] = field(default_factory=dict)

    def run(self, workers: int) -> dict[str, str]:
        """Run what isn't finished; returns why by the name of each cell that failed."""
        baselines = {c.baseline.name: c.baseline for c in self.cells if c.baseline is not None}
        todo = [b for b in baselines.values() if not self._finished(b)]
        waiting = [cell for cell in self.cells if not self._finished(cell)]
        self.progress.phase("sweep", len(todo) + len(waiting))
        with _doing(workers if todo or waiting else 0) as doing:
            for baseline in todo:
                doing.submit(self._job(baseline))
            while True:
                ready = [cell for cell in waiting if self._ready(cell)]
                waiting = [cell for cell in waiting if cell not in ready]
                for cell in ready:
                    doing.submit(self._job(cell))
                outcomes = doing.poll()
                if not outcomes:
                    return self._lost(waiting)
                for done in outcomes:
                    self._tell(done)

    def _job(self, run: Cell | Baseline) -> Job:
        beside = run.baseline if isinstance(run, Cell) else None
        text = jobs.job(
            run.config,
            self._of(run),
            baseline=None if beside is None else self._of(beside),
            cache=self.cache,
            keep=self.keep,
        )
        return Job(run.name, jobs.RUN, (text,))

    def _of(self, run: Cell | Baseline) -> Path:
        return folder_of(self.folder, run)

    def _finished(self, run: Cell | Baseline) -> bool:
        return RunFolder(self._of(run), run.name).finished

    def _ready(self, cell: Cell) -> bool:
        return cell.baseline is None or self._finished(cell.baseline)

    def _tell(self, done: Outcome) -> None:
        self.progress.advance()
        if done.error:
            self.failed[done.key] = done.error
            self.progress.say(f"{done.key} failed: {done.error}")

    def _lost(self, waiting: Sequence[Cell]) -> dict[str, str]:
        """The failures of cells; a baseline's are those of the cells that waited for it."""
        lost = {
            cell.name: f"its baseline failed: {self.failed[cell.baseline.name]}"
            for cell in waiting
            if cell.baseline is not None
        }
        return {
            n: why for n, why in self.failed.items() if n in {c.name for c in self.cells}
        } | lost


class _Inline:
    """Does a job with each poll, in this process."""

    def __init__(self) -> None:
        self._queue: list[Job] = []

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def poll(self) -> list[Outcome]:
        return [run_call(self._queue.pop(0))] if self._queue else []


class _Pooled:
    """Does jobs in worker processes; one that dies has its job done once more."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._jobs: dict[str, Job] = {}
        self._again: set[str] = set()

    def submit(self, job: Job) -> None:
        self._jobs[job.key] = job
        self._pool.submit(job)

    def poll(self) -> list[Outcome]:
        while outcomes := self._pool.poll(None):
            retried = {o.key for o in outcomes if o.died and o.key not in self._again}
            self._again |= retried
            for key in retried:
                self._pool.submit(self._jobs[key])
            if rest := [o for o in outcomes if o.key not in retried]:
                return rest
        return []


@contextmanager
def _doing(workers: int) -> Iterator[_Inline | _Pooled]:
    if not workers:
        yield _Inline()
        return
    pool = WorkerPool(workers)
    try:
        yield _Pooled(pool)
    finally:
        pool.close()


def folder_of(folder: Path, run: Cell | Baseline) -> Path:
    """Where a cell's or a baseline's run lies in its sweep's folder."""
    return folder / ("cells" if isinstance(run, Cell) else "baselines") / run.name


def _read(folder: Path, cell: Cell) -> Finished:
    root = folder_of(folder, cell)
    baseline = cell.baseline
    return Finished(
        cell=cell,
        folder=root,
        report=jobs.read_report(root),
        beside=jobs.read_report(folder_of(folder, baseline)) if baseline else None,
        processor_s=RunFolder(root, cell.name).processor_s,
        simulated=totals(RunFolder(root, cell.name), PRIVATE if baseline else NO_PRIVACY),
    )


def _refuse_foreign(out: Path) -> None:
    if out.exists() and any(out.iterdir()) and not (out / _MARK).exists():
        raise ConfigError(f"{out} is not empty and holds no sweep: choose another --out")


@contextmanager
def _open(spec: SweepSpec, out: Path) -> Iterator[Path]:
    """Make or find the sweep's folder, and keep every other process out of it."""
    make_folder(out)
    fd = os.open(out / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another process works on the sweep in {out}: wait for it"
            ) from error
        _mark(out / _MARK, spec)
        for name in ("cells", "baselines"):
            (out / name).mkdir(exist_ok=True)
        yield out.resolve()
    finally:
        os.close(fd)


def _mark(path: Path, spec: SweepSpec) -> None:
    """Note what is swept. Charges of private data can't be left behind by saying otherwise."""
    if path.exists() and json.loads(path.read_text(encoding="utf-8"))["private"] > spec.private:
        raise ConfigError(
            f"{path.parent} holds a sweep over private data: expected private = true, got false"
        )
    asked: dict[str, Any] = {
        "start": spec.start,
        "settings": spec.settings,
        "grid": spec.grid,
        "cells": list(spec.cells),
        "seeds": list(spec.seeds),
        "private": spec.private,
    }
    write_whole(path, json.dumps(asked, indent=1, default=str) + "\n")


def _opening(spec: SweepSpec, cells: Sequence[Cell], folder: Path) -> str:
    baselines = len({cell.baseline.name for cell in cells if cell.baseline is not None})
    text = f"{len(cells)} cells and {baselines} baselines in {folder}."
    if spec.private:
        return f"{text}\nThey will cost, {planned(cells)}."
    return f"{text}\n{COSTS_BUDGET}"


def _failures(failed: Mapping[str, str], cells: Sequence[Cell]) -> str:
    own = {cell.name: cell for cell in cells}
    lines = [
        f"  {label(own[name].settings)}, seed {own[name].seed}: {why}"
        for name, why in failed.items()
    ]
    return "\n".join(
        [
            f"{len(failed)} of {len(cells)} cells failed; the same command runs them again:",
            *lines,
        ]
    )

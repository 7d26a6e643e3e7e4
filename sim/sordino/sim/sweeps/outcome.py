"""What a sweep leaves behind: its finished cells, grouped over seeds, as a table and a report."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.special import stdtrit

from sordino.server.report import RunReport, UtilityFigures
from sordino.sim.sweeps.cells import Cell, label
from sordino.sim.sweeps.price import Price

LEVEL = 0.95
METHOD = "Student's t over seeds"
EPSILON = "privacy.epsilon"
COSTS_BUDGET = (
    "Every cell trains on the same records, and whoever looks at them all and keeps the best has "
    "released them all. If the records are private, say private = true: then what all cells cost "
    "together is composed and printed."
)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A cell that ran.

    Attributes:
        cell: Its settings.
        folder: Its run's folder.
        report: What its report.json holds.
        beside: The report of its baseline; None for a cell without privacy.
        processor_s: Processor time of the run.
        simulated: Seconds and joules of the run on its simulated fleet, if it had one.
    """

    cell: Cell
    folder: Path
    report: RunReport
    beside: RunReport | None
    processor_s: float | None
    simulated: tuple[float, float] | None = None

    @property
    def gain(self) -> float | None:
        """Held-out nats per token that the run gained over its base."""
        return _gain(self.report.judged)

    @property
    def without_privacy(self) -> float | None:
        """The same run's gain without privacy."""
        return _gain((self.beside or self.report).utility.no_privacy)

    @property
    def alone(self) -> float | None:
        """What clients gain alone and without noise, each judged on its own records."""
        return _gain((self.beside or self.report).utility.no_federation)

    @property
    def leaked(self) -> float | None:
        """The most that an audit saw of the private run: a lower bound on its ε."""
        whole = self.report.leakage.whole
        seen = [bound.epsilon_lower for bound in whole if bound.label == "private"]
        return max(seen, default=None)

    @property
    def epsilon(self) -> float | None:
        """ε of the run, as its ledger bears it out; None: not bounded."""
        return self.report.guarantee.epsilon.pld

    @property
    def bytes(self) -> int:
        """What all clients sent and were sent."""
        return self.report.cost.bytes_up + self.report.cost.bytes_down


@dataclass(frozen=True, kw_only=True)
class SeedFigure:
    """A mean over seeds, and where the mean of more seeds lies: what data would do isn't in it.

    Attributes:
        mean: Of `values`.
        values: One a seed.
        low: The lower end by `METHOD` at `LEVEL`; None: one seed says nothing of others.
        high: The upper end.
    """

    mean: float
    values: tuple[float, ...]
    low: float | None = None
    high: float | None = None


def over_seeds(values: Sequence[float]) -> SeedFigure:
    """Mean and interval of one figure over seeds.

    >>> round(over_seeds([1.0, 3.0]).high, 6)
    14.706205
    """
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return SeedFigure(mean=mean, values=tuple(values))
    error = statistics.stdev(values) / math.sqrt(count)
    half = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * error
    return SeedFigure(mean=mean, values=tuple(values), low=mean - half, high=mean + half)


@dataclass(frozen=True, kw_only=True)
class Group:
    """The runs of one cell's settings with every seed."""

    settings: Mapping[str, Any]
    runs: tuple[Finished, ...]

    @property
    def series(self) -> str:
        """The settings but for ε, in words: what a curve over ε is called."""
        rest = {path: value for path, value in self.settings.items() if path != EPSILON}
        return label(rest) if rest else ""

    def figure(self, of: Callable[[Finished], float | None]) -> SeedFigure | None:
        """A figure over the seeds; None where a run hasn't it."""
        values = [value for run in self.runs if (value := of(run)) is not None]
        return over_seeds(values) if len(values) == len(self.runs) else None


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What `sweep` made.

    Attributes:
        folder: The sweep's folder.
        runs: Every finished cell, in the order of the sweep.
        price: With private data, what all runs on it cost together.
    """

    folder: Path
    runs: tuple[Finished, ...]
    price: Price | None = None

    @property
    def groups(self) -> tuple[Group, ...]:
        """The runs, those that differ by the seed alone together."""
        found: dict[str, list[Finished]] = {}
        for run in self.runs:
            key = json.dumps(dict(run.cell.settings), sort_keys=True, default=str)
            found.setdefault(key, []).append(run)
        return tuple(
            Group(settings=runs[0].cell.settings, runs=tuple(runs)) for runs in found.values()
        )

    @property
    def settings(self) -> tuple[str, ...]:
        """Every setting that a cell sets by itself, in the order of the sweep."""
        return tuple(dict.fromkeys(path for run in self.runs for path in run.cell.settings))


def _gain(figures: UtilityFigures | None) -> float | None:
    return None if figures is None else figures.interval.estimate

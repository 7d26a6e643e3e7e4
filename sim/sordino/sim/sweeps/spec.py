"""What a sweep asks for: settings that all cells share, a grid, single cells, and seeds.

scenario = "demo"                    # where every cell starts; or a TOML file beside this one
seeds = [0, 1, 2]

[set]                                # in every cell
data.clients = 4

[grid]                               # every combination
privacy.epsilon = [1.0, 2.0, 4.0, 8.0]
lora.aggregation = ["ffa", "rolora"]

[[cells]]                            # and these, one by one
privacy.epsilon = 8.0
lora.rank = 16
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sordino.core.config import read_toml
from sordino.core.errors import ConfigError, expected
from sordino.core.settings import build
from sordino.sim.scenarios import names, sections_of

MOST_CELLS = 10_000
_BY_THE_SWEEP = {
    "seed": "name the seeds once, with seeds",
    "performance.workers": "a cell runs in one process: say with workers how many at once",
}

Settings = Mapping[str, Any]
"""Settings by their dotted paths."""


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """A sweep before its cells are laid out; paths are dotted, as in ``privacy.epsilon``.

    Attributes:
        start: What every cell starts from, as a scenario's sections. What it leaves open is filled
            in for each cell by itself: a default may go with what is swept.
        settings: In every cell, over the start.
        grid: Values by setting; every combination is a cell.
        cells: Further cells, each its own settings.
        seeds: Every cell is run with each.
        private: The data is private: what the cells cost is composed over all of them.

    Raises:
        ConfigError: Nothing is swept, a list is empty, or there are too many cells.
    """

    start: Mapping[str, Any] = field(default_factory=dict)
    settings: Settings = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    cells: Sequence[Settings] = ()
    seeds: tuple[int, ...] = (0,)
    private: bool = False

    def __post_init__(self) -> None:
        for path, values in self.grid.items():
            listed = isinstance(values, Sequence) and not isinstance(values, str)
            if not listed or not values:
                raise ConfigError(expected(f"grid.{path}", values, "a list of values"))
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(expected("seeds", list(self.seeds), "not empty, each once"))
        if not self.grid and not self.cells:
            raise ConfigError("a sweep needs a [grid], or [[cells]]: nothing is swept")
        for path in {*self.settings, *self.grid, *(p for cell in self.cells for p in cell)}:
            if path in _BY_THE_SWEEP:
                raise ConfigError(f"{path} is not for a sweep to set: {_BY_THE_SWEEP[path]}")
        count = self.count
        if count > MOST_CELLS:
            raise ConfigError(expected("cells", count, f"<= {MOST_CELLS}, seeds included"))

    @property
    def count(self) -> int:
        """How many cells there are, those that turn out to be the same counted twice."""
        grid = math.prod(map(len, self.grid.values())) if self.grid else 0
        return (grid + len(self.cells)) * len(self.seeds)

    def points(self) -> Iterator[dict[str, Any]]:
        """What each cell sets beyond the rest, seeds left aside."""
        if self.grid:
            for values in itertools.product(*self.grid.values()):
                yield dict(zip(self.grid, values, strict=True))
        yield from map(dict, self.cells)


def read_spec(path: Path) -> tuple[SweepSpec, int]:
    """Read a sweep from a TOML file.

    Returns:
        The sweep, and how many cells are to run at once.

    Raises:
        ConfigError: The file can't be read, isn't TOML, or holds something unknown or impossible.
    """
    table = read_toml(path)
    head = build(_Head, {k: v for k, v in table.items() if k not in ("set", "grid", "cells")})
    cells = table.get("cells", [])
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise ConfigError(expected("cells", cells, "tables, each under [[cells]]"))
    spec = SweepSpec(
        start=sections_of(_beside(path, head.scenario)) if head.scenario else {},
        settings=flat(_table(table, "set")),
        grid=flat(_table(table, "grid")),
        cells=[flat(cell) for cell in cells],
        seeds=head.seeds,
        private=head.private,
    )
    return spec, head.workers


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A table's settings by dotted path; a key may hold dots itself.

    >>> flat({"privacy": {"epsilon": [1, 2]}, "lora.rank": [4]})
    {'privacy.epsilon': [1, 2], 'lora.rank': [4]}
    """
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


@dataclass(frozen=True, kw_only=True)
class _Head:
    scenario: str = ""
    seeds: tuple[int, ...] = (0,)
    workers: int = 2
    private: bool = False

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(expected("workers", self.workers, ">= 0"))


def _table(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = table.get(name, {})
    if not isinstance(found, Mapping):
        raise ConfigError(expected(name, found, "a section"))
    return found


def _beside(path: Path, scenario: str) -> str | Path:
    """A scenario's file is looked for beside the sweep's own."""
    return scenario if scenario in names() else path.parent / scenario

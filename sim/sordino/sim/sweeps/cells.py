"""The cells of a sweep: every one resolved, named and checked before anything runs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sordino.core.config import ExperimentConfig
from sordino.core.errors import ConfigError, SordinoError
from sordino.core.settings import to_table
from sordino.privacy.accounting import Event
from sordino.sim.baselines import without_privacy
from sordino.sim.scenarios import experiment
from sordino.sim.sweeps.checks import Checks
from sordino.sim.sweeps.spec import SweepSpec

_MOST_SHOWN = 10  # impossible cells in one message
_LONGEST_WORDS = 48  # of a name's 64 characters


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A run without privacy, and without federation either: made once for all cells it fits.

    Attributes:
        name: Its folder's, from its settings alone.
        config: Without privacy.
    """

    name: str
    config: ExperimentConfig


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: Its folder's, from its settings alone: a changed setting is another cell.
        settings: What it sets beyond what all cells share, by dotted path; the seed left aside.
        config: All its settings.
        baseline: What it is compared with; None for a cell without privacy.
        events: What it will charge each client, or under central trust the coordinator.
    """

    name: str
    settings: Mapping[str, Any]
    config: ExperimentConfig
    baseline: Baseline | None
    events: tuple[Event, ...]

    @property
    def seed(self) -> int:
        """The cell's seed."""
        return self.config.seed


def lay_out(spec: SweepSpec, cache: Path) -> tuple[Cell, ...]:
    """Every cell of a sweep, in the order of the grid, then of the single cells; seeds innermost.

    Cells that turn out to be the same are one. A base, its data and a plan's noise are looked up
    and solved for here, so that no cell can turn out to be impossible after hours.

    Args:
        spec: The sweep.
        cache: The model cache.

    Raises:
        ConfigError: A cell is impossible: names each one's settings, and what was required.
    """
    checks = Checks(cache, private=spec.private)
    cells: dict[str, Cell] = {}
    impossible: list[str] = []
    for point in spec.points():
        try:
            configs = [_resolve(spec, point, seed) for seed in spec.seeds]
            events = checks.check(configs[0], point)
        except SordinoError as error:
            impossible.append(f"  {label(point)}: {error}")
            continue
        for config in configs:
            cell = _cell(point, config, events)
            cells.setdefault(cell.name, cell)
    if impossible:
        raise ConfigError(_refusal(impossible))
    return tuple(cells.values())


def label(settings: Mapping[str, Any]) -> str:
    """A cell's own settings in words.

    >>> label({"privacy.epsilon": 1.0, "lora.targets": ["v_proj"]})
    'privacy.epsilon = 1.0, lora.targets = ["v_proj"]'
    """
    return (
        ", ".join(f"{path} = {value_in_words(value)}" for path, value in settings.items())
        or "as it is"
    )


def value_in_words(value: Any) -> str:
    """A setting's value; a list as TOML has it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _resolve(spec: SweepSpec, point: Mapping[str, Any], seed: int) -> ExperimentConfig:
    config = experiment(spec.start, {**spec.settings, **point, "seed": seed})
    # A cell is one process of the sweep's own: in it, its clients take turns.
    return replace(config, performance=replace(config.performance, workers=0))


def _cell(point: Mapping[str, Any], config: ExperimentConfig, events: tuple[Event, ...]) -> Cell:
    baseline = None
    if config.privacy.trust != "none":
        twin = without_privacy(config)
        baseline = Baseline(name=_name(f"seed-{twin.seed}", twin), config=twin)
    words = [f"{path.rpartition('.')[2]}-{value_in_words(value)}" for path, value in point.items()]
    name = _name(".".join([*words, f"seed-{config.seed}"]), config)
    return Cell(name=name, settings=dict(point), config=config, baseline=baseline, events=events)


def _name(words: str, config: ExperimentConfig) -> str:
    """Words for people, and a digest of all settings for certainty; good as a run's id."""
    text = json.dumps(to_table(config), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-.")
    return f"{plain[:_LONGEST_WORDS].rstrip('-.')}-{digest}"


def _refusal(impossible: list[str]) -> str:
    shown = impossible[:_MOST_SHOWN]
    if more := len(impossible) - len(shown):
        shown.append(f"  and {more} more")
    count = "one cell is" if len(impossible) == 1 else f"{len(impossible)} cells are"
    return "\n".join([f"{count} impossible, and nothing was run:", *shown])

"""Shipped experiments, by name."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sordino.core.config import ExperimentConfig, read_toml, resolve_experiment
from sordino.core.errors import ConfigError
from sordino.core.settings import put


def names() -> list[str]:
    """The shipped scenarios."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.toml"))


def scenario_path(name: str) -> Path:
    """Find a scenario: a shipped one by its name, or a TOML file.

    Raises:
        ConfigError: There is neither.
    """
    if name in names():
        return Path(__file__).parent / f"{name}.toml"
    path = Path(name)
    if path.is_file():
        return path
    raise ConfigError(
        f"no scenario {name!r}: shipped are {', '.join(names())}; or give the path of a TOML file"
    )


def experiment(
    scenario: str | Path | Mapping[str, Any] = "demo", settings: Mapping[str, Any] | None = None
) -> ExperimentConfig:
    """An experiment from a scenario and settings over it; what both leave open suits its base.

    Args:
        scenario: The name of a shipped one, a TOML file, or its sections as a dictionary.
        settings: By dotted path.

    Raises:
        ConfigError: There is no such scenario, or something in it is unknown or impossible.

    >>> experiment("demo", {"privacy.epsilon": 2.0, "lora.rank": 4}).train.learning_rate
    2.0
    """
    table = sections_of(scenario)
    for path, value in (settings or {}).items():
        put(table, path, value)
    return resolve_experiment(table)


def sections_of(scenario: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """A scenario's sections as they stand, to be changed at will; see `experiment`.

    Raises:
        ConfigError: There is no such scenario, or it can't be read.
    """
    if isinstance(scenario, Mapping):
        return copy.deepcopy(dict(scenario))
    return read_toml(scenario_path(str(scenario)))

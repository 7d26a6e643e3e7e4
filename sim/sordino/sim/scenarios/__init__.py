"""Shipped experiments, by name."""

from __future__ import annotations

from pathlib import Path

from sordino.core.errors import ConfigError


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

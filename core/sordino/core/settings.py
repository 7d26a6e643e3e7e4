"""TOML tables into frozen dataclasses; unknown keys, wrong types, impossible values are refused."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from sordino.core.errors import ConfigError, expected

T = TypeVar("T")


def build(cls: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass `cls` from a TOML table.

    Args:
        cls: A frozen dataclass whose fields are scalars, tuples of scalars, or further dataclasses.
        table: The table as `tomllib` gives it.
        where: Dotted path of the table, for messages.

    Raises:
        ConfigError: An unknown key, a value of the wrong type, or one that `cls` refuses.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in table.items():
        path = f"{where}.{key}" if where else key
        if key not in fields:
            raise ConfigError(_unknown(path, key, fields))
        values[key] = _convert(hints[key], value, path)
    missing = [
        name
        for name, f in fields.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        path = f"{where}.{missing[0]}" if where else missing[0]
        raise ConfigError(f"{path} is required: add it to the configuration")
    return cls(**values)


def to_table(config: Any) -> dict[str, Any]:
    """Turn a settings dataclass back into plain TOML values; fields that are None are left out."""
    table: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is None:
            continue
        if dataclasses.is_dataclass(value):
            table[field.name] = to_table(value)
        elif isinstance(value, tuple):
            table[field.name] = list(value)
        else:
            table[field.name] = value
    return table


def to_toml(config: Any) -> str:
    """Write a settings dataclass as TOML, sections in the order of its fields."""
    return "\n".join(_toml_lines(to_table(config), ())) + "\n"


def set_by_path(table: dict[str, Any], assignment: str) -> None:
    """Apply one ``section.key=value`` to a table; the value is read as TOML, else as a string.

    Raises:
        ConfigError: The assignment has no ``=`` or an empty key.
    """
    path, separator, text = assignment.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise ConfigError(expected("--set", assignment, "as section.key=value"))
    try:
        value = tomllib.loads(f"v = {text.strip()}")["v"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    put(table, path.strip(), value)


def put(table: dict[str, Any], path: str, value: Any) -> None:
    """Give the setting at a dotted path a value; sections on the way are made.

    >>> table = {"lora": {"rank": 8}}
    >>> put(table, "lora.alpha", 4.0)
    >>> table
    {'lora': {'rank': 8, 'alpha': 4.0}}

    Raises:
        ConfigError: Something on the way is a value, not a section.
    """
    *sections, name = path.split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(expected(path, value, f"with {section} a section"))
    table[name] = value


def _unknown(path: str, key: str, fields: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(key, fields, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(fields)}"
    return f"unknown key {path}: {hint}"


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        inner = [h for h in typing.get_args(hint) if h is not type(None)]
        return _convert(inner[0], value, path)
    if origin is typing.Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            raise ConfigError(expected(path, value, f"one of {', '.join(map(str, allowed))}"))
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(expected(path, value, "a list"))
        inner_hint = typing.get_args(hint)[0]
        return tuple(_convert(inner_hint, v, f"{path}[{i}]") for i, v in enumerate(value))
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(expected(path, value, "a section"))
        return build(hint, value, path)  # type: ignore[arg-type]
    return _scalar(hint, value, path)


def _scalar(hint: Any, value: Any, path: str) -> Any:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(expected(path, value, names.get(hint, str(hint))))
    return value


def _toml_lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = [f"{k} = {_toml_value(v)}" for k, v in table.items() if not isinstance(v, dict)]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += ["", f"[{'.'.join((*path, key))}]", *_toml_lines(value, (*path, key))]
    return lines


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are a subset of TOML's basic strings, but for DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(_toml_value(v) for v in value)}]"
    return repr(value)

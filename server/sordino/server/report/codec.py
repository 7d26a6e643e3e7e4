"""RunReport to report.json and back: one order, strict types, nothing unknown, nothing missing."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

from sordino.core.errors import ReportError, expected
from sordino.server.report.schema import SCHEMA_VERSION, RunReport

_NAMES = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def to_json(report: RunReport) -> str:
    """Encode a report: fields in the schema's order, mappings sorted, one trailing newline.

    Raises:
        ReportError: A value is of the wrong type, or a path in `simulation_only` names nothing.
    """
    encoded = _encode(report)
    _decode(RunReport, encoded, "$")
    assert_paths_exist(report.simulation_only)
    return json.dumps(encoded, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str) -> RunReport:
    """Read report.json.

    Raises:
        ReportError: It isn't JSON, a key is unknown, missing or given twice, a type is wrong, or
            a figure is impossible.
    """
    try:
        tree = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ReportError(f"report.json is not valid JSON: {error}") from error
    number = tree.get("schema_version") if isinstance(tree, dict) else None
    if isinstance(number, int) and number != SCHEMA_VERSION:  # before a key that it lacks is named
        required = f"{SCHEMA_VERSION}, the version that this release reads"
        raise ReportError(expected("schema_version", number, required))
    report = _decode(RunReport, tree, "$")
    assert_paths_exist(report.simulation_only)
    return typing.cast(RunReport, report)


def assert_paths_exist(paths: tuple[str, ...]) -> None:
    """Refuse a `simulation_only` path that names no field of the schema."""
    for path in paths:
        hint: Any = RunReport
        root, *names = path.split(".")
        if root != "$" or not names:
            raise ReportError(expected("simulation_only", path, "to name a field, from $ on"))
        for name in names:
            key, star, _ = name.partition("[*]")
            inner = _strip_optional(hint)
            known = dataclasses.is_dataclass(inner) and key in typing.get_type_hints(inner)
            hint = typing.get_type_hints(inner)[key] if known else None
            repeated = typing.get_origin(hint) is tuple
            if not known or repeated != bool(star):
                raise ReportError(expected("simulation_only", path, "to name a field"))
            hint = typing.get_args(hint)[0] if repeated else hint


def _refuse_constant(name: str) -> Any:
    raise ReportError(f"expected every number finite, got {name}: unknown figures are null")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ReportError(expected("keys", [key for key, _ in pairs], "each once"))
    return table


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _encode(value[key]) for key in sorted(value)}
    if isinstance(value, tuple | list):
        return [_encode(item) for item in value]
    return value


def _strip_optional(hint: Any) -> Any:
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return hint
    return next(inner for inner in typing.get_args(hint) if inner is not type(None))


def _decode(hint: Any, value: Any, path: str) -> Any:
    inner = _strip_optional(hint)
    if value is None and inner is not hint:
        return None
    origin = typing.get_origin(inner)
    if dataclasses.is_dataclass(inner):
        return _decode_section(inner, value, path)
    if origin is typing.Literal:
        allowed = typing.get_args(inner)
        if value not in allowed:
            raise ReportError(expected(path, value, f"one of {', '.join(allowed)}"))
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ReportError(expected(path, value, "a list"))
        item = typing.get_args(inner)[0]
        return tuple(_decode(item, v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise ReportError(expected(path, value, "an object"))
        return {key: _decode(str, item, f"{path}.{key}") for key, item in value.items()}
    return _decode_scalar(inner, value, path)


def _decode_section(cls: Any, value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise ReportError(expected(path, value, "an object"))
    hints = typing.get_type_hints(cls)
    for key in value:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(hints)}"
            raise ReportError(f"unknown key {path}.{key}: {hint}")
    missing = [key for key in hints if key not in value]
    if missing:
        raise ReportError(
            f"{path}.{missing[0]} is missing: every key is written, unknown ones as null"
        )
    return cls(**{key: _decode(hints[key], item, f"{path}.{key}") for key, item in value.items()})


def _decode_scalar(hint: type, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or isinstance(value, bool) != (hint is bool):
        raise ReportError(expected(path, value, _NAMES.get(hint, str(hint))))
    return value

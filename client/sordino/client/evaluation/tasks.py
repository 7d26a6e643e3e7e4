"""Tasks in the form of lm-eval-harness' YAML files, over local data: what they ask, item by item.

Read is the part of the form that describes a task over local files: where the data lies, templates
(Jinja) for the words, the choices and the answer, and what ends a written answer. A task that asks
for anything else is refused by the name of the key; its package runs those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sordino.client.data.files import rows_of
from sordino.core.errors import DataError, expected

OutputType = Literal["multiple_choice", "generate_until"]
_OUTPUT_TYPES = ("multiple_choice", "generate_until")
_KEYS = {
    "task", "output_type", "dataset_path", "dataset_kwargs", "test_split", "validation_split",
    "doc_to_text", "doc_to_choice", "doc_to_target", "target_delimiter", "generation_kwargs",
    "description",
}  # fmt: skip
_UNREAD = {"metric_list", "metadata", "tag", "group", "repeats", "should_decontaminate"}
_LOCAL = ("json", "parquet", "arrow")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question.

    Attributes:
        text: What the model is given.
        choices: Continuations to choose from; empty where it writes the answer itself.
        answer: Number of the right choice.
        answers: Right answers in words.
    """

    text: str
    choices: tuple[str, ...] = ()
    answer: int = 0
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task that was read.

    Attributes:
        name: Its own.
        kind: Whether answers are chosen or written.
        items: The questions.
        until: What ends a written answer.
        most: Tokens of a written answer.
    """

    name: str
    kind: OutputType
    items: tuple[Item, ...]
    until: tuple[str, ...] = ("\n",)
    most: int = 64


def read_task(path: Path, limit: int | None = None) -> Task:
    """Read a task and its data.

    Args:
        path: The YAML file; paths in it are relative to its folder.
        limit: Only so many items, the first ones.

    Raises:
        DataError: A file can't be read, a key isn't known or lacks, or a template fails.
    """
    table = _table(path)
    for key in sorted(set(table) - _KEYS - _UNREAD):
        raise DataError(
            expected(f"{path}: key", key, f"one of {', '.join(sorted(_KEYS))}", _ELSEWHERE)
        )
    kind = table.get("output_type", "multiple_choice")
    if kind not in _OUTPUT_TYPES:
        wanted = f"one of {', '.join(_OUTPUT_TYPES)}"
        raise DataError(expected(f"{path}: output_type", kind, wanted, _ELSEWHERE))
    asked = _Words(path, table)
    items = []
    for number, row in enumerate(_rows(path, table)):
        if limit is not None and number >= limit:
            break
        items.append(asked.item(row, kind, f"{path}, item {number + 1}"))
    if not items:
        raise DataError(f"{path}: the data has no row")
    until, most = _ends(path, table)
    return Task(
        name=str(table.get("task", path.stem)),
        kind=kind,
        items=tuple(items),
        until=until,
        most=most,
    )


_ELSEWHERE = "run other tasks with the package lm-eval"


class _Words:
    """A task's templates."""

    def __init__(self, path: Path, table: Mapping[str, Any]) -> None:
        self._environment = ImmutableSandboxedEnvironment(keep_trailing_newline=True)
        self._table, self._path = table, path
        self._delimiter = str(table.get("target_delimiter", " "))
        self._description = str(table.get("description", ""))
        for key in ("doc_to_text", "doc_to_target"):
            if not isinstance(table.get(key), str | int):
                raise DataError(expected(f"{path}: {key}", table.get(key), "a template or column"))

    def item(self, row: Mapping[str, Any], kind: str, where: str) -> Item:
        text = self._description + str(self._of("doc_to_text", row, where))
        target = self._of("doc_to_target", row, where)
        if kind == "generate_until":
            answers = target if isinstance(target, list) else [target]
            return Item(text=text, answers=tuple(str(answer) for answer in answers))
        choices = self._choices(row, where)
        return Item(
            text=text,
            choices=tuple(f"{self._delimiter}{choice}" for choice in choices),
            answer=_number(target, choices, where),
        )

    def _choices(self, row: Mapping[str, Any], where: str) -> list[str]:
        given = self._table.get("doc_to_choice")
        found = given if isinstance(given, list) else self._of("doc_to_choice", row, where)
        if isinstance(found, Mapping):  # ARC's and others': {"text": [..], "label": [..]}
            found = found.get("text")
        if isinstance(found, str):
            found = yaml.safe_load(found)
        if not isinstance(found, list) or len(found) < 2:
            raise DataError(expected(f"{where}: doc_to_choice", found, "two choices or more"))
        return [str(choice) for choice in found]

    def _of(self, key: str, row: Mapping[str, Any], where: str) -> Any:
        template = self._table.get(key)
        if isinstance(template, str) and template in row:
            return row[template]
        if not isinstance(template, str):
            return template
        try:
            return self._environment.from_string(template).render(**row)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            raise DataError(f"{where}: {key} can't be written: {error}") from error


def _number(target: Any, choices: Sequence[str], where: str) -> int:
    """The right choice, by its number or by its words."""
    text = str(target).strip()
    if text in choices:
        return choices.index(text)
    if text.isdecimal() and int(text) < len(choices):
        return int(text)
    raise DataError(expected(f"{where}: doc_to_target", target, "a choice, or its number from 0"))


def _ends(path: Path, table: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
    given = table.get("generation_kwargs") or {}
    until = given.get("until", ["\n"])
    most = given.get("max_gen_toks", 64)
    if given.get("do_sample"):
        raise DataError(expected(f"{path}: do_sample", True, "false", "answers are greedy"))
    if not isinstance(most, int) or most < 1:
        raise DataError(expected(f"{path}: max_gen_toks", most, ">= 1"))
    return tuple(str(end) for end in ([until] if isinstance(until, str) else until)), most


def _rows(path: Path, table: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    kind = table.get("dataset_path")
    if kind not in _LOCAL:
        raise DataError(
            expected(f"{path}: dataset_path", kind, f"one of {', '.join(_LOCAL)}", _LOCALLY)
        )
    files = (table.get("dataset_kwargs") or {}).get("data_files")
    split = table.get("test_split") or table.get("validation_split") or "test"
    if isinstance(files, Mapping):
        files = files.get(split)
    for name in [files] if isinstance(files, str) else files or []:
        for _, row in rows_of(path.parent / name):
            yield row
    if not files:
        raise DataError(expected(f"{path}: dataset_kwargs.data_files", files, f"files of {split}"))


_LOCALLY = "nothing is downloaded: name local files in dataset_kwargs.data_files"


def _table(path: Path) -> dict[str, Any]:
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"can't read {path} as a task: {error}") from error
    if not isinstance(table, dict):
        raise DataError(expected(str(path), type(table).__name__, "a table of keys"))
    return table

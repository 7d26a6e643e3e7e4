"""Records from files: JSONL, Parquet, or the folder of a Hugging Face dataset.

A row has a user column and one of: ``text``; ``prompt`` and ``completion``; chat ``messages``, a
list of ``{"role": …, "content": …}``. A row without a user, or without words to learn, is skipped
and counted. Anything else that is wrong is refused with the file and the line or row.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.client.data.records import Record, Turn
from sordino.core.errors import DataError

MAX_LINE_BYTES = 8 * 2**20
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
# In a dataset's folder the first kind that is there is read. Files of caches are no data.
_FOLDER_PATTERNS = ("*.parquet", "*.arrow", "*.jsonl", "*.ndjson")

Row = tuple[str, Mapping[str, Any]]  # where it is, and its columns


@dataclass(frozen=True)
class Loaded:
    """What a file or folder holds.

    Attributes:
        records: Each user's records in the order of the file.
        skipped: How many rows were left out, by reason.
    """

    records: Mapping[str, tuple[Record, ...]]
    skipped: Mapping[str, int]


def load(path: Path, user_column: str) -> Loaded:
    """Read every record of a file or a dataset's folder; there may be none.

    Raises:
        DataError: It can't be read, or has no such user column.
    """
    records: dict[str, list[Record]] = {}
    skipped: Counter[str] = Counter()
    for file in data_files(path):
        for where, row in rows_of(file):
            user = _user(row, user_column, where)
            record = _record(row, where)
            if user is None:
                skipped["no user"] += 1
            elif record is None:
                skipped["no words to learn"] += 1
            else:
                records.setdefault(user, []).append(record)
    return Loaded({user: tuple(some) for user, some in records.items()}, dict(skipped))


def usable(row: Mapping[str, Any], where: str) -> bool:
    """Whether a row has words to learn, whoever its user is.

    Raises:
        DataError: It is no row of a dataset.
    """
    return _record(row, where) is not None


def data_files(path: Path) -> tuple[Path, ...]:
    """The files to read: the path itself, or a dataset's files (its train split if it has one).

    Raises:
        DataError: There is no such path, or nothing there that can be read.
    """
    if path.is_file():
        if path.suffix not in (*_JSON_SUFFIXES, ".parquet", ".arrow"):
            raise DataError(
                f"{path}: expected a .jsonl, .parquet or .arrow file, got {path.suffix!r}"
            )
        return (path,)
    if not path.is_dir():
        raise DataError(f"there is no file or folder {path}: check data.source")
    for pattern in _FOLDER_PATTERNS:
        found = sorted(f for f in path.rglob(pattern) if not f.name.startswith("cache-"))
        train = [f for f in found if _is_train(f.relative_to(path))]
        if found:
            return tuple(train or found)
    raise DataError(f"{path} holds no .parquet, .arrow or .jsonl file: is it a dataset's folder?")


def _is_train(relative: Path) -> bool:
    return relative.name.startswith("train") or "train" in relative.parts[:-1]


def rows_of(file: Path) -> Iterator[Row]:
    """A file's rows, each with where it is.

    Raises:
        DataError: It can't be read.
    """
    try:
        yield from _json_rows(file) if file.suffix in _JSON_SUFFIXES else _arrow_rows(file)
    except OSError as error:
        raise DataError(f"can't read {file}: {error.strerror or error}") from error


def _json_rows(file: Path) -> Iterator[Row]:
    with file.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{file.name} line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise DataError(
                    f"{where} is longer than {MAX_LINE_BYTES // 2**20} MiB: split the record"
                )
            if line.strip():
                yield where, _json_row(line, where)


def _json_row(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8 (byte {error.start + 1}): convert the file"
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where} is not valid JSON: {error.msg} at column {error.colno}"
        ) from error
    except RecursionError as error:
        raise DataError(f"{where} is not valid JSON for a record: nested too deeply") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected one JSON object a line, got a {type(row).__name__}")
    return row


def _arrow_rows(file: Path) -> Iterator[Row]:
    import pyarrow as pa  # noqa: PLC0415  (30 MB, which a device with JSON lines does without)

    number = 0
    try:
        for batch in _arrow_batches(file):
            for row in batch.to_pylist():
                number += 1
                yield f"{file.name} row {number}", row
    except pa.ArrowException as error:
        raise DataError(f"{file} can't be read as {file.suffix[1:]}: {error}") from error


def _arrow_batches(file: Path) -> Iterator[Any]:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    if file.suffix == ".parquet":
        with pq.ParquetFile(file) as parquet:
            yield from parquet.iter_batches(batch_size=1024)
        return
    with pa.memory_map(str(file)) as mapped:
        magic = mapped.read(6)
        mapped.seek(0)
        if magic == b"ARROW1":
            reader = pa.ipc.open_file(mapped)
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            yield from pa.ipc.open_stream(mapped)


def _user(row: Mapping[str, Any], column: str, where: str) -> str | None:
    if column not in row:
        there = ", ".join(map(str, row)) or "none"
        raise DataError(
            f"{where} has no user column {column!r}: its columns are {there}; set data.user_column"
        )
    value = row[column]
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{where}: expected {column} a string or a whole number, got {value!r}")
    return _valid(str(value), column, where).strip() or None


def _record(row: Mapping[str, Any], where: str) -> Record | None:
    if row.get("messages") is not None:
        return _chat(row["messages"], where)
    if "completion" in row:
        prompt, text = _string(row, "prompt", where), _string(row, "completion", where)
    elif "text" in row:
        prompt, text = "", _string(row, "text", where)
    elif "messages" in row:
        return None
    else:
        raise DataError(
            f"{where} has no text, no prompt and completion, and no messages: "
            f"its columns are {', '.join(map(str, row))}"
        )
    return Record(prompt=prompt, text=text) if text.strip() else None


def _chat(messages: Any, where: str) -> Record | None:
    if not isinstance(messages, list):
        raise DataError(f"{where}: expected messages a list, got a {type(messages).__name__}")
    turns = []
    for index, message in enumerate(messages):
        place = f"{where} messages[{index}]"
        if not isinstance(message, dict):
            raise DataError(
                f"{place}: expected an object with role and content, got {message!r:.80}"
            )
        turns.append(Turn(_string(message, "role", place), _string(message, "content", place)))
    learned = any(turn.role == "assistant" and turn.content.strip() for turn in turns)
    return Record(messages=tuple(turns)) if learned else None


def _string(row: Mapping[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: expected {column} a string, got {value!r:.80}")
    return _valid(value, column, where)


def _valid(text: str, column: str, where: str) -> str:
    if len(text) > MAX_LINE_BYTES:
        raise DataError(f"{where}: {column} is longer than {MAX_LINE_BYTES // 2**20} MiB: split it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can spell half of a surrogate pair, which no text can hold.
        raise DataError(f"{where}: {column} holds a lone surrogate at {error.start}") from error
    return text

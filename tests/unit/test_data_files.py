"""Files of one's own: what is read, what is skipped, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sordino.client.data import files
from sordino.client.data.records import Record, Turn
from sordino.client.data.source import open_source, select_users
from sordino.core.config import DataConfig
from sordino.core.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"user": "ann", "text": f"line {i}", "prompt": None, "completion": None} for i in range(5)
] + [{"user": "bob", "text": f"word {i}", "prompt": None, "completion": None} for i in range(3)]


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"user": row["user"], "text": row["text"]} for row in rows]


def parquet(path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(texts(ROWS)), path)
    return path


def arrow(path: Path, opened: Callable[..., Any]) -> Path:
    table = pa.Table.from_pylist(texts(ROWS))
    with opened(str(path), table.schema) as writer:
        writer.write_table(table)
    return path


def saved_dataset(path: Path) -> Path:
    (path / "train").mkdir(parents=True)
    (path / "test").mkdir()
    arrow(path / "train" / "data-00000-of-00001.arrow", pa.ipc.new_stream)
    jsonl(path / "test" / "data.jsonl", [{"user": "eve", "text": "not read"}])
    arrow(path / "train" / "cache-1.arrow", pa.ipc.new_stream)
    (path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    return path


def hub_dataset(path: Path) -> Path:
    (path / "data").mkdir(parents=True)
    parquet(path / "data" / "train-00000-of-00001.parquet")
    table = pa.Table.from_pylist([{"user": "eve", "text": "not read"}])
    pq.write_table(table, path / "data" / "test-00000-of-00001.parquet")
    return path


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: jsonl(folder / "d.jsonl", texts(ROWS)),
        lambda folder: parquet(folder / "d.parquet"),
        lambda folder: arrow(folder / "d.arrow", pa.ipc.new_stream),
        lambda folder: arrow(folder / "d.arrow", pa.ipc.new_file),
        lambda folder: saved_dataset(folder / "d"),
        lambda folder: hub_dataset(folder / "d"),
    ],
    ids=["jsonl", "parquet", "arrow-stream", "arrow-file", "saved-dataset", "hub-dataset"],
)
def test_every_kind_of_file_gives_the_same_users(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    config = DataConfig(source=str(make(tmp_path)), clients=2, held_out=0.4)
    source = open_source(config)
    assert dict(source.users()) == {"ann": 5, "bob": 3}
    assert select_users(source, config) == ("ann", "bob")
    assert source.label == "d"
    ann = source.user("ann")
    # By each line's own hash: line 2 alone lies below 0.4.
    assert [r.text for r in ann.train] == ["line 0", "line 1", "line 3", "line 4"]
    assert [r.text for r in ann.held_out] == ["line 2"]


def test_prompts_and_chats(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    path = jsonl(
        tmp_path / "d.jsonl",
        [
            {"who": 7, "prompt": "2+2=", "completion": "4"},
            {"who": 7, "completion": "alone"},
            {"who": 7, "messages": chat},
        ],
    )
    records = files.load(path, "who").records["7"]
    assert records == (
        Record(prompt="2+2=", text="4"),
        Record(text="alone"),
        Record(messages=(Turn("user", "hi"), Turn("assistant", "hello"))),
    )


def test_rows_without_a_user_or_words_are_skipped_and_counted(tmp_path: Path) -> None:
    silent = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " "}]
    path = jsonl(
        tmp_path / "d.jsonl",
        [
            {"user": "ann", "text": "kept"},
            {"user": "ann", "text": " \n"},
            {"user": "ann", "text": None},
            {"user": "ann", "messages": silent},
            {"user": "ann", "messages": None},
            {"user": "bob", "text": ""},
            {"user": "", "text": "whose?"},
            {"user": None, "text": "whose?"},
        ],
    )
    with path.open("a") as stream:
        stream.write("\n   \n")
    source = open_source(DataConfig(source=str(path), clients=1))
    assert dict(source.users()) == {"ann": 1}
    assert "5 rows were skipped: no words to learn" in source.notes
    assert "2 rows were skipped: no user" in source.notes
    assert any("one user" in note for note in source.notes)
    assert len(source.user("ann").train) == 1
    assert source.user("ann").held_out == ()


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"user": "ann", "text": "x"}\n')
    assert set(files.load(path, "user").records) == {"ann"}


GOOD = b'{"user": "ann", "text": "x"}\n'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (GOOD + b'{"user": "ann", "text": "\xff"}\n', r"line 2 is not UTF-8 \(byte 26\)"),
        (GOOD + b"\n{oops\n", "line 3 is not valid JSON: .* at column 2"),
        (GOOD + b"[" * 100_000 + b"\n", "line 2 is not valid JSON"),
        (b"[1, 2]\n", "line 1: expected one JSON object a line, got a list"),
        (
            b'{"author": "ann", "text": "x"}\n',
            "no user column 'user': its columns are author, text",
        ),
        (b'{"user": "ann", "words": "x"}\n', "has no text, .* its columns are user, words"),
        (b'{"user": 1.5, "text": "x"}\n', "expected user a string or a whole number, got 1.5"),
        (b'{"user": true, "text": "x"}\n', "expected user a string or a whole number, got True"),
        (b'{"user": "ann", "text": ["x"]}\n', "expected text a string"),
        (b'{"user": "ann", "text": "\\ud800"}\n', "text holds a lone surrogate at 0"),
        (b'{"user": "ann", "messages": "hi"}\n', "expected messages a list, got a str"),
        (b'{"user": "ann", "messages": ["hi"]}\n', r"messages\[0\]: expected an object"),
        (b'{"user": "ann", "messages": [{"role": 1}]}\n', r"messages\[0\]: expected role a string"),
    ],
)
def test_bad_lines_are_refused_by_number(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=says):
        files.load(path, "user")


def test_a_very_long_line_is_refused_without_reading_it_all(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    with path.open("wb") as stream:
        stream.write(GOOD + b'{"user": "ann", "text": "')
        stream.truncate(50 * 2**20)
    with pytest.raises(DataError, match="line 2 is longer than 8 MiB"):
        files.load(path, "user")


@pytest.mark.parametrize("name", ["d.parquet", "d.arrow"])
def test_a_broken_binary_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"not what it says")
    with pytest.raises(DataError, match="can't be read as"):
        files.load(path, "user")


def test_a_parquet_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"user": ["ann", "bob"], "text": [1, 2]}), path)
    with pytest.raises(DataError, match="row 1: expected text a string, got 1"):
        files.load(path, "user")


def test_paths_that_hold_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file or folder"):
        files.load(tmp_path / "none.jsonl", "user")
    with pytest.raises(DataError, match=r"holds no \.parquet"):
        files.load(tmp_path, "user")
    (tmp_path / "d.csv").write_text("user,text\n")
    with pytest.raises(DataError, match=r"expected a \.jsonl, \.parquet or \.arrow file"):
        files.load(tmp_path / "d.csv", "user")


def test_users_that_are_not_there(tmp_path: Path) -> None:
    path = str(jsonl(tmp_path / "d.jsonl", texts(ROWS)))
    config = DataConfig(source=path, clients=3)
    with pytest.raises(DataError, match=r"expected data.clients <= 2 .*, got 3"):
        select_users(open_source(config), config)
    config = DataConfig(source=path, users=("anne",))
    with pytest.raises(DataError, match="no user is called 'anne': did you mean ann"):
        select_users(open_source(config), config)
    # Asked for on a device, the same user owns no record: that there is none is private.
    nobody = open_source(config).user("anne")
    assert (nobody.train, nobody.held_out) == ((), ())
    config = DataConfig(source=path, users=("ann", "ann"))
    with pytest.raises(DataError, match="twice"):
        select_users(open_source(config), config)


def test_each_record_is_placed_by_its_own_words(tmp_path: Path) -> None:
    rows = [{"user": "ann", "text": str(i)} for i in range(20)]
    path = jsonl(tmp_path / "d.jsonl", rows)

    def parts(**settings: float) -> tuple[list[int], list[int]]:
        ann = open_source(DataConfig(source=str(path), **settings)).user("ann")  # type: ignore[arg-type]
        return [int(r.text) for r in ann.train], [int(r.text) for r in ann.held_out]

    held = [7, 13, 14, 17]
    assert parts(held_out=0.3) == ([i for i in range(20) if i not in held], held)
    train, held = parts(held_out=0.3, share=0.5)
    assert held == [7, 13, 17]
    assert train == [0, 5, 8, 10, 11, 12, 15, 16]
    empty = [{"user": "ann", "text": ""}, {"user": "", "text": "whose?"}]
    jsonl(path, empty)
    assert parts() == ([], [])


def test_a_file_without_a_usable_record_has_no_users(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    config = DataConfig(source=str(path))
    for content, says in (
        (b"", "d has no usable record: it is empty"),
        (
            b'{"user": "ann", "text": ""}\n',
            "no usable record: 1 rows were skipped: no words to learn",
        ),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=says):
            select_users(open_source(config), config)


def test_the_budget_follows_the_user_and_not_the_content(tmp_path: Path) -> None:
    def identity(path: Path, user: str = "ann") -> str:
        return open_source(DataConfig(source=str(path))).user(user).dataset_id

    first = jsonl(tmp_path / "diary.jsonl", texts(ROWS))
    before = identity(first)
    assert identity(first, "bob") != before
    jsonl(first, [*texts(ROWS), {"user": "ann", "text": "new"}])
    assert identity(first) == before
    (tmp_path / "elsewhere").mkdir()
    assert identity(parquet(tmp_path / "elsewhere" / "diary.parquet")) == before
    assert identity(jsonl(tmp_path / "other.jsonl", texts(ROWS))) != before

"""A record added or removed changes what a device trains on and holds out by that record alone.

That is where every guarantee begins: a mechanism bounds what one record does to a sum, and the sum
is of the records that it is given. Asked of the real session over a real file: one record put in at
every place, one that is trained on and one that is held out. The same question must catch a cut, a
cap and a selection by place.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sordino.client import session
from sordino.client.data import files, records, source
from sordino.client.data.chat import ChatTemplate
from sordino.client.data.records import Record, Turn
from sordino.client.data.tokens import EncodedRecords, TokenizerFile
from sordino.client.session import ClientSession, open_session
from sordino.core.adapters import adapter_manifest
from sordino.core.config import METRICS, DataConfig, LoraConfig
from sordino.core.errors import ConfigError, DataError
from sordino.sim.evaluation import evaluate_all
from sordino.sim.grid import LocalGrid

Row = dict[str, Any]

CHAT = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
REFUSED = [CHAT[0], *CHAT]  # two turns of one role in a row
STRICT = (
    "{% for m in messages %}{% if loop.previtem and loop.previtem.role == m.role %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }} {% endfor %}"
)
OTHERS: list[Row] = [
    *({"text": f"The {n}th word of my story, and {n * n} more."} for n in range(11)),
    {"text": "Twice."},
    {"text": "Twice."},
    {"text": "A very long record that is cut. " * 20},
    {"prompt": "Say it. " * 40, "completion": "Cut off before the first word to learn."},
    {"messages": CHAT},
    {"text": "  "},
]
TRAINED, HELD_OUT = {"text": "Good morrow."}, {"text": "Farewell 1."}
EXTRA = {
    "trained on": TRAINED,
    "held out": HELD_OUT,
    "one more of the same": {"text": "Twice."},
    "very long": {"text": "Another very long record. " * 30},
    "cut off": {"prompt": "Say more. " * 40, "completion": "Nothing is left."},
    "a chat": {"messages": [*CHAT, *CHAT]},
    "a chat that the template refuses": {"messages": REFUSED},
    "without words": {"text": ""},
}


@pytest.fixture(autouse=True)
def _read_anew() -> Iterator[None]:
    session._source.cache_clear()
    yield
    session._source.cache_clear()


@pytest.fixture
def strict_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base's tokenizer with the template of a model that is strict about a chat's roles."""
    honest = session.warm_base

    def strict(*asked: Any) -> Any:
        base, tokenizer = honest(*asked)
        return base, replace(tokenizer, template=ChatTemplate(STRICT, {}))

    monkeypatch.setattr(session, "warm_base", strict)


def write(path: Path, rows: list[Row], user: str = "ann") -> Path:
    lines = (json.dumps({"user": user, **row}) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def opened(path: Path, **settings: Any) -> ClientSession:
    session._source.cache_clear()
    node = {"data": str(path), "user": "ann", "max-tokens": 32, "state-dir": str(path.parent)}
    return open_session({**node, **settings})


def parts(client: ClientSession) -> Counter[tuple[str, bytes, bytes]]:
    """How often each record, as the model sees it, is in each part."""
    both = (("train", client.records), ("held-out", client.held_out))
    return Counter(
        (name, r.ids.tobytes(), r.targets_mask.tobytes()) for name, part in both for r in part
    )


def difference(one: Counter[Any], other: Counter[Any]) -> int:
    """How many records are in one and not in the other, either way."""
    return ((one - other) + (other - one)).total()


def moved_by(folder: Path, extra: Row, **settings: Any) -> list[int]:
    """How many records differ in the two parts when one is put in, for every place to put it."""
    without = parts(opened(write(folder / "d.jsonl", OTHERS), **settings))
    found = []
    for at in range(len(OTHERS) + 1):
        rows = [*OTHERS[:at], extra, *OTHERS[at:]]
        found.append(
            difference(parts(opened(write(folder / "d.jsonl", rows), **settings)), without)
        )
    return found


@pytest.mark.usefixtures("strict_template")
@pytest.mark.parametrize(
    "settings", [{}, {"held-out": 0.5}, {"share": 0.6}], ids=["as it is", "half", "a share"]
)
@pytest.mark.parametrize("kind", EXTRA)
def test_a_record_changes_the_parts_by_itself_alone(
    tmp_path: Path, kind: str, settings: dict[str, float]
) -> None:
    assert max(moved_by(tmp_path, EXTRA[kind], **settings)) <= 1


@pytest.mark.parametrize(("extra", "part"), [(TRAINED, "train"), (HELD_OUT, "held-out")])
def test_the_test_adds_to_either_part(tmp_path: Path, extra: Row, part: str) -> None:
    assert moved_by(tmp_path, extra) == [1] * (len(OTHERS) + 1)
    alone = parts(opened(write(tmp_path / "d.jsonl", [extra])))
    assert [name for name, *_ in alone.elements()] == [part]


def test_another_users_record_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", OTHERS)
    before = parts(opened(path))
    rows = "".join(json.dumps({"user": "bob", **TRAINED}) + "\n" for _ in range(40))
    path.write_text(rows + path.read_text())
    assert parts(opened(path)) == before


def test_the_first_record_is_no_exception(tmp_path: Path) -> None:
    """No row, or rows of others alone: each is a dataset without a record, and no error."""
    for extra in EXTRA.values():
        with_it = parts(opened(write(tmp_path / "d.jsonl", [extra])))
        without = parts(opened(write(tmp_path / "d.jsonl", [])))
        elsewhere = parts(opened(write(tmp_path / "d.jsonl", OTHERS, user="bob")))
        assert without == elsewhere == Counter()
        assert with_it.total() <= 1


@pytest.mark.usefixtures("strict_template")
def test_what_was_left_out_is_said_on_the_device(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened(write(tmp_path / "d.jsonl", [{"messages": REFUSED}] * 2))
    assert "ann: 2 " in caplog.text
    assert "roles must alternate" in caplog.text
    assert "no train record" in caplog.text
    assert "no held-out record" in caplog.text


# --- a wrong choice is caught -------------------------------------------------------------------


def test_a_cut_by_position_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def last_part(
        some: tuple[Record, ...], *, held_out: float, share: float
    ) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
        cut = len(some) - round(held_out * len(some))
        return some[:cut], some[cut:]

    monkeypatch.setattr(source, "split", last_part)
    assert max(moved_by(tmp_path, TRAINED)) >= 3  # the record, and another out of one part into one


def test_a_cap_on_the_number_of_records_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = records.split

    def first_so_many(some: tuple[Record, ...], **settings: float) -> Any:
        return honest(some[:10], **settings)

    monkeypatch.setattr(source, "split", first_so_many)
    assert max(moved_by(tmp_path, TRAINED)) == 2


def test_dropping_near_doubles_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of those that begin alike: one in front of it takes its place."""
    honest = records.split

    def one_a_beginning(some: tuple[Record, ...], **settings: float) -> Any:
        firsts = {record.text[:3]: record for record in reversed(some)}
        return honest(firsts.values(), **settings)

    monkeypatch.setattr(source, "split", one_a_beginning)
    assert max(moved_by(tmp_path, {"text": "The word that was in the beginning."})) == 2


@pytest.mark.usefixtures("strict_template")
def test_a_record_that_takes_all_others_with_it_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a chat that the template refuses, if one refusal ended the reading of all."""

    def all_or_nothing(self: TokenizerFile, some: Any, max_tokens: int) -> EncodedRecords:
        try:
            return EncodedRecords(tuple(self.encode_record(r, max_tokens) for r in some), ())
        except DataError as error:
            return EncodedRecords((), (str(error),))

    monkeypatch.setattr(TokenizerFile, "encode_records", all_or_nothing)
    assert max(moved_by(tmp_path, {"messages": REFUSED})) > 1


# --- a record's place ---------------------------------------------------------------------------


def test_a_place_is_for_good() -> None:
    """Pinned: another digest would move records that were never trained on into training."""
    chat = Record(messages=(Turn("user", "Hi."), Turn("assistant", "Hello.")))
    places = [records.place("held-out", r) for r in (Record(text="To be"), chat)]
    assert places == [3627779267293186518, 16898584506311478308]
    assert records.place("share", chat) == 7528529489219679645


def test_where_a_records_words_begin_and_end_counts() -> None:
    alike = [
        Record(text="ab"),
        Record(prompt="a", text="b"),
        Record(prompt="ab"),
        Record(messages=(Turn("a", "b"),)),
        Record(messages=(Turn("ab", ""),)),
        Record(messages=(Turn("", "ab"),)),
        Record(text="b", messages=(Turn("a", ""),)),
    ]
    assert len({records.place("held-out", record) for record in alike}) == len(alike)


def test_the_parts_are_as_large_as_asked_and_independent() -> None:
    """2000 records: within 4 standard deviations of a binomial, and so is a part of a part."""
    some = [Record(text=f"record {n}") for n in range(2000)]
    for held_out, share in ((0.2, 1.0), (0.5, 0.5), (0.05, 0.8)):
        train, held = records.split(some, held_out=held_out, share=share)
        for count, chance in ((len(held), held_out * share), (len(train), (1 - held_out) * share)):
            assert abs(count - 2000 * chance) < 4 * (2000 * chance * (1 - chance)) ** 0.5


def test_another_fraction_moves_records_one_way() -> None:
    some = [Record(text=f"record {n}") for n in range(300)]
    train, held = (set(part) for part in records.split(some, held_out=0.2))
    assert held < set(records.split(some, held_out=0.3)[1])
    fewer, fewer_held = records.split(some, held_out=0.2, share=0.5)
    assert set(fewer) < train
    assert set(fewer_held) < held


def test_neither_the_user_nor_the_file_moves_a_record(tmp_path: Path) -> None:
    def held(name: str, user: str) -> tuple[Record, ...]:
        path = write(tmp_path / name, OTHERS, user)
        return source.open_source(DataConfig(source=str(path), held_out=0.5)).user(user).held_out

    assert held("diary.jsonl", "ann") == held("other.jsonl", "ann") == held("diary.jsonl", "bob")


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_is_part_of_the_whole(share: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.share in \(0, 1\]"):
        DataConfig(share=share)


# --- empty parts --------------------------------------------------------------------------------


def test_the_researcher_is_told_of_a_file_without_records(tmp_path: Path) -> None:
    config = DataConfig(source=str(write(tmp_path / "d.jsonl", [{"text": " "}])))
    assert files.load(tmp_path / "d.jsonl", "user").records == {}
    with pytest.raises(DataError, match="d has no usable record: 1 rows were skipped: no words"):
        source.select_users(source.open_source(config), config)


@pytest.mark.parametrize("metric", METRICS)
def test_a_paid_metric_of_nothing_has_no_values(tmp_path: Path, metric: str) -> None:
    client = opened(write(tmp_path / "d.jsonl", [TRAINED]))
    lora = LoraConfig(rank=2)
    manifest = adapter_manifest(client.architecture, lora)
    adapter = {t.name: np.zeros(t.shape, np.float32) for t in manifest.tensors}
    assert client.measure(metric, adapter, lora).shape == (0,)


def test_a_client_that_holds_nothing_out_has_no_loss(tmp_path: Path) -> None:
    rows = [{"user": "ann", **HELD_OUT}, {"user": "bob", **TRAINED}]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    nodes = [
        {"data": str(path), "user": user, "state-dir": str(tmp_path / user)}
        for user in ("ann", "bob")
    ]
    with LocalGrid(nodes, workers=0) as grid:
        losses = evaluate_all(grid, nodes, [None, None])
        assert losses.mean(0) == losses.overall()
        assert losses.mean(1) is None
        with pytest.raises(DataError, match="no client has a held-out record"):
            evaluate_all(grid, nodes[1:], [None])

"""The order that the guarantee rests on: check, charge, train, keep, send."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import flwr.app
import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from support.federation import (
    ARCHITECTURE,
    LORA,
    TinySession,
    initial,
    make_plan,
    make_strategy,
    make_task,
    open_plan,
)

from sordino.client.app import answer, make_app
from sordino.core import adapters
from sordino.core import app as flower
from sordino.core.canonical import sha256_hex
from sordino.core.config import LoraConfig, TrainConfig
from sordino.core.errors import DataError, LedgerError, ModelError, PlanError, UpdateRejectedError
from sordino.core.records import TrainTask
from sordino.core.wire import Envelope, decode_update, encode_task, pack
from sordino.privacy.ledger import read_charges, read_ledger
from sordino.privacy.plan import decode_plan


@pytest.fixture
def session(tmp_path: Path) -> TinySession:
    return TinySession("alice", tmp_path / "alice")


def changed(task: TrainTask, **changes: object) -> TrainTask:
    return TrainTask(**{**task.__dict__, **changes})  # type: ignore[arg-type]


def entries(session: TinySession) -> int:
    path = session.state_dir / "ledger.db"
    return len(read_charges(path)["alice"]) if path.exists() else 0


def test_a_round_is_charged_trained_kept_and_answered(session: TinySession) -> None:
    envelope = answer(session, make_task())
    update = decode_update(envelope)
    book = read_ledger(session.state_dir / "ledger.db")["alice"]
    ((_, standing),) = book.charges.items()
    entry = standing.reserve
    assert update.receipt is not None
    assert standing.commit is not None
    receipt = (update.receipt.ledger_head, update.receipt.entry_index)
    assert receipt == (standing.commit.sha256, standing.commit.index)
    assert (standing.state, standing.artefact) == ("released", sha256_hex(pack(envelope)))
    assert update.plan_sha256 == entry.plan_sha256 == make_plan().sha256
    assert (entry.run_id, entry.round, entry.dataset) == ("run-1", 1, "tiny")
    trained = adapters.trained_manifest(
        adapters.adapter_manifest(ARCHITECTURE, LORA), LORA.aggregation, 1
    )
    assert set(update.tensors) == set(trained.names)


def test_a_reply_holds_the_update_and_the_receipt_and_nothing_else(session: TinySession) -> None:
    envelope = answer(session, make_task())
    assert set(envelope.fields) == {
        "kind",
        "version",
        "run-id",
        "round",
        "plan-sha256",
        "ledger-head",
        "ledger-entry",
    }


def test_a_retry_resends_the_same_bytes_without_charge_or_draw(session: TinySession) -> None:
    first = pack(answer(session, make_task()))
    again = TinySession("alice", session.state_dir)  # the process was restarted in between
    assert pack(answer(again, make_task())) == first
    assert again.trained == 0
    assert not hasattr(again, "draws")
    assert entries(session) == 1


def test_a_retry_with_another_adapter_is_still_the_same_bytes(session: TinySession) -> None:
    first = pack(answer(session, make_task()))
    moved = {n: t + np.float32(0.5) for n, t in initial().items() if not adapters.is_lora_a(n)}
    assert pack(answer(session, changed(make_task(), tensors=moved))) == first


def test_the_same_round_under_another_plan_is_refused(session: TinySession) -> None:
    answer(session, make_task())
    with pytest.raises(PlanError, match="another plan"):
        answer(session, make_task(plan=make_plan(noise_multiplier=0.5)))
    assert session.trained == 1
    assert entries(session) == 1


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), DataError("gone")])
def test_a_crash_after_the_charge_abandons_the_round(
    session: TinySession, error: BaseException
) -> None:
    session.fail = error  # type: ignore[assignment]
    with pytest.raises(type(error)):
        answer(session, make_task())
    assert entries(session) == 1
    session.fail = None
    with pytest.raises(LedgerError, match="already charged"):
        answer(session, make_task())
    assert session.trained == 0
    assert entries(session) == 1
    answer(session, make_task(round_number=2))  # the next round goes on
    assert entries(session) == 2


def test_a_crash_while_keeping_sends_nothing_later(
    session: TinySession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", _fails_on_updates(os.fsync))
    with pytest.raises(OSError, match="disk full"):
        answer(session, make_task())
    monkeypatch.undo()
    with pytest.raises(LedgerError):
        answer(session, make_task())
    (standing,) = read_ledger(session.state_dir / "ledger.db")["alice"].charges.values()
    assert standing.state == "abandoned"


def _fails_on_updates(fsync):  # type: ignore[no-untyped-def]
    def call(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").resolve().suffix == ".part":
            raise OSError("disk full")
        fsync(fd)

    return call


def test_the_charge_is_durable_before_anything_is_drawn(session: TinySession) -> None:
    seen: list[int] = []
    train = session.train

    def spy(work, mechanism):  # type: ignore[no-untyped-def]
        seen.append(entries(session))
        return train(work, mechanism)

    session.train = spy  # type: ignore[method-assign]
    answer(session, make_task())
    assert seen == [1]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"base_sha256": "cd" * 32}, ModelError, "base_sha256"),
        ({"manifest_sha256": "cd" * 32}, ModelError, "manifest_sha256"),
        ({"lora": LoraConfig(rank=3, targets=LORA.targets)}, ModelError, "manifest_sha256"),
        ({"plan": b"{}"}, PlanError, "plan"),
        ({"plan": make_plan().canonical() + b" "}, PlanError, "can't be read"),
        ({"run_id": "another"}, PlanError, "run_id"),
        ({"round": 4}, PlanError, "round"),
        ({"train": TrainConfig(local_steps=30)}, PlanError, "local_steps"),
        ({"plan": open_plan().canonical()}, PlanError, "explicit word"),
        ({"tensors": {"x": np.ones(2, np.float32)}}, UpdateRejectedError, "extra-tensor"),
    ],
)
def test_what_is_refused_costs_nothing(
    session: TinySession, change: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        answer(session, changed(make_task(), **change))
    assert session.trained == 0
    assert entries(session) == 0


def test_an_adapter_that_is_not_finite_is_refused(session: TinySession) -> None:
    adapter = {n: np.full_like(t, np.nan) for n, t in initial().items()}
    with pytest.raises(UpdateRejectedError, match="not-finite"):
        answer(session, changed(make_task(), tensors=adapter))
    assert entries(session) == 0


def test_without_privacy_needs_the_owners_word_and_is_not_charged(session: TinySession) -> None:
    session.allow_no_privacy = True
    first = answer(session, make_task(plan=open_plan()))
    assert decode_update(first).receipt is None
    assert pack(answer(session, make_task(plan=open_plan()))) == pack(first)
    assert session.trained == 1
    assert entries(session) == 0


def test_observations_stay_on_the_device(session: TinySession) -> None:
    for number in (1, 2):
        answer(session, make_task(number))
    lines = (session.state_dir / "observations.jsonl").read_text().splitlines()
    seen = [json.loads(line) for line in lines]
    assert [line["round"] for line in seen] == [1, 2]
    assert all(len(line["observations"]["batch_sizes"]) == 3 for line in seen)


def test_only_the_last_update_of_a_run_is_kept(session: TinySession) -> None:
    for number in (1, 2, 3):
        answer(session, make_task(number))
    kept = [p.name for p in (session.state_dir / "updates").rglob("*") if p.is_file()]
    (name,) = kept
    assert name.startswith("3.")


def test_a_run_id_is_never_a_path(session: TinySession) -> None:
    answer(session, make_task(plan=make_plan(run_id="a:b..c")))
    (run,) = (session.state_dir / "updates").iterdir()
    assert len(run.name) == 32


def test_rolora_trains_a_in_even_rounds(session: TinySession) -> None:
    lora = LoraConfig(aggregation="rolora", rank=LORA.rank, targets=LORA.targets)
    strategy = make_strategy(lora=lora)
    update = decode_update(answer(session, strategy.task(2, initial())))
    assert all(adapters.is_lora_a(name) for name in update.tensors)


# --- through Flower ----------------------------------------------------------------------------


@pytest.fixture
def identity() -> Iterator[None]:
    with flower.task_identity(run_id=1, node_id=1):
        yield


def send(session: TinySession, records: RecordDict) -> Message:
    app = make_app(lambda _: session)  # type: ignore[arg-type, return-value]
    message = Message(records, dst_node_id=2, message_type="train", group_id="1")
    return app(message, Context(1, 2, {}, RecordDict(), {}))


@pytest.mark.usefixtures("identity")
def test_errors_are_stable_words_that_say_nothing_of_the_data(
    session: TinySession, caplog: pytest.LogCaptureFixture
) -> None:
    task = make_task()
    for change, fail, word in [
        ({}, ValueError("a record said: hunter2"), "internal"),
        ({"round": 2}, DataError("'hunter2' is no record"), "unavailable"),
        ({"base_sha256": "cd" * 32}, None, "model-mismatch"),
        ({"plan": b"{}"}, None, "plan-refused"),
        ({}, None, "ledger-refused"),
        ({"tensors": {"x": np.ones(2, np.float32)}}, None, "malformed-task"),
    ]:
        session.fail = fail
        reply = send(session, flower.to_records(encode_task(changed(task, **change))))
        assert reply.has_error()
        assert (reply.error.code, reply.error.reason) == (flower.ERROR_REFUSED, word)
    reply = send(session, RecordDict())
    assert reply.error.reason == "malformed-task"
    assert "hunter2" in caplog.text  # the device's own log may


@pytest.mark.usefixtures("identity")
def test_a_session_is_opened_once_for_each_node(tmp_path: Path) -> None:
    opened: list[object] = []

    def open_session(config):  # type: ignore[no-untyped-def]
        opened.append(config["client"])
        return TinySession(config["client"], tmp_path / config["client"])

    app = make_app(open_session)
    for number in (1, 2):
        for client in ("a", "b"):
            records = flower.to_records(encode_task(make_task(number)))
            message = Message(records, dst_node_id=2, message_type="train")
            assert app(message, Context(1, 2, {"client": client}, RecordDict(), {})).has_content()
    assert opened == ["a", "b"]


# --- Flower's private parts --------------------------------------------------------------------


def test_flwr_is_the_version_that_the_private_parts_were_checked_with() -> None:
    version = tuple(int(n) for n in importlib.metadata.version("flwr").split(".")[:2])
    assert flower.FLWR_VERSIONS[0] <= version < flower.FLWR_VERSIONS[1], (
        "check every private part in sordino.core.app against this flwr, then move FLWR_VERSIONS"
    )


def test_the_private_parts_are_still_there() -> None:
    assert {"_task_id", "_run_id", "_node_id"} <= set(vars(TaskIdentity))
    with pytest.raises(RuntimeError, match="not set"):
        Message(RecordDict(), dst_node_id=2, message_type="train")
    with flower.task_identity(run_id=7, node_id=1):
        message = Message(RecordDict(), dst_node_id=2, message_type="train", ttl=5.0)
        flower.set_message_id(message, "id-1")
        assert message.metadata.message_id == "id-1"
        reply = Message(Error(1, "x"), reply_to=message)
        assert reply.metadata.reply_to_message_id == "id-1"
    fields = flower.metadata_fields(message.metadata)
    pack(Envelope(fields))  # everything in it can travel
    again = flower.rebuild_message(dict(fields), RecordDict())
    for name in ("run_id", "message_id", "src_node_id", "dst_node_id", "created_at", "ttl"):
        assert getattr(again.metadata, name) == getattr(message.metadata, name)
    error = flower.rebuild_message(dict(fields), Error(9, "why"))
    assert (error.error.code, error.error.reason) == (9, "why")
    assert flower.empty_run(3).run_id == 3
    assert not hasattr(flwr.app, "TaskIdentity")  # public by now? then use that


def test_quiet_flower_touches_only_flowers_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLWR_LOG_LEVEL", raising=False)
    root, logger = logging.getLogger(), logging.getLogger("flwr")
    before = (root.level, list(root.handlers), logger.level)
    with flower.quiet_flower():
        assert not logger.isEnabledFor(logging.INFO)
        assert logger.isEnabledFor(logging.WARNING)
        assert (root.level, list(root.handlers)) == before[:2]
    assert (root.level, list(root.handlers), logger.level) == before


def test_neither_side_imports_torch_to_be_read() -> None:
    code = (
        "import sys, sordino.client.app, sordino.server.app, sordino.sim.grid;"
        "bad = {'torch', 'transformers', 'peft', 'opacus'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_plan_travels_as_it_is_hashed() -> None:
    task = make_task()
    assert decode_plan(task.plan) == make_plan()

"""`sordino runs`, `devices`, `watch` and `export`, as people and programs use them."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.central import make_central
from support.fleets import RUN, get, rows_of
from support.operators import Operated, make_folder, operated
from typer.testing import CliRunner, Result

from sordino.cli import devices, runs
from sordino.cli.main import app
from sordino.core.errors import ConfigError, ContractError, TrustError
from sordino.server.store import Device, Event, Run

PAGE = (Path(__file__).parents[2] / "docs" / "operators.md").read_text("utf-8")


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Operated]:
    with operated(tmp_path / "fleet") as made:
        yield made


def run(at: Operated, *words: str | Path) -> Result:
    where = {"SORDINO_FLEET": str(at.folder), "COLUMNS": "200"}
    return CliRunner(env=where).invoke(app, [str(word) for word in words])


def good(at: Operated, *words: str | Path) -> str:
    ran = run(at, *words)
    assert ran.exit_code == 0, (ran.output, ran.exception)
    return ran.stdout


def read(at: Operated, *words: str | Path) -> Any:
    return json.loads(good(at, *words, "--format", "json"))


def test_runs_are_listed_and_shown(at: Operated) -> None:
    at.start()
    at.finish_round("d2")
    table = good(at, "runs", "list")
    for word in (RUN, "running", "1/3", "local"):
        assert word in table
    shown = good(at, "runs", "show", RUN)
    promises = [line for line in shown.splitlines() if line.startswith("promise:")]
    assert "unit record: ε ≤" in promises[0]
    assert "unit user: not bounded" in promises[1]
    for line in promises:
        for part in ("δ = 1e-05", "add-or-remove-one", "poisson", "PLD", "rounds", "trust local"):
            assert part in line
    assert "1 policy-budget" in shown
    (listed,) = read(at, "runs", "list")
    assert set(listed) == {
        *("run_id", "state", "reason", "rounds_done", "rounds_planned", "cohort", "min_updates"),
        *("started_at_unix_ms", "epsilon", "plan", "plan_sha256", "base", "adapter"),
    }
    assert listed["plan"]["noise_multiplier"] == 1.0
    both = read(at, "runs", "show", RUN, "--rounds", "1")
    assert both["run"] == listed
    (newest,) = both["rounds"]
    assert set(newest) == {
        *("run_id", "round", "state", "asked", "received", "dropped", "bytes_up", "bytes_down"),
        *("opened_at_unix_ms", "closed_at_unix_ms", "adapter"),
    }
    assert (newest["round"], newest["asked"], newest["received"]) == (2, 3, 0)


def test_a_run_is_steered(at: Operated, tmp_path: Path) -> None:
    settings = tmp_path / "run.toml"
    settings.write_text("rounds = 2", "utf-8")
    started = read(at, "runs", "start", "r1", settings, "--cohort", "2")
    assert (started["state"], started["rounds_planned"], started["cohort"]) == ("running", 2, 2)
    again = run(at, "runs", "start", "r1", settings, "--cohort", "2")
    assert isinstance(again.exception, ContractError)
    assert again.exception.reason == "run-exists"
    assert again.exception.exit_code == 1
    assert "run:     r1, paused" in good(at, "runs", "pause", "r1", "--request-id", "p")
    assert read(at, "runs", "pause", "r1", "--request-id", "p")["state"] == "paused"
    assert read(at, "runs", "resume", "r1")["state"] == "running"
    assert read(at, "runs", "add-rounds", "r1", "3")["rounds_planned"] == 5
    assert read(at, "runs", "cohort", "r1", "1")["cohort"] == 1
    good(at, "runs", "pause", "r1")
    assert read(at, "runs", "roll-back", "r1", "0")["adapter"] is None
    asked = CliRunner(env={"SORDINO_FLEET": str(at.folder)})
    assert asked.invoke(app, ["runs", "stop", "r1"], input="n\n").exit_code == 1
    assert get(at.fleet, Run, "r1").state == "paused"
    assert read(at, "runs", "stop", "r1", "--yes")["state"] == "stopped"
    missing = run(at, "runs", "start", "r2", tmp_path / "none.toml", "--cohort", "2")
    assert isinstance(missing.exception, ConfigError)
    assert run(at, "runs", "start", "r2", settings, "--cohort", "0").exit_code == 2


def test_devices_are_listed_revoked_and_cleared(at: Operated) -> None:
    at.start()
    at.finish_round("d2")
    at.online.add("d1")
    table = good(at, "devices", "list")
    for word in ("d0", "offline", "online", "1970-01-01"):
        assert word in table
    row = next(line for line in table.splitlines() if line.split()[:1] == ["d0"])
    assert re.fullmatch(r"d0 +d0 +offline +\d+ (s|min) +1970-01-01 +1 +0 +1", row.strip())
    listed = read(at, "devices", "list")
    assert [device["state"] for device in listed] == ["offline", "online", "offline"]
    assert set(listed[0]) == {
        *("device_id", "name", "state", "software", "last_seen_unix_ms", "not_after_unix_ms"),
        *("accepted", "failures", "ledger_head"),
    }
    assert [d["device_id"] for d in read(at, "devices", "list", "--state", "online")] == ["d1"]
    unknown = run(at, "devices", "list", "--state", "asleep")
    assert isinstance(unknown.exception, ConfigError)
    assert "online, offline, resting" in str(unknown.exception)
    good(at, "devices", "revoke", "d0", "--yes", "--because", "stolen")
    assert get(at.fleet, Device, "d0").gone_because == "stolen"
    with at.fleet.store.write("test") as tx:
        tx.change(tx.find(Device, "d1"), state="suspect")
    assert read(at, "devices", "list")[1]["state"] == "suspect"
    assert "may be asked again" in good(at, "devices", "clear", at.folder, "d1")
    assert get(at.fleet, Device, "d1").state == "active"
    final = run(at, "devices", "clear", at.folder, "d0")
    assert isinstance(final.exception, ContractError)


def test_what_happened_is_told_a_line_each(at: Operated) -> None:
    first = len(rows_of(at.fleet, Event))
    at.start()
    at.finish_round("d2")
    with at.fleet.store.write("test") as tx:
        tx.change(tx.find(Run, RUN), state="failed", reason="too-few-updates")
    ran = good(at, "watch", "--after", str(first), "--count", "4").splitlines()
    assert f"run {RUN} is failed (too-few-updates), 1 of 3 rounds" in ran[0]
    assert f"run {RUN}, round 1 is done: 2 of 3 answered" in ran[1]
    text = good(at, "watch", "--after", str(first), "--count", "3", "--format", "json")
    events = [json.loads(line) for line in text.splitlines()]
    assert [event["number"] for event in events] == [first + 1, first + 2, first + 3]
    assert events[1]["round"]["received"] == 2


def test_under_central_trust_the_words_say_no_count(at: Operated) -> None:
    at.start(make_central(), cohort=4, min_updates=1)
    at.finish_round()
    shown = good(at, "runs", "show", RUN)
    assert "the cohort is secret" in shown
    assert "trust central" in shown
    told = good(at, "watch", "--after", "1", "--run", RUN, "--count", "3")
    assert "answered" not in told
    (newest, *_) = read(at, "runs", "show", RUN)["rounds"]
    assert newest["asked"] is newest["received"] is newest["dropped"] is None


def test_files_are_exported(at: Operated, tmp_path: Path) -> None:
    at.start()
    at.finish_round()
    made = read(at, "export", RUN, "adapter", tmp_path / "a.zip", "--round", "1")
    assert made["size"] == (tmp_path / "a.zip").stat().st_size
    assert "adapter_config.json" in zipfile.ZipFile(tmp_path / "a.zip").namelist()
    assert "SHA-256" in good(at, "export", RUN, "run", tmp_path / "r.zip")
    good(at, "export", RUN, "heads", tmp_path / "heads.jsonl")
    assert len((tmp_path / "heads.jsonl").read_text("utf-8").splitlines()) == 3
    refused = run(at, "export", RUN, "adapter", tmp_path / "b.zip", "--round", "9")
    assert isinstance(refused.exception, ContractError)
    assert not (tmp_path / "b.zip").exists()


def test_from_another_machine_by_address(at: Operated) -> None:
    where = ("--operator", str(at.folder / "operator"), "--address", at.service.address)
    ran = CliRunner().invoke(app, ["runs", "list", *where, "--format", "json"])
    assert (ran.exit_code, json.loads(ran.stdout)) == (0, [])


def test_which_coordinator_must_be_clear(tmp_path: Path) -> None:
    nowhere = CliRunner().invoke(app, ["runs", "list"])
    assert isinstance(nowhere.exception, TrustError)
    assert "--fleet FOLDER" in str(nowhere.exception)
    make_folder(tmp_path / "fleet", 1_900_000_000_000)
    silent = CliRunner().invoke(app, ["runs", "list", "--fleet", str(tmp_path / "fleet")])
    assert isinstance(silent.exception, TrustError)
    assert "no coordinator serves" in str(silent.exception)
    assert silent.exception.exit_code == 2


# --- the page for operators --------------------------------------------------------------------


def test_every_verb_is_documented() -> None:
    for group, verbs in (("runs", runs.app), ("devices", devices.app)):
        for command in verbs.registered_commands:
            assert command.callback is not None
            name = command.name or command.callback.__name__.replace("_", "-")
            assert re.search(rf"sordino {group} {name}\b|, `{name}` \|", PAGE), name


def test_every_key_is_documented(at: Operated) -> None:
    at.start()
    at.finish_round()
    both = read(at, "runs", "show", RUN)
    listed = read(at, "devices", "list")
    event = read(at, "watch", "--after", "1", "--count", "1")
    for table in (
        *(both, both["run"], both["run"]["epsilon"][0], both["run"]["base"], both["rounds"][0]),
        *(listed[0], listed[0]["ledger_head"], event),
    ):
        for key in table:
            assert f"`{key}`" in PAGE, key


def test_every_alarm_is_documented() -> None:
    for reason in ("ledger-rolled-back", "too-few-updates", "release-lost", "disk-full"):
        assert f"| `{reason}` |" in PAGE
    assert "| `certificate-ends` |" in PAGE

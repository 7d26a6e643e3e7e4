"""Whole sweeps, for real: the documented example, a kill in the middle, private data."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import pld_privacy_accountant

from sordino.client.adapter_files import load_adapter
from sordino.core.errors import ConfigError, SordinoError
from sordino.sim import sweep
from sordino.sim.folder import RunFolder
from sordino.sim.sweeps.jobs import read_report

ROOT = Path(__file__).parents[2]
TINY = {
    "data.clients": 2,
    "data.share": 0.1,
    "train.local_steps": 1,
    "federation.rounds": 1,
    "federation.min_updates": 2,
}


@pytest.fixture(scope="module")
def documented(tmp_path_factory):
    """What the example of docs/experiments.md leaves behind, and its names."""
    page = (ROOT / "docs" / "experiments.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("notebook"))
        exec(compile(example, "docs/experiments.md", "exec"), names)
    return names


def lines(result):
    with (result.folder / "table.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_documented_example_runs(documented):
    run, swept = documented["run"], documented["swept"]
    assert run.report.utility.no_federation is not None
    assert [(r.cell.settings, r.cell.seed) for r in swept.runs] == [
        ({"privacy.epsilon": epsilon}, seed) for epsilon in (2.0, 8.0) for seed in (0, 1)
    ]
    assert all(len(group.runs) == 2 for group in swept.groups)
    left = {path.name for path in swept.folder.iterdir()}
    assert left == {
        "baselines", "cells", "report.html", "sweep.json", "sweep.lock", "table.csv",
        "table.parquet",
    }  # fmt: skip


def test_a_baseline_is_run_once_a_seed_and_stands_beside_every_epsilon(documented):
    swept = documented["swept"]
    assert len(list((swept.folder / "baselines").iterdir())) == 2
    for run in swept.runs:
        twin = read_report(swept.folder / "baselines" / run.cell.baseline.name)
        assert twin.guarantee.trust == "none"
        assert run.report.utility.no_privacy == twin.utility.no_privacy
        assert run.report.utility.no_federation is None  # of another mechanism: not borrowed
        assert run.alone == twin.utility.no_federation.interval.estimate


def test_a_cell_is_a_runs_folder(documented):
    for run in documented["swept"].runs:
        held = {path.name for path in run.folder.iterdir()}
        assert held == {
            "config.toml", "metrics.jsonl", "report.json", "report.html", "adapter",
            "ledger.jsonl", "state",
        }  # fmt: skip
        assert RunFolder(run.folder, "").processor_s > 0


def test_the_table_says_what_every_epsilon_means(documented):
    swept = documented["swept"]
    rows = lines(swept)
    assert [float(row["epsilon"]) for row in rows] == [run.epsilon for run in swept.runs]
    for row, run in zip(rows, swept.runs, strict=True):
        assert (row["unit"], row["trust"], float(row["delta"])) == ("record", "local", 1e-5)
        assert row["neighbouring"] == "add-or-remove-one"
        assert "PLD" in row["accountant"]
        assert float(row["gain"]) == run.gain
        assert float(row["without_privacy_gain"]) == run.without_privacy
        assert (swept.folder / row["folder"] / "report.json").is_file()
    table = pq.read_table(swept.folder / "table.parquet").to_pylist()
    assert [row["gain"] for row in table] == [run.gain for run in swept.runs]


def test_the_page_shows_every_figure_and_loads_nothing(documented):
    page = (documented["swept"].folder / "report.html").read_text("utf-8")
    for words in (
        "Utility against ε", "Utility against the noise level", "Utility against traffic",
        "Without privacy", "Each client alone, without noise", "Not audited",
        "Choosing costs budget", "add-or-remove-one", "pessimistic PLD", "Student",
    ):  # fmt: skip
        assert words in page
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page


def test_what_is_finished_is_not_run_again(documented, monkeypatch):
    swept = documented["swept"]
    before = {p: p.stat().st_mtime_ns for p in swept.folder.rglob("metrics.jsonl")}
    monkeypatch.setattr("sordino.sim.sweeps.jobs.simulate", None)
    grown = sweep(
        settings={**documented["small"], "federation.min_updates": 3},
        grid={"privacy.epsilon": [8.0]},
        seeds=[1],
        out=swept.folder,
        workers=0,
    )
    assert [(run.epsilon, run.cell.seed) for run in grown.runs] == [(swept.runs[3].epsilon, 1)]
    assert before == {p: p.stat().st_mtime_ns for p in swept.folder.rglob("metrics.jsonl")}


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(ConfigError, match="not empty and holds no sweep"):
        sweep(settings=TINY, grid={"lora.rank": [2]}, out=tmp_path, workers=0)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def together(ledgers, delta):
    """ε of all charges to one client: what an auditor would do, with dp-accounting alone."""
    accountant = pld_privacy_accountant.PLDAccountant()
    client = json.loads(ledgers[0].read_text().splitlines()[0])["client"]
    for path in ledgers:
        for entry in map(json.loads, path.read_text().splitlines()):
            if entry["state"] == "reserve" and entry["client"] == client:
                event = entry["event"]
                step = dp_event.PoissonSampledDpEvent(
                    event["sampling_rate"], dp_event.GaussianDpEvent(event["noise_multiplier"])
                )
                accountant.compose(dp_event.SelfComposedDpEvent(step, event["steps"]))
    return accountant.get_epsilon(delta)


def test_over_private_data_all_attempts_are_composed_and_none_is_forgotten(tmp_path, monkeypatch):
    from sordino.sim import run

    swept = {"settings": {**TINY, "privacy.noise_multiplier": 1.0}, "private": True}
    arguments = {**swept, "grid": {"lora.rank": [2, 4]}, "out": tmp_path / "own", "workers": 0}
    honest, tries = run.make_report, []

    def dying(outcome):
        tries.append(outcome.main)
        if len(tries) == 3:  # after the two baselines: a cell that has charged everything
            raise SordinoError("the machine went away")
        return honest(outcome)

    monkeypatch.setattr(run, "make_report", dying)
    with pytest.raises(SordinoError, match=r"1 of 2 cells failed.*\n.*the machine went away"):
        sweep(**arguments)
    monkeypatch.setattr(run, "make_report", honest)
    done = sweep(**arguments)
    price = done.price
    assert (price.runs, price.abandoned, price.unit) == (3, 1, "record")
    each = done.runs[0].epsilon
    ledgers = [done.runs[0].folder / "ledger.jsonl"] * 3  # all three charged the same
    assert each < together(ledgers[:2], 1e-5) < price.epsilon
    assert price.epsilon == pytest.approx(together(ledgers, 1e-5), rel=0.01)
    assert price.filtered >= price.epsilon
    assert "3 runs on the same records together, 1 of them abandoned" in str(price)
    assert "3 runs on the same records" in (done.folder / "report.html").read_text("utf-8")
    with pytest.raises(ConfigError, match="holds a sweep over private data"):
        sweep(**{**arguments, "private": False})


SWEEP = """
seeds = [0, 1]
workers = 2
[set]
data.clients = 2
data.share = 0.2
train.local_steps = 2
federation.rounds = 2
federation.min_updates = 2
privacy.seeded_noise = true
[grid]
privacy.epsilon = [2.0, 8.0]
lora.rank = [2, 4]
"""


def start(folder, out):
    return subprocess.Popen(
        [sys.executable, "-m", "sordino.cli.main", "sweep", "sweep.toml", "--out", out],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(out):
    return {path.parent: path.read_bytes() for path in out.glob("*/*/metrics.jsonl")
            if RunFolder(path.parent, "").finished}  # fmt: skip


def children(pid):
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in tasks.read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_sweep_that_was_stopped_goes_on_and_ends_as_if_it_had_not_been(tmp_path, how):
    (tmp_path / "sweep.toml").write_text(SWEEP)
    running = start(tmp_path, "cut")
    deadline = time.monotonic() + 240
    while not any(p.parent.name == "cells" for p in finished(tmp_path / "cut")):
        assert time.monotonic() < deadline
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.05)
    workers = children(running.pid)
    assert len(workers) >= 2
    running.send_signal(how)
    said, _ = running.communicate(timeout=60)
    assert running.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    if how == signal.SIGINT:
        assert "The same command goes on" in said
    while any(Path(f"/proc/{pid}").exists() for pid in workers):  # no orphan works on
        assert time.monotonic() < deadline
        time.sleep(0.05)
    kept = finished(tmp_path / "cut")
    assert 0 < len(kept) < 12

    again = start(tmp_path, "cut")
    said, _ = again.communicate(timeout=240)
    assert again.returncode == 0, said
    done = finished(tmp_path / "cut")
    assert len(done) == 12
    assert {path: done[path] for path in kept} == kept
    for cell in (tmp_path / "cut" / "cells").iterdir():  # nothing was charged twice
        states = [json.loads(row)["state"] for row in (cell / "ledger.jsonl").open()]
        assert states.count("reserve") == states.count("release") == 2 * 2

    shutil.move(tmp_path / "cut", tmp_path / "first")
    whole = start(tmp_path, "whole")
    assert whole.wait(timeout=240) == 0
    for cell in (tmp_path / "whole" / "cells").iterdir():
        one, other = (
            load_adapter(root / "cells" / cell.name / "adapter").tensors
            for root in (tmp_path / "whole", tmp_path / "first")
        )
        assert all(np.array_equal(one[name], other[name]) for name in one)

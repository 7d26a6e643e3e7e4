"""Whole sweeps, for real: the documented example, a kill in the middle, private data."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
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


def lines(result):
    with (result.folder / "table.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Two cells over private data, of which one fails when it has charged everything; run again."""
    from sordino.sim import run

    arguments = {
        "settings": {**TINY, "privacy.noise_multiplier": 1.0},
        "grid": {"lora.rank": [2, 4]},
        "private": True,
        "out": tmp_path_factory.mktemp("sweeps") / "own",
        "workers": 0,
    }
    honest, tries = run.make_report, []

    def dying(outcome):
        tries.append(outcome.main)
        if len(tries) == 3:  # after the two baselines
            raise SordinoError("the machine went away")
        return honest(outcome)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_report", dying)
        with pytest.raises(SordinoError, match=r"1 of 2 cells failed.*\n.*the machine went away"):
            sweep(**arguments)
    return sweep(**arguments)


def test_a_sweep_leaves_its_runs_a_table_and_a_report(swept):
    assert [(r.cell.settings, r.cell.seed) for r in swept.runs] == [
        ({"lora.rank": rank}, 0) for rank in (2, 4)
    ]
    left = {path.name for path in swept.folder.iterdir()}
    assert left == {
        "abandoned", "baselines", "cells", "report.html", "sweep.json", "sweep.lock", "table.csv",
        "table.parquet",
    }  # fmt: skip
    for run in swept.runs:
        held = {path.name for path in run.folder.iterdir()}
        assert held == {
            "config.toml", "metrics.jsonl", "report.json", "report.html", "adapter",
            "ledger.jsonl", "state", "audit",
        }  # fmt: skip
        assert RunFolder(run.folder, "").processor_s > 0


def test_a_baseline_without_privacy_stands_beside_its_cell(swept):
    assert len(list((swept.folder / "baselines").iterdir())) == 2  # of two ranks
    for run in swept.runs:
        twin = read_report(swept.folder / "baselines" / run.cell.baseline.name)
        assert twin.guarantee.trust == "none"
        assert run.report.utility.no_privacy == twin.utility.no_privacy
        assert run.report.utility.no_federation is None  # of another mechanism: not borrowed
        assert run.alone == twin.utility.no_federation.interval.estimate


def test_the_table_says_what_every_epsilon_means(swept):
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


def test_the_page_shows_every_figure_and_loads_nothing(swept):
    page = (swept.folder / "report.html").read_text("utf-8")
    for words in (
        "Utility against ε", "Utility against the noise level", "Utility against traffic",
        "Without privacy", "Each client alone, without noise", "Not audited",
        "Choosing costs budget", "add-or-remove-one", "pessimistic PLD", "Student",
        "Records by client", "3 runs on the same records together, 1 of them abandoned",
    ):  # fmt: skip
        assert words in page
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page


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


def test_over_private_data_all_attempts_are_composed_and_none_is_forgotten(swept):
    price = swept.price
    assert (price.runs, price.abandoned, price.unit) == (3, 1, "record")
    ledgers = [swept.runs[0].folder / "ledger.jsonl"] * 3  # all three charged the same
    assert swept.runs[0].epsilon < together(ledgers[:2], 1e-5) < price.epsilon
    assert price.epsilon == pytest.approx(together(ledgers, 1e-5), rel=0.01)
    assert price.filtered >= price.epsilon


def test_what_is_finished_is_not_run_again_and_private_stays_private(swept, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in swept.folder.rglob("metrics.jsonl")}
    monkeypatch.setattr("sordino.sim.sweeps.jobs.simulate", None)
    settings = {**TINY, "privacy.noise_multiplier": 1.0}
    arguments = {"settings": settings, "out": swept.folder, "workers": 0}
    fewer = sweep(**arguments, grid={"lora.rank": [4]}, private=True)
    assert [run.report for run in fewer.runs] == [swept.runs[1].report]
    assert fewer.price == swept.price  # what is no longer in the table stays spent
    assert before == {p: p.stat().st_mtime_ns for p in swept.folder.rglob("metrics.jsonl")}
    with pytest.raises(ConfigError, match="holds a sweep over private data"):
        sweep(**arguments, grid={"lora.rank": [4]})


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(ConfigError, match="not empty and holds no sweep"):
        sweep(settings=TINY, grid={"lora.rank": [2]}, out=tmp_path, workers=0)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.slow
def test_the_documented_example_runs(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "experiments.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {}
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/experiments.md", "exec"), names)
    assert names["run"].report.utility.no_federation is not None
    runs = names["swept"].runs
    assert [(r.cell.settings, r.cell.seed) for r in runs] == [
        ({"privacy.epsilon": epsilon}, seed) for epsilon in (2.0, 8.0) for seed in (0, 1)
    ]
    assert len({run.cell.baseline.name for run in runs}) == 2  # one a seed, whatever the ε
    assert all(len(group.runs) == 2 for group in names["swept"].groups)


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
privacy.noise_multiplier = 1.0
[grid]
lora.rank = [2, 4]
"""
PATIENCE_S = 1500  # of a machine that does much else


@contextmanager
def started(folder, out):
    running = subprocess.Popen(
        [sys.executable, "-m", "sordino.cli.main", "sweep", "sweep.toml", "--out", out],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield running
    finally:
        running.kill()  # and its workers with it
        running.communicate()


def finished(out):
    return {path.parent: path.read_bytes() for path in out.glob("*/*/metrics.jsonl")
            if RunFolder(path.parent, "").finished}  # fmt: skip


def children(pid):
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in tasks.read_text().split()]


def stopped(tmp_path, how):
    """Stop a sweep when its first cell is finished, and see that its workers end too."""
    deadline = time.monotonic() + PATIENCE_S
    with started(tmp_path, "cut") as running:
        while not any(p.parent.name == "cells" for p in finished(tmp_path / "cut")):
            assert time.monotonic() < deadline
            assert running.poll() is None, running.communicate()[0]
            time.sleep(0.05)
        workers = children(running.pid)
        assert len(workers) >= 2
        running.send_signal(how)
        said, _ = running.communicate(timeout=PATIENCE_S)
        while any(Path(f"/proc/{pid}").exists() for pid in workers):  # no orphan works on
            assert time.monotonic() < deadline
            time.sleep(0.05)
    return running.returncode, said


@pytest.mark.slow
@pytest.mark.timeout(3 * PATIENCE_S)
@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_sweep_that_was_stopped_goes_on_and_ends_as_if_it_had_not_been(tmp_path, how, code):
    (tmp_path / "sweep.toml").write_text(SWEEP)
    returned, said = stopped(tmp_path, how)
    assert returned == code
    assert how == signal.SIGKILL or "The same command goes on" in said
    kept = finished(tmp_path / "cut")
    assert 0 < len(kept) < 8

    with started(tmp_path, "cut") as again:
        said, _ = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, said
    done = finished(tmp_path / "cut")
    assert len(done) == 8  # four cells, and a baseline a rank and seed
    assert {path: done[path] for path in kept} == kept
    for cell in (tmp_path / "cut" / "cells").iterdir():  # nothing was charged twice
        states = [json.loads(row)["state"] for row in (cell / "ledger.jsonl").open()]
        assert states.count("reserve") == states.count("released") == 2 * 2

    with started(tmp_path, "whole") as whole:
        said, _ = whole.communicate(timeout=PATIENCE_S)
    assert whole.returncode == 0, said
    for cell in (tmp_path / "whole" / "cells").iterdir():
        one, other = (
            load_adapter(tmp_path / out / "cells" / cell.name / "adapter").tensors
            for out in ("whole", "cut")
        )
        assert all(np.array_equal(one[name], other[name]) for name in one)

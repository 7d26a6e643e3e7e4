"""The sweep that chose the defaults: it trains as a device does, resumes, and never cheats."""

import importlib
import json
import math
from pathlib import Path

import pytest

from sordino.client.data import shakespeare
from sordino.core.defaults import SMALL, TINY

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def sweep():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        yield importlib.import_module("sweep_defaults")


@pytest.fixture(scope="module")
def bench(sweep):
    return sweep.Bench("pocket", clients=2, max_tokens=12, most_held_out=3)


SHORT = {
    "lora.targets": ("v_proj",),
    "train.learning_rate": 2.0,
    "train.local_steps": 1,
    "federation.rounds": 2,
    "privacy.sampling_rate": 0.05,
    "privacy.expected_batch": 6.0,
}


def test_no_history_of_the_demo_is_looked_at():
    assert not set(shakespeare.TUNING) & {*shakespeare.DEMO, *shakespeare.public_plays()}
    assert "shakespeare.roles(shakespeare.TUNING)" in (TOOLS / "sweep_trials.py").read_text()


def test_a_trial_is_reproducible_and_depends_on_its_seed(sweep, bench):
    first = bench.run(sweep.Trial(8.0, SHORT, 0))
    again = bench.run(sweep.Trial(8.0, SHORT, 0))
    other = bench.run(sweep.Trial(8.0, SHORT, 1))
    assert first["gain"] == again["gain"] != other["gain"]
    assert first["noise_multiplier"] > 0
    assert bench.run(sweep.Trial(math.inf, SHORT, 0))["noise_multiplier"] == 0


def questions(sweep):
    start = {"train.learning_rate": 4.0}
    arms = [{"train.learning_rate": rate} for rate in (4.0, 2.0, 1.0)]
    return [
        sweep.Question("rate", 8.0, arms),
        sweep.Question("further", 8.0, [start], seeds=(0, 1)),  # the first is known by then
    ]


def recording(ran):
    def run(trial):
        ran.append((trial.settings["train.learning_rate"], trial.seed))
        return {"gain": 0.1}

    return run


def test_a_study_that_is_started_again_runs_only_what_is_missing(sweep, tmp_path):
    results, ran = tmp_path / "results.jsonl", []
    sweep.run_study(questions(sweep), recording(ran), results)
    assert ran == [(4.0, 0), (2.0, 0), (1.0, 0), (4.0, 1)]
    lines = results.read_text().splitlines()
    results.write_text("\n".join([lines[0], *lines[2:], ""]))
    ran.clear()
    sweep.run_study(questions(sweep), recording(ran), results)
    assert ran == [(2.0, 0)]
    assert [line["question"] for line in sweep.read(results)] == ["rate", "rate", "further", "rate"]


def test_processes_that_share_a_study_run_each_trial_once(sweep, tmp_path):
    results, ran = tmp_path / "results.jsonl", []
    for which in range(3):
        sweep.run_study(questions(sweep), recording(ran), results, share=(which, 3))
    assert sorted(ran) == [(1.0, 0), (2.0, 0), (4.0, 0), (4.0, 1)]


def test_a_study_stops_when_its_time_is_used(sweep, tmp_path):
    ran = []
    sweep.run_study(questions(sweep), recording(ran), tmp_path / "results.jsonl", minutes=0.0)
    assert ran == []


def test_the_table_leaves_out_what_all_arms_share(sweep):
    shared = {"privacy.clip_norm": 0.3}
    lines = [
        {
            "question": "rate",
            "epsilon": "8.0",
            "seed": seed,
            "settings": {**shared, "train.learning_rate": rate},
            "gain": rate / 100 + seed / 1000,
            "clipped": 1.0,
            "signal_to_noise": 0.05,
        }
        for rate in (2.0, 4.0)
        for seed in (0, 1)
    ]
    rows = sweep.table(json.loads(json.dumps(lines))).splitlines()
    assert rows[2] == "| rate | 8.0 | train.learning_rate 2.0 | +0.020, +0.021 | 100% | 0.050 |"
    assert len(rows) == 4


@pytest.mark.parametrize(("model", "size"), [("pocket", TINY), ("smollm2-135m", SMALL)])
def test_every_trial_of_a_study_is_a_valid_experiment(sweep, model, size):
    trials = [t for q in sweep.STUDIES[model] for t in q.trials()]
    assert {t.epsilon for t in trials} == {2.0, 8.0, math.inf}
    assert {t.experiment().train.optimizer for t in trials} == {"sgd", "adam"}
    assert {t.experiment().lora.targets for t in trials} == {size.targets}
    for trial in trials:
        assert (trial.experiment().privacy.trust == "none") == math.isinf(trial.epsilon)


def test_what_arms_hold_fixed(sweep):
    start = sweep.POCKET_START
    for arm in sweep.clip(start, 0.1, 1.0):
        assert arm["train.learning_rate"] * arm["privacy.clip_norm"] == pytest.approx(4.0 * 0.3)
    for arm in sweep.batches(start, (0.5, 2), (0.125, 8)):
        assert arm["train.learning_rate"] * arm["train.local_steps"] == pytest.approx(16.0)
        assert arm["privacy.sampling_rate"] * arm["train.local_steps"] == pytest.approx(1.0)
        assert arm["privacy.expected_batch"] / arm["privacy.sampling_rate"] == pytest.approx(120.0)

"""A whole simulated run, for real: processes, Flower, the quantized base, Opacus, the ledger."""

import json
from dataclasses import replace

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import pld_privacy_accountant

from sordino.client.adapter_files import load_adapter
from sordino.core.config import DataConfig, ExperimentConfig, load_experiment
from sordino.core.errors import ConfigError, DataError
from sordino.privacy.ledger import read_charges
from sordino.privacy.noise import SYSTEM_LABEL
from sordino.server.report import from_json
from sordino.sim import run
from sordino.sim.run import resume_run, simulate
from sordino.sim.scenarios import names, scenario_path


def small(**changes) -> ExperimentConfig:
    config = load_experiment(
        scenario_path("demo"),
        [
            "data.clients=3",
            "data.share=0.1",
            "train.local_steps=2",
            "federation.rounds=2",
            "federation.min_updates=3",
            "privacy.sampling_rate=0.25",
            "performance.workers=0",
            "audit.canaries=2",
            "audit.secrets=0",
        ],
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """One finished run with two worker processes and the system's noise."""
    config = small()
    config = replace(config, performance=replace(config.performance, workers=2))
    return simulate(config, tmp_path_factory.mktemp("runs") / "first", cache=cache)


def test_the_run_leaves_everything(finished):
    found = {path.name for path in finished.folder.iterdir()}
    assert found == {
        "config.toml",
        "metrics.jsonl",
        "report.json",
        "report.html",
        "adapter",
        "ledger.jsonl",
        "audit",
        "state",
    }
    adapter = {path.name for path in (finished.folder / "adapter").iterdir()}
    assert adapter == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert from_json((finished.folder / "report.json").read_text()) == finished.report
    assert load_experiment(finished.folder / "config.toml").data.clients == 3


def test_epsilon_is_recomputed_from_the_ledger_alone(finished):
    """A few independent lines with dp-accounting: what an auditor would do."""
    lines = (finished.folder / "ledger.jsonl").read_text().splitlines()
    spent: dict[str, dp_event.DpEvent] = {}
    for entry in map(json.loads, lines):
        if entry["state"] != "reserve":
            continue
        event = entry["event"]
        accountant = spent.setdefault(entry["client"], pld_privacy_accountant.PLDAccountant())
        step = dp_event.PoissonSampledDpEvent(
            event["sampling_rate"], dp_event.GaussianDpEvent(event["noise_multiplier"])
        )
        accountant.compose(dp_event.SelfComposedDpEvent(step, event["steps"]))
    record = finished.report.guarantee
    worst = max(accountant.get_epsilon(record.delta) for accountant in spent.values())
    assert len(spent) == 3
    assert record.epsilon.pld == pytest.approx(worst, rel=0.01)
    assert record.epsilon.pld <= record.epsilon.target
    assert record.epsilon.rdp >= record.epsilon.pld


def test_opacus_second_opinion_agrees(finished):
    record = finished.report.guarantee
    prv, pld = record.second_opinion.opacus_prv, record.epsilon.pld
    assert abs(prv - pld) <= max(0.01 * pld, 0.011)
    assert record.second_opinion.opacus_rdp >= pld
    assert "Opacus agrees" in (finished.folder / "report.html").read_text("utf-8")


def test_the_ledger_charges_the_private_run_once_a_round_for_each_client(finished):
    ledgers = read_charges(finished.folder / "ledger.jsonl")
    assert sorted(ledgers) == sorted(c.client for c in finished.report.clients)
    for entries in ledgers.values():
        assert [(e.run_id, e.round) for e in entries] == [("first", 1), ("first", 2)]


def test_all_three_runs_are_reported_with_intervals(finished):
    utility = finished.report.utility
    for figures in (utility.private, utility.no_privacy, utility.no_federation):
        assert figures.interval.low <= figures.interval.estimate <= figures.interval.high
        assert figures.loss_before == pytest.approx(utility.private.loss_before)
        assert np.exp(figures.loss_after) == pytest.approx(figures.perplexity_after)
    assert utility.no_privacy.loss_after != utility.private.loss_after


def test_the_report_says_what_the_noise_is_and_that_nothing_was_audited(finished):
    assert finished.report.noise.source == SYSTEM_LABEL
    assert "exactly sampled" in SYSTEM_LABEL
    assert finished.report.leakage.status == "not audited"
    assert finished.report.guarantee.other.status == "not bounded"
    page = (finished.folder / "report.html").read_text()
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page


def test_clients_reply_with_nothing_but_the_update(finished):
    # The update's file is what was sent: its scalars name the round and the receipt, no more.
    from sordino.core.wire import unpack

    kept = list((finished.folder / "state" / "private").glob("client-*/updates/**/*.update"))
    assert len(kept) == 3
    for path in kept:
        envelope = unpack(path.read_bytes())
        assert set(envelope.fields) == {
            "kind",
            "run-id",
            "round",
            "plan-sha256",
            "ledger-head",
            "ledger-entry",
            "version",
        }


def test_seeded_runs_are_the_same_for_any_number_of_workers(tmp_path, cache):
    config = small()
    config = replace(config, privacy=replace(config.privacy, seeded_noise=True))
    adapters = []
    for workers in (0, 2):
        chosen = replace(config, performance=replace(config.performance, workers=workers))
        made = simulate(chosen, tmp_path / str(workers) / "run", cache=cache)
        assert made.report.noise.source == "seeded: not private"
        adapters.append(load_adapter(made.folder / "adapter").tensors)
    assert all(np.array_equal(adapters[0][n], adapters[1][n]) for n in adapters[0])


@pytest.mark.slow
@pytest.mark.parametrize("privacy", [{"trust": "none"}, {"seeded_noise": True}])
def test_the_same_seed_gives_the_same_bits_for_no_one_and_two_workers(tmp_path, cache, privacy):
    config = small()
    config = replace(config, privacy=replace(config.privacy, **privacy))
    adapters = []
    for workers in (0, 1, 2):
        chosen = replace(config, performance=replace(config.performance, workers=workers))
        made = simulate(chosen, tmp_path / str(workers) / "run", cache=cache)
        adapters.append(load_adapter(made.folder / "adapter").tensors)
    other = simulate(replace(config, seed=1), tmp_path / "other" / "run", cache=cache)
    for one in adapters[1:]:
        assert all(np.array_equal(adapters[0][n], one[n]) for n in adapters[0])
    moved = load_adapter(other.folder / "adapter").tensors
    assert any(not np.array_equal(adapters[0][n], moved[n]) for n in moved)


def test_without_privacy_there_is_one_run_and_no_claim(tmp_path, cache):
    config = small()
    config = replace(config, privacy=replace(config.privacy, trust="none"))
    report = simulate(config, tmp_path / "run", cache=cache).report
    assert report.utility.private is None
    assert report.guarantee.epsilon.pld is None
    assert report.guarantee.trust == "none"


def test_a_stopped_run_goes_on_without_charging_twice(tmp_path, cache, monkeypatch):
    config = small()
    config = replace(config, privacy=replace(config.privacy, seeded_noise=True))
    whole = simulate(config, tmp_path / "whole" / "run", cache=cache)
    honest = run.run_federation

    def stopped(variant, grid, progress, after_round):
        def after(number):
            figures = after_round(number)
            if number == 1:
                raise KeyboardInterrupt  # after the adapter, before the round is said to be done
            return figures

        return honest(variant, grid, progress, after)

    monkeypatch.setattr(run, "run_federation", stopped)
    with pytest.raises(KeyboardInterrupt):
        simulate(config, tmp_path / "parts" / "run", cache=cache)
    monkeypatch.setattr(run, "run_federation", honest)
    resumed = resume_run(tmp_path / "parts" / "run", cache=cache)
    for entries in read_charges(resumed.folder / "ledger.jsonl").values():
        assert [e.round for e in entries] == [1, 2]
    first, second = (load_adapter(r.folder / "adapter").tensors for r in (whole, resumed))
    assert all(np.array_equal(first[n], second[n]) for n in first)


def test_a_folder_with_something_in_it_is_refused(tmp_path, cache):
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        simulate(small(), tmp_path, cache=cache)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_more_clients_than_users_is_refused_before_anything_is_written(tmp_path, cache):
    config = small()
    config = replace(config, data=replace(config.data, clients=10_000))
    with pytest.raises(DataError, match=r"data\.clients"):
        simulate(config, tmp_path / "run", cache=cache)
    assert not (tmp_path / "run").exists()


def test_own_data_in_a_file(tmp_path, cache):
    path = tmp_path / "notes.jsonl"
    rows = [
        {"who": f"user {i % 2}", "text": f"The {w} horse of user {i} runs to the river."}
        for i, w in enumerate(["red", "old", "swift", "lame", "grey"] * 6)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    config = small()
    data = replace(config.data, source=str(path), user_column="who", clients=2)
    federation = replace(config.federation, min_updates=2, rounds=1)
    made = simulate(
        replace(config, data=data, federation=federation), tmp_path / "run", cache=cache
    )
    assert [c.client for c in made.report.clients] == ["user 0", "user 1"]
    assert made.report.run.data == "notes.jsonl"  # a name, not a path of someone's disk
    assert str(tmp_path) not in (made.folder / "report.html").read_text()


@pytest.mark.parametrize("name", names())
def test_shipped_scenarios_are_valid(name):
    assert load_experiment(scenario_path(name)).privacy.epsilon == 8.0


def test_a_client_without_records_or_without_any_held_out_takes_part(tmp_path, cache):
    """What each has is its own business: all are asked, charged and answered for alike."""
    own = {
        "nothing to train on": ["Farewell 1."],
        "nothing held out": ["Good morrow."],
        "both": [f"The {n}th word of my story." for n in range(12)],
    }
    rows = [{"user": user, "text": text} for user, texts in own.items() for text in texts]
    path = tmp_path / "diaries.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = small(data=DataConfig(source=str(path), users=tuple(own), max_tokens=16))
    report = simulate(config, tmp_path / "run", cache=cache).report
    nothing, unjudged, both = report.clients
    assert (nothing.records, unjudged.records, both.records) == (0, 1, 11)
    assert nothing.loss_before is not None
    assert (unjudged.loss_before, unjudged.loss_after) == (None, None)
    assert report.rounds[-1].updates == 3
    assert nothing.epsilon == unjudged.epsilon == both.epsilon > 0
    assert from_json((tmp_path / "run" / "report.json").read_text()) == report

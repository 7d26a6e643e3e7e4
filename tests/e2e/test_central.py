"""Central trust end to end, on the embedded model: a simulated run, one that is killed, a server.

The coordinator's ledger alone must bear the claim out, and no release may be drawn for twice.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import pld_privacy_accountant
from flwr.app import Context, RecordDict
from safetensors.numpy import load_file

import sordino.client.model
from sordino.client.adapter_files import load_adapter
from sordino.client.charged import LEDGER
from sordino.core import adapters, canonical
from sordino.core.config import ExperimentConfig, load_experiment
from sordino.core.errors import ClaimError, ConfigError
from sordino.core.kept import KeptUpdates
from sordino.core.settings import to_toml
from sordino.core.wire import unpack
from sordino.privacy.ledger import read_charges, read_ledger
from sordino.privacy.noise import SYSTEM_LABEL
from sordino.privacy.plan import decode_plan, plan_of_run, verify_ledger
from sordino.server.app import app
from sordino.server.release import COORDINATOR, UPDATES
from sordino.server.report import claim_of_run, from_json, write_report
from sordino.sim.folder import RunFolder
from sordino.sim.grid import LocalGrid
from sordino.sim.policies import simulated_policy
from sordino.sim.population import node_configs
from sordino.sim.run import resume_run, simulate
from sordino.sim.scenarios import scenario_path

POCKET = Path(next(iter(sordino.client.model.__path__))) / "pocket"
CLIENTS = 3


def small(*overrides: str, clients: int = CLIENTS) -> ExperimentConfig:
    return load_experiment(
        scenario_path("demo"),
        [
            f"data.clients={clients}",
            "data.share=0.2",
            'lora.targets=["v_proj"]',
            "lora.rank=2",
            "train.local_steps=1",
            "federation.rounds=2",
            f"federation.population={clients}",
            "federation.min_updates=1",
            'privacy.trust="central"',
            "privacy.sampling_rate=0.5",
            "performance.workers=0",
            "audit.canaries=0",
            "audit.secrets=0",
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    return simulate(small(), tmp_path_factory.mktemp("runs") / "central", cache=cache)


def coordinator(folder: Path) -> Path:
    return folder / "state" / "private" / "coordinator"


# --- a run -------------------------------------------------------------------------------------


def test_the_headline_is_the_users(finished):
    claimed = finished.report.guarantee
    assert (claimed.trust, claimed.unit, claimed.other.unit) == ("central", "user", "record")
    assert 7.9 < claimed.epsilon.pld <= claimed.epsilon.target == 8.0
    assert claimed.epsilon.pld < claimed.other.epsilon
    assert "each single one at that same ε" in claimed.other.reason
    assert finished.report.noise.source == SYSTEM_LABEL
    page = (finished.folder / "report.html").read_text()
    assert "Each user, with all of their records, is protected with" in page
    assert "Each record is protected" not in page
    card = (finished.folder / "adapter" / "README.md").read_text()
    assert "for each user.**" in card


def test_epsilon_is_recomputed_from_the_coordinators_ledger_alone(finished):
    accountant = pld_privacy_accountant.PLDAccountant()
    lines = (finished.folder / "ledger.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert {entry["client"] for entry in entries} == {COORDINATOR}
    for entry in entries:
        if entry["state"] == "reserve":
            accountant.compose(dp_event.GaussianDpEvent(entry["event"]["noise_multiplier"]))
            assert (entry["unit"], entry["event"]["sampling"]) == ("user", "none")
    assert [e["state"] for e in entries].count("released") == 2
    claimed = finished.report.guarantee
    assert claimed.epsilon.pld == pytest.approx(accountant.get_epsilon(claimed.delta), rel=1e-3)


def test_the_ledger_verifies_and_bears_the_claim_out(finished):
    kept = coordinator(finished.folder) / UPDATES
    verdict = verify_ledger(finished.folder / "ledger.jsonl", artefacts=kept)
    assert verdict.ok, verdict.defects
    assert verdict.artefacts == 1  # the last round's
    claim = claim_of_run(finished.folder)
    assert (claim.unit, claim.trust) == ("user", "central")
    assert claim.epsilon == finished.report.guarantee.epsilon.pld
    assert claim.second_opinion.startswith("Opacus agrees")
    assert "each of a user's records is covered by the user's ε" in claim.other_unit
    understated = replace(finished.report.guarantee.epsilon, pld=1.0)
    guarantee = replace(finished.report.guarantee, epsilon=understated)
    forged = finished.folder.parent / "forged"
    (forged / "state" / "private").mkdir(parents=True)
    for name in ("ledger.jsonl", "state/private/plan.json"):
        (forged / name).write_bytes((finished.folder / name).read_bytes())
    write_report(replace(finished.report, guarantee=guarantee), forged)
    with pytest.raises(ClaimError, match=r"states epsilon 1\.0"):
        claim_of_run(forged)


def test_the_adapter_is_the_one_that_was_released(finished):
    (path,) = (coordinator(finished.folder) / UPDATES).rglob("*.update")
    book = read_ledger(finished.folder / "ledger.jsonl")[COORDINATOR]
    (last,) = (s for s in book.charges.values() if s.reserve.round == 2)
    assert last.artefact == canonical.sha256_hex(path.read_bytes())
    adapter = load_adapter(finished.folder / "adapter").tensors
    released = unpack(path.read_bytes()).tensors
    assert released
    assert all(np.array_equal(adapter[name], tensor) for name, tensor in released.items())


def test_each_device_charged_itself_and_clipped_its_whole_update(finished):
    plan = decode_plan((finished.folder / "state" / "private" / "plan.json").read_bytes())
    for i in range(CLIENTS):
        state = finished.folder / "state" / "private" / f"client-{i:05d}"
        (entries,) = read_charges(state / LEDGER).values()
        assert [(e.round, e.unit, e.event["kind"]) for e in entries] == [
            (1, "user", "user-gaussian"),
            (2, "user", "user-gaussian"),
        ]
        (kept,) = state.rglob("*.update")
        tensors = unpack(kept.read_bytes()).tensors.values()
        assert np.sqrt(sum(np.square(t, dtype=np.float64).sum() for t in tensors)) <= plan.clip_norm


def test_the_baselines_run_and_who_took_part_is_marked(finished):
    report = finished.report
    for figures in (
        report.utility.private,
        report.utility.no_privacy,
        report.utility.no_federation,
    ):
        assert figures.interval.low <= figures.interval.estimate <= figures.interval.high
    assert [r.released for r in report.rounds] == [True, True]
    assert [r.updates for r in report.rounds] == [CLIENTS, CLIENTS]
    assert 0 <= report.noise.clip_fraction <= 1
    assert report.noise.update_snr > 0
    for path in ("$.clients[*].client", "$.rounds[*].updates", "$.cost.bytes_up", "$.run.clients"):
        assert report.only_in_simulation(path)
    assert not report.only_in_simulation("$.rounds[*].epsilon")
    # A client alone gives nothing away, so that it needs no ledger.
    assert not list((finished.folder / "state" / "no_federation").rglob("ledger.db"))


def test_users_are_sampled_in_secret_and_only_then_is_it_claimed(tmp_path, cache):
    config = small(
        "federation.rounds=3", "federation.user_rate=0.5", "privacy.seeded_noise=true", clients=6
    )
    made = simulate(config, tmp_path / "run", cache=cache)
    claimed = made.report.guarantee
    assert claimed.sampling.startswith("poisson (each user's own coin")
    (entries,) = read_charges(made.folder / "ledger.jsonl").values()
    assert {(e.event["kind"], e.event["sampling_rate"]) for e in entries} == {
        ("poisson-sampled-gaussian", 0.5)
    }
    asked = [r.updates for r in made.report.rounds]
    charged = []
    for i in range(6):
        ledger = made.folder / "state" / "private" / f"client-{i:05d}" / LEDGER
        charged.append(len(next(iter(read_charges(ledger).values()))) if ledger.exists() else 0)
    assert sum(charged) == sum(asked) < 3 * 6  # who wasn't picked wasn't asked, and paid nothing
    spent = [client.epsilon for client in made.report.clients]
    assert [e == 0 for e in spent] == [n == 0 for n in charged]
    assert max(spent) > claimed.epsilon.pld * max(charged) / 3  # without amplification
    with pytest.raises(ClaimError, match="seed"):
        claim_of_run(made.folder)


def test_more_clients_than_users_is_refused(tmp_path, cache):
    with pytest.raises(ConfigError, match=r"federation\.population >= the number of clients"):
        simulate(small("federation.population=2"), tmp_path / "run", cache=cache)
    assert not (tmp_path / "run").exists()


# --- a run that is killed ----------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from sordino.core.config import load_experiment
from sordino.sim import central, run
folder, config, cache, step = sys.argv[1:]
honest = central.releases_of
def at(reached):
    if reached == step:
        os.kill(os.getpid(), signal.SIGKILL)
central.releases_of = lambda plan, folder, config: honest(plan, folder, config, at)
if Path(folder).exists():
    run.resume_run(Path(folder), cache=Path(cache))
else:
    run.simulate(load_experiment(Path(config)), Path(folder), cache=Path(cache))
"""


def killed(folder: Path, config: Path, cache: Path, step: str) -> int:
    return subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, (folder, config, cache)), step],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=False,
    ).returncode


def test_a_killed_run_goes_on_and_draws_nothing_twice(tmp_path, cache):
    config, folder = tmp_path / "config.toml", tmp_path / "run"
    config.write_text(to_toml(small()))
    assert killed(folder, config, cache, "release:drawn") == -signal.SIGKILL  # round 1 is lost
    assert killed(folder, config, cache, "release:kept") == -signal.SIGKILL  # round 2 is kept
    (path,) = (coordinator(folder) / UPDATES).rglob("*.update")
    kept = path.read_bytes()
    made = resume_run(folder, cache=cache)
    assert path.read_bytes() == kept
    assert [(r.released, r.updates) for r in made.report.rounds] == [(False, None), (True, None)]
    adapter = load_adapter(folder / "adapter").tensors
    for name, tensor in unpack(kept).tensors.items():
        assert np.array_equal(adapter[name], tensor)
    book = read_ledger(folder / "ledger.jsonl")[COORDINATOR]
    assert [s.state for s in book.charges.values()] == ["abandoned", "released"]
    claim = claim_of_run(folder)  # both rounds are charged, the lost one too
    assert claim.epsilon == made.report.guarantee.epsilon.pld > 7.9
    assert from_json((folder / "report.json").read_text()) == made.report


# --- the ServerApp -----------------------------------------------------------------------------


def test_the_server_app_runs_it_and_survives_a_stop(tmp_path, cache, monkeypatch):
    config = small()
    users = ("henry-v/KING HENRY V", "richard-iii/GLOUCESTER", "henry-v/FLUELLEN")
    out = tmp_path / "out"
    given = {
        "sordino-config": to_toml(config),
        "sordino-base": str(POCKET),
        "sordino-out": str(out),
        "sordino-nodes": CLIENTS,
    }
    plan = plan_of_run(config.privacy, config.federation, run_id="r", rounds=2, local_steps=1)
    (tmp_path / "state").mkdir()
    policy = simulated_policy(plan, RunFolder(tmp_path, "r"))
    nodes = node_configs(
        config,
        users,
        state_root=tmp_path / "devices",
        cache=cache,
        without_privacy=False,
        policy=policy,
    )

    def run():
        with LocalGrid(nodes) as grid:
            app(grid, Context(7, 1, {}, RecordDict(), given))

    honest = KeptUpdates.keep

    def stopped(self, plan_sha256, number, data):
        if number == 2 and self.root == out / UPDATES:
            raise KeyboardInterrupt
        return honest(self, plan_sha256, number, data)

    monkeypatch.setattr(KeptUpdates, "keep", stopped)
    with pytest.raises(KeyboardInterrupt):
        run()
    first = load_file(out / "adapter" / "adapter_model.safetensors")
    monkeypatch.setattr(KeptUpdates, "keep", honest)
    run()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(r["round"], r["received"], r["settled"]) for r in lines] == [
        (1, CLIENTS, ""),
        (2, 0, "abandoned"),
    ]
    after = load_file(out / "adapter" / "adapter_model.safetensors")
    assert all(np.array_equal(first[name], tensor) for name, tensor in after.items())
    manifest = adapters.adapter_manifest(
        json.loads((POCKET / "config.json").read_text()), config.lora
    )
    start = adapters.initial_adapter(manifest, 0)
    moved = {name for name, tensor in after.items() if not np.array_equal(tensor, start[name])}
    assert moved == {name for name in after if not adapters.is_lora_a(name)}
    claim = claim_of_run(out)  # from the coordinator's own folder: its plan and its ledger
    assert (claim.unit, claim.trust, claim.run_id) == ("user", "central", "flower-7")
    assert 7.9 < claim.epsilon <= 8.0
    for i in range(CLIENTS):
        (entries,) = read_charges(tmp_path / "devices" / f"client-{i:05d}" / LEDGER).values()
        assert [entry.round for entry in entries] == [1, 2]

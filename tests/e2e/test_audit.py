"""An audit of whole runs: it must see what is there, nothing where nothing is, and be believed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sordino.cli.main import app
from sordino.client.probe import token_scores
from sordino.core.config import load_experiment
from sordino.privacy.audit import Exposure, Membership, OneRun, auc, decode_audit, measured
from sordino.server.report import from_json
from sordino.sim.audit.bundles import bundle_of
from sordino.sim.audit.run import audit_run
from sordino.sim.audit.target import open_target
from sordino.sim.run import simulate
from sordino.sim.scenarios import scenario_path

SMALL = {
    "data.clients": "1",
    "data.share": "0.3",
    "data.max_tokens": "32",
    "federation.min_updates": "1",
    "performance.workers": "0",
    "audit.words": "8",
    "audit.kinds": '["random"]',
    "audit.repetitions": "[1, 3]",
}
OVERFIT = {
    **SMALL,
    "privacy.trust": '"none"',
    "privacy.seeded_noise": "true",  # coins and batches too: the same run each time
    "privacy.sampling_rate": "0.5",
    "train.optimizer": '"adam"',
    "train.learning_rate": "0.02",
    "train.local_steps": "6",
    "federation.rounds": "5",
    "audit.canaries": "64",
    "audit.secrets": "0",
}
PRIVATE = {
    **SMALL,
    "data.share": "0.1",
    "privacy.epsilon": "1.0",
    "train.local_steps": "1",
    "federation.rounds": "2",
    "audit.canaries": "72",
    "audit.secrets": "4",
}


def run_of(settings, folder, cache):
    config = load_experiment(scenario_path("demo"), [f"{k}={v}" for k, v in settings.items()])
    return simulate(config, folder, cache=cache).folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def overfit(tmp_path_factory, cache):
    """A run without privacy that learns its few records by heart."""
    return run_of(OVERFIT, tmp_path_factory.mktemp("runs") / "overfit", cache)


@pytest.fixture(scope="module")
def private(tmp_path_factory, cache):
    return run_of(PRIVATE, tmp_path_factory.mktemp("runs") / "private", cache)


def entries(audit, kind, control=""):
    return [e for e in audit.entries if isinstance(e.measure, kind) and e.control == control]


def sordino(*arguments, home: Path):
    env = {"XDG_STATE_HOME": str(home), "SORDINO_CACHE": str(home / "cache")}
    return CliRunner().invoke(app, ["audit", *map(str, arguments)], env=env)


def test_what_was_learnt_by_heart_is_seen(overfit, cache):
    audit = audit_run(overfit, "demo", cache=cache).audit
    whole = [e for e in entries(audit, OneRun) if e.measure.scope == "the whole run"]
    assert {e.measure.adversary for e in whole} == {"coordinator", "peer", "user"}
    shown = {e.measure.adversary: e.figures["epsilon_lower"] for e in whole}
    ceiling = whole[0].figures["ceiling"]
    assert shown["peer"] >= 0.6 * ceiling
    assert shown["user"] >= 0.6 * ceiling
    # Six steps of Adam a round bend away from the gradient at its start. Where the update is the
    # clipped sum and some noise, the self-test's coordinator shows that much too.
    assert shown["coordinator"] > 0
    attacks = {e.measure.attack: e.figures["auc"]["estimate"] for e in entries(audit, Membership)}
    assert attacks["reference"] >= 0.9
    for entry in entries(audit, OneRun, "coins tossed anew"):
        assert entry.figures["epsilon_lower"] == 0.0
    assert audit.entries[0].measure.claimed_epsilon is None  # nothing is claimed


def test_where_nothing_was_learnt_nothing_is_seen(overfit, cache):
    """Other coins for the same scores, over 200 seeds; and an adapter that hasn't trained."""
    audit = audit_run(overfit, "demo", cache=cache).audit
    measure = next(e.measure for e in entries(audit, OneRun) if e.measure.adversary == "user")
    rng, above = np.random.default_rng(0), 0
    for _ in range(200):
        coins = tuple((rng.random(len(measure.scores)) < 0.5).tolist())
        changed = {**vars(measure), "coins": coins, "family": 1}
        above += measured("null", OneRun(**changed)).figures["epsilon_lower"] > 0
    assert above <= 18
    target = open_target(overfit, cache)
    sides = (target.corpus.encode(target.corpus.texts(part)) for part in ("train", "held_out"))
    losses = [[s.loss for s in token_scores(target.base.decoder, None, side)] for side in sides]
    untrained = auc(*([-loss for loss in side] for side in losses))
    assert untrained.low <= 0.5 <= untrained.high


@pytest.fixture(scope="module")
def audited(private, tmp_path_factory):
    """The private run after `sordino audit RUN`: what it printed, and what it wrote."""
    done = sordino(private, home=tmp_path_factory.mktemp("home"))
    return done, decode_audit((private / "audit.json").read_bytes())


def test_a_private_run_is_audited_into_its_report(private, audited):
    done, audit = audited
    assert done.exit_code == 0, done.output
    assert ", quick: all but the attacks on prompts; about" in done.output  # said first
    report = from_json((private / "report.json").read_text())
    assert report.leakage.status == "audited"
    assert not report.leakage.alarm
    bounds = {(b.adversary, b.round) for b in report.leakage.bounds if b.label == "private"}
    assert bounds == {("coordinator", 1), ("coordinator", 2), ("peer", 1), ("peer", 2), ("user", 2)}
    assert {a.label for a in report.leakage.attacks} == {"private", "without privacy"}
    page = (private / "report.html").read_text()
    for text in ("Membership inference, attack reference", "Exposure of planted codes"):
        assert text in page
    for entry in entries(audit, Exposure):  # planted codes beside those that stayed out
        assert set(entry.measure.repetitions) <= {0, 1, 3}
        assert len(entry.measure.ranks) == 4


def test_an_outsider_agrees_and_finds_a_changed_score(private, audited, tmp_path):
    _, audit = audited
    bundle = bundle_of(private)
    key = json.loads((bundle / "bundle.json").read_text())["public_key"]
    again = sordino("verify", bundle, "--key", key, home=tmp_path)
    assert again.exit_code == 0, again.output
    path = bundle / "audit.json"
    kept = path.read_bytes()
    score = repr(next(e for e in entries(audit, OneRun)).measure.scores[0])
    path.write_bytes(kept.replace(score.encode(), b"123.5", 1))
    wrong = sordino("verify", bundle, "--key", "0" * 64, home=tmp_path)
    path.write_bytes(kept)
    assert wrong.exit_code == 1
    assert "DEFECT audit.json is not what was signed" in wrong.output
    assert "DEFECT the bundle is not signed by the key 000000000000" in wrong.output


def test_a_stopped_audit_goes_on_and_opens_no_coin_before_the_seal(
    private, audited, cache, monkeypatch
):
    from sordino.sim.audit import deployed, run

    seal, seen, honest = private / "audit" / "sealed.sha256", [], run.open_coins

    def never(*arguments, **settings):
        raise AssertionError("a finished part ran again")

    def watched(*arguments):
        seen.append(seal.read_text().strip())
        return honest(*arguments)

    for part in ("sights", "code_ranks", "suffixes", "inversions"):
        monkeypatch.setattr(run, part, never)
    monkeypatch.setattr(deployed, "membership", never)
    monkeypatch.setattr(run, "open_coins", watched)
    seal.unlink()
    again = audit_run(private, "quick", cache=cache).audit
    assert again.entries == audited[1].entries
    assert seen == [again.context["sealed"]]


def test_a_lower_bound_above_the_claim_is_a_red_alarm(private, audited, tmp_path):
    """The scores of somebody who knew every coin, under a claim of ε ≤ 1."""
    known = entries(audited[1], OneRun)[0].measure
    (path,) = (private / "audit" / "parts").glob("canaries-private-*.json")
    kept = path.read_text()
    sights = json.loads(kept)
    for sight in sights:
        sight["scores"] = [float(coin) for coin in known.coins]
    path.write_text(json.dumps(sights))
    done = sordino(private, home=tmp_path)
    verified = sordino("verify", bundle_of(private), home=tmp_path)
    page = (private / "report.html").read_text()
    path.write_text(kept)
    assert done.exit_code == verified.exit_code == 3
    assert "RED ALARM" in verified.output
    assert "the audit contradicts the claim" in page


def test_what_cannot_be_audited_is_said(tmp_path):
    for arguments, text in (
        ((tmp_path,), "holds no run"),
        ((), "Usage"),
        ((tmp_path, "--self-test"), "give it alone"),
        (("verify", tmp_path), "can't read"),
    ):
        done = sordino(*arguments, home=tmp_path)
        assert done.exit_code != 0
        assert text in done.output or text in str(done.exception)


def test_an_adapter_by_itself_is_audited_as_a_user_would(overfit, tmp_path, cache):
    """No ledger, no coins: membership, against the records that a configuration names."""
    config = tmp_path / "audit.toml"
    config.write_text("[data]\nclients = 1\nshare = 0.3\nmax_tokens = 32\n", encoding="utf-8")
    adapter = tmp_path / "adapter"
    shutil.copytree(overfit / "adapter", adapter)
    given = ("--model", "pocket", "--adapter", adapter, "--config", config)
    done = sordino(*given, home=tmp_path)
    assert done.exit_code == 0, done.output
    audit = decode_audit((adapter / "audit" / "audit.json").read_bytes())
    attacks = {e.measure.attack: e.figures["auc"]["estimate"] for e in audit.entries}
    assert attacks["reference"] >= 0.9
    refused = sordino("--model", "pocket", home=tmp_path)
    assert "go together" in str(refused.exception)

"""`sordino claim`, `policy` and `budget`."""

import json

import pytest
from typer.testing import CliRunner

from sordino.cli.main import app
from sordino.core.errors import ClaimError, PolicyError
from sordino.privacy.ledger import Ledger
from sordino.privacy.plan import Plan
from sordino.privacy.policy import Cap, Policy, policy_toml


def sordino(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


@pytest.fixture
def plan(tmp_path):
    made = Plan(
        run_id="run-1",
        rounds=5,
        steps_per_round=10,
        sampling_rate=0.1,
        noise_multiplier=1.2,
        clip_norm=1.0,
        divisor=13.0,
        delta=1e-5,
    )
    path = tmp_path / "plan.json"
    path.write_bytes(made.canonical())
    return made, path


def test_claim(tmp_path, plan):
    made, _ = plan
    ledger = Ledger(tmp_path / "ledger.db", "c")
    ledger.charge(made, 1, "data")
    shown = sordino("claim", tmp_path)
    assert shown.exit_code == 0
    assert "Privacy claim of run run-1" in shown.output
    assert json.loads(sordino("claim", tmp_path, "--format", "json").output)["unit"] == "record"
    assert "the same" in sordino("claim", tmp_path, "--against", tmp_path).output
    empty = sordino("claim", tmp_path / "nowhere")
    assert empty.exit_code != 0
    assert isinstance(empty.exception, ClaimError)


def test_policy_show_and_sign(tmp_path):
    shown = sordino("policy", "show")
    assert shown.exit_code == 0
    assert "built-in" in shown.output
    path, key = tmp_path / "policy.toml", tmp_path / "owner.key"
    path.write_text(shown.output)
    signed = sordino("policy", "sign", path, "--key", key, "--new-key")
    assert signed.exit_code == 0
    public = signed.output.split()[-1]
    assert "signed by" in sordino("policy", "show", path, "--key", public).output
    assert "not checked" in sordino("policy", "show", path).output
    path.write_text(shown.output + "\n")
    assert isinstance(sordino("policy", "show", path, "--key", public).exception, PolicyError)


def test_policy_check_says_who_would_refuse_and_why(tmp_path, plan):
    _, path = plan
    folder = tmp_path / "policies"
    folder.mkdir()
    assert isinstance(sordino("policy", "check", path, "--policies", folder).exception, PolicyError)
    (folder / "a.toml").write_text(policy_toml(Policy()))
    fine = sordino("policy", "check", path, "--policies", folder)
    assert (fine.exit_code, "a.toml: accepts" in fine.output) == (0, True)
    (folder / "b.toml").write_text(policy_toml(Policy(min_noise_multiplier=5.0)))
    (folder / "c.toml").write_text(policy_toml(Policy(caps=(Cap(epsilon=1.0, delta=1e-5),))))
    told = sordino("policy", "check", path, "--policies", folder, "--rank", 8)
    assert told.exit_code == 1
    assert "b.toml: refuses, policy-noise" in told.output
    assert "c.toml: refuses, policy-budget" in told.output
    assert "2 of 3" in told.output


def test_budget(tmp_path, plan):
    made, path = plan
    new = sordino("budget", path)
    assert new.exit_code == 0
    assert "a new device" in new.output
    ledger = Ledger(tmp_path / "ledger.db", "c")
    for number in (1, 2):
        ledger.charge(made, number, "data")
    policy = tmp_path / "policy.toml"
    policy.write_text(policy_toml(Policy(caps=(Cap(epsilon=4.5, delta=1e-5),))))
    told = sordino("budget", path, "--ledger", ledger.path, "--policy", policy)
    assert told.exit_code == 0, told.exception
    assert "client c, dataset data:" in told.output
    left = int(told.output.split("dataset data: ")[1].split()[0])
    assert 0 < left < made.rounds
    for needed in ("delta", "unit record", "add-or-remove-one", "filter", "over life"):
        assert needed in told.output

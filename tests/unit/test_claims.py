"""A claim card: every figure from the ledger, nothing that the ledger doesn't bear out."""

import json
import math
from dataclasses import replace

import pytest

from sordino.core.errors import ClaimError, SordinoError
from sordino.core.stats import ceil_digits
from sordino.privacy.accounting import epsilon_pld
from sordino.privacy.claims import Facts, compare_claims, make_claim
from sordino.privacy.ledger import Ledger, export_ledgers, read_heads, write_heads
from sordino.privacy.noise import SEEDED_LABEL, SYSTEM_LABEL
from sordino.privacy.plan import CentralPlan, Plan, plan_without_privacy
from sordino.server.report.claim import claim_of_run

FACTS = Facts(noise_source=SYSTEM_LABEL)


def make_plan(**changes):
    values = {
        "run_id": "run-1",
        "rounds": 3,
        "steps_per_round": 10,
        "sampling_rate": 0.1,
        "noise_multiplier": 1.2,
        "clip_norm": 1.0,
        "divisor": 13.0,
        "delta": 1e-5,
    }
    return Plan(**{**values, **changes})


def charge(folder, plan, clients=2, rounds=None):
    paths = []
    for number in range(clients):
        path = folder / f"client-{number}" / "ledger.db"
        ledger = Ledger(path, f"client-{number}")
        for index in range(1, (rounds or plan.rounds) + 1):
            ledger.charge(plan, index, f"data-{number}")
        paths.append(path)
    return paths


@pytest.fixture
def run(tmp_path):
    plan = make_plan()
    folder = tmp_path / "run"
    (folder / "state" / "private").mkdir(parents=True)
    (folder / "state" / "private" / "plan.json").write_bytes(plan.canonical())
    heads = export_ledgers(charge(tmp_path, plan), folder / "ledger.jsonl")
    write_heads(heads, folder / "heads.jsonl")
    return folder


def test_a_claim_says_what_is_asked_of_it(run):
    claim = claim_of_run(run)
    assert claim.epsilon == epsilon_pld([make_plan().total_event()], 1e-5)
    assert claim.epsilon <= claim.epsilon_rdp
    assert (claim.delta, claim.unit, claim.trust) == (1e-5, "record", "local")
    assert claim.mechanism["noise_multiplier"] == 1.2
    assert claim.mechanism["rounds"] == 3
    assert "not bounded" in claim.other_unit
    assert claim.mu is not None
    assert claim.mu > 0
    values = json.loads(claim.to_json())
    for key in (
        "epsilon",
        "delta",
        "unit",
        "contribution_bound",
        "neighbouring",
        "mechanism",
        "threat_model",
        "trust",
        "accountant",
        "versions",
        "randomness",
        "side_channels_considered",
        "side_channels_not_considered",
        "other_releases",
        "tuning",
        "not_covered",
        "ledger_heads",
    ):
        assert values[key]
    page = claim.to_markdown()
    for label, _ in claim.rows():
        assert f"**{label}.**" in page
    for needed in ("δ", "unit record", "add-or-remove-one", "poisson", "PLD", "rounds", "trust"):
        assert needed in claim.headline()


def test_markdown_in_a_name_stays_text(tmp_path):
    plan = make_plan(run_id="a_b")
    (path,) = charge(tmp_path, plan, clients=1)
    assert "a\\_b" in make_claim(plan, path, FACTS).to_markdown()


def test_a_changed_ledger_makes_no_claim(run):
    path = run / "ledger.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for broken in (
        whole.replace(b'"noise_multiplier":1.2', b'"noise_multiplier":9.9'),
        b"".join(lines[:-1]),  # the kept head shows that the tail was cut
        b"".join(lines[1:]),
        b"",
    ):
        path.write_bytes(broken)
        with pytest.raises(SordinoError):
            claim_of_run(run)


def test_charges_of_another_plan_bear_nothing_out(run, tmp_path):
    gentler = make_plan(noise_multiplier=5.0)
    (run / "state" / "private" / "plan.json").write_bytes(gentler.canonical())
    with pytest.raises(ClaimError, match="another plan"):
        claim_of_run(run)
    with pytest.raises(ClaimError, match="nothing to run"):
        make_claim(make_plan(run_id="never"), run / "ledger.jsonl", FACTS)


def test_what_a_claim_needs(run, tmp_path):
    with pytest.raises(ClaimError, match="no plan"):
        claim_of_run(tmp_path)
    (run / "ledger.jsonl").rename(run / "elsewhere.jsonl")
    with pytest.raises(ClaimError, match="no ledger"):
        claim_of_run(run)
    ledger = run / "elsewhere.jsonl"
    with pytest.raises(ClaimError, match="seed"):
        make_claim(make_plan(), ledger, Facts(noise_source=SEEDED_LABEL))
    with pytest.raises(ClaimError, match="states epsilon"):
        make_claim(make_plan(), ledger, replace(FACTS, stated_epsilon=0.5))
    from sordino.core.config import PrivacyConfig

    twin = plan_without_privacy(PrivacyConfig(trust="none"), run_id="r", rounds=1, local_steps=1)
    (run / "state" / "private" / "plan.json").write_bytes(twin.canonical())
    with pytest.raises(ClaimError, match="without privacy"):
        claim_of_run(run)


def test_an_epsilon_without_bound_is_no_claim(tmp_path):
    plan = make_plan(noise_multiplier=0.01, steps_per_round=1000, delta=1e-14)
    (path,) = charge(tmp_path, plan, clients=1)
    with pytest.raises(ClaimError, match="no finite"):
        make_claim(plan, path, FACTS)


def test_a_run_that_stopped_claims_what_was_charged(tmp_path):
    (path,) = charge(tmp_path, make_plan(), clients=1, rounds=2)
    claim = make_claim(make_plan(), path, FACTS)
    assert claim.mechanism["rounds"] == 2
    assert "2 rounds" in claim.composition
    assert claim.epsilon < epsilon_pld([make_plan().total_event()], 1e-5)


def test_other_releases_of_the_same_data_are_told(tmp_path):
    (path,) = charge(tmp_path, make_plan(), clients=1)
    Ledger(path, "client-0").charge(make_plan(run_id="run-0"), 1, "data-0")
    claim = make_claim(make_plan(), path, FACTS)
    assert "run-0" in claim.other_releases
    whole = epsilon_pld([make_plan().round_event()] * 4, 1e-5)
    assert f"{whole}" in claim.other_releases


def test_a_coordinators_claim_is_about_users(tmp_path):
    plan = CentralPlan(
        run_id="c",
        rounds=2,
        steps_per_round=1,
        noise_multiplier=4.0,
        clip_norm=1.0,
        delta=1e-6,
        population=500,
        cohort=50,
        sampling="poisson",
        sampling_rate=0.1,
        batch_rate=0.1,
        batch_divisor=4.0,
    )
    ledger = Ledger(tmp_path / "ledger.db", "coordinator")
    for number in (1, 2):
        ledger.charge(plan.releases, number, "users")
    claim = make_claim(plan, ledger.path, FACTS)
    assert (claim.unit, claim.trust, claim.sampling) == ("user", "central", "poisson")
    assert claim.epsilon == epsilon_pld([plan.total_event()], 1e-6)
    assert "each of a user's records is covered by the user's ε" in claim.other_unit
    assert "at most 2C: ε ≤" in claim.other_unit
    assert "trusted" in claim.threat_model


def test_claims_of_different_things_are_not_compared(tmp_path):
    claims = {}
    for name, change in {
        "a": {},
        "b": {"noise_multiplier": 2.0},
        "delta": {"delta": 1e-6},
    }.items():
        plan = make_plan(run_id=name, **change)
        (path,) = charge(tmp_path / name, plan, clients=1)
        claims[name] = make_claim(plan, path, FACTS)
    told = compare_claims(claims["a"], claims["b"])
    assert told.startswith("run b promises more")
    assert compare_claims(claims["b"], claims["a"]) == told
    assert "the same" in compare_claims(claims["a"], claims["a"])
    with pytest.raises(ClaimError, match="different delta"):
        compare_claims(claims["a"], claims["delta"])
    with pytest.raises(ClaimError, match="different unit"):
        compare_claims(claims["a"], replace(claims["a"], unit="user"))


def test_no_figure_of_a_claim_is_infinite(run):
    assert math.isfinite(claim_of_run(run).epsilon)
    assert read_heads(run / "heads.jsonl")


@pytest.mark.parametrize("value", [0.401234, 0.0171049, 7.19e-13, 1e-05, 9.9999e-6, 0.0])
def test_a_delta_is_printed_rounded_up(value):
    printed = float(ceil_digits(value))
    assert value <= printed <= value * 1.01

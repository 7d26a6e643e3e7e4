"""Central trust: clip on the device, noise once on the sum, no way to a sum without a charge."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
from support.central import SAMPLED, Still, make_central
from support.federation import (
    MANIFEST,
    filled,
    make_plan,
)

from sordino.core import canonical
from sordino.core.config import FederationConfig, PrivacyConfig
from sordino.core.errors import ConfigError, PlanError, UpdateRejectedError
from sordino.privacy.accounting import PoissonSampledGaussian, UserGaussian, epsilon_pld
from sordino.privacy.ledger import Ledger
from sordino.privacy.noise import seeded_source
from sordino.privacy.plan import (
    CentralSum,
    UserMechanism,
    central_plan,
    decode_plan,
    guarantee,
    open_round,
    open_update,
    sample_users,
)
from sordino.server.aggregate import PrivateSum


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.db", "coordinator")


# --- the plan ----------------------------------------------------------------------------------


def test_one_encoding_and_back():
    for plan in (make_central(), make_central(**SAMPLED)):
        assert decode_plan(plan.canonical()) == plan
        values = json.loads(plan.canonical())
        assert (values["kind"], values["trust"], values["unit"]) == (
            "sordino.central-plan",
            "central",
            "user",
        )
    assert make_central(clip_norm=2).sha256 == make_central(clip_norm=2.0).sha256


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"clip_norm": math.inf},
        {"delta": 1.0},
        {"cohort": 0},
        {"cohort": 3},
        {"population": 10**6},
        {"sampling": "shuffled"},
        {"sampling": "poisson"},
        {"sampling_rate": 0.5},
        {"sampling": "poisson", "sampling_rate": 0.02, "population": 50_000, "cohort": 100},
        {"trust": "local"},
        {"unit": "record"},
        {"rounds": True},
        {"batch_rate": 0.0},
    ],
)
def test_impossible_plans(change):
    with pytest.raises(PlanError):
        make_central(**change)
    values = {**canonical.decode(make_central().canonical()), **change}
    forged = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(PlanError):
        decode_plan(forged)


def test_amplification_is_the_coordinators_claim_and_never_the_devices_charge():
    plan = make_central(**SAMPLED)
    assert plan.round_event() == UserGaussian(noise_multiplier=1.0, steps=1)
    assert plan.releases.round_event() == PoissonSampledGaussian(
        sampling_rate=0.02, noise_multiplier=1.0, steps=1, unit="user"
    )
    assert make_central().releases.round_event() == make_central().round_event()
    assert epsilon_pld([plan.total_event()], 1e-6) < epsilon_pld([plan.round_event()], 1e-6)


def test_the_noise_is_solved_for_over_all_rounds():
    config = PrivacyConfig(trust="central", epsilon=3.0, delta=1e-6)
    plan = central_plan(config, run_id="r", rounds=100, local_steps=5, population=500)
    assert math.ceil(plan.noise_multiplier * 1000) / 1000 == 15.439
    sampled = central_plan(
        config, run_id="r", rounds=100, local_steps=5, population=5000, user_rate=0.02
    )
    assert (sampled.cohort, math.ceil(sampled.noise_multiplier * 100) / 100) == (100, 0.83)
    figures = guarantee(plan, [plan.total_event()], composition="all")
    assert figures.unit == "user"
    assert 2.99 < figures.epsilon_pld <= 3.0 < figures.record_epsilon
    assert "any number of records" in figures.user
    with pytest.raises(PlanError, match="trust"):
        central_plan(PrivacyConfig(), run_id="r", rounds=1, local_steps=1, population=5)


def test_the_configuration_allows_it_with_a_population():
    from sordino.core.config import ExperimentConfig

    privacy = PrivacyConfig(trust="central")
    with pytest.raises(ConfigError, match="population"):
        ExperimentConfig(privacy=privacy)
    ExperimentConfig(privacy=privacy, federation=FederationConfig(population=50))


# --- the device's side -------------------------------------------------------------------------


def open_user(ledger, plan=None, number=1) -> UserMechanism:
    plan = plan or make_central()
    return open_update(plan, ledger.charge(plan, number, "data"), seeded_source(0))


def finish(mechanism):
    for _ in range(mechanism.steps):
        batch = mechanism.sample(5)
        mechanism.clip_factors(np.ones(len(batch)))
        mechanism.release(np.ones(3))


@pytest.mark.parametrize("norm", [1e-6, 0.5, 1.0, 40.0, 1e30])
def test_a_whole_update_is_clipped_and_put_on_the_grid(ledger, norm):
    mechanism = open_user(ledger)
    finish(mechanism)
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(2, 30))
    raw *= norm / np.linalg.norm(raw)
    update = {"a": raw[0].astype(np.float32), "b": raw[1].reshape(5, 6).astype(np.float32)}
    clipped = mechanism.clip_update(update)
    flat = np.concatenate([t.ravel().astype(np.float64) for t in clipped.values()])
    step = make_central().grid_step(60)
    assert np.linalg.norm(flat) <= 1.0
    assert (flat / step == np.rint(flat / step)).all()
    assert np.linalg.norm(flat) == pytest.approx(min(norm, 1.0), abs=2e-3)
    with pytest.raises(PlanError, match="once"):
        mechanism.clip_update(update)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_counts_as_zero(ledger, bad):
    mechanism = open_user(ledger)
    finish(mechanism)
    clipped = mechanism.clip_update({"a": np.array([1.0, bad], np.float32)})
    assert clipped["a"].tolist() == [0.0, 0.0]


def test_the_clip_comes_after_the_last_step_and_the_charge_first(ledger):
    plan = make_central()
    mechanism = open_user(ledger, plan)
    with pytest.raises(PlanError, match="after its last step"):
        mechanism.clip_update({"a": np.ones(3, np.float32)})
    charge = ledger.charge(plan, 2, "data")
    for wrong in (make_central(clip_norm=9.0), make_central(noise_multiplier=0.1)):
        with pytest.raises(PlanError, match="another plan"):
            open_update(wrong, charge, seeded_source(0))
    with pytest.raises(PlanError, match="to be a Plan"):
        open_round(plan, charge, seeded_source(0))
    open_update(plan, charge, seeded_source(0))
    with pytest.raises(PlanError, match="opened before"):
        open_update(plan, charge, seeded_source(0))
    with pytest.raises(PlanError, match="open_update"):
        UserMechanism(plan, None)
    with pytest.raises(PlanError, match="copied"):
        copy.copy(mechanism)


# --- the coordinator's side --------------------------------------------------------------------


def test_the_sum_is_over_the_planned_cohort_and_a_missing_device_counts_as_zero(ledger):
    plan = make_central()
    total = CentralSum(plan, 2)
    total.add(np.array([0.5, 0.0], np.float32))
    total.add(np.array([0.25, 0.25], np.float32))
    released = total.release(ledger.charge(plan.releases, 1, "users"), Still())
    assert released.tolist() == pytest.approx([0.75 / 4, 0.25 / 4], abs=1e-3)


def test_a_client_beyond_the_clip_is_clipped_again(ledger):
    plan = make_central()
    total = CentralSum(plan, 2)
    total.add(np.array([30.0, 40.0]))
    released = total.release(ledger.charge(plan.releases, 1, "users"), Still()) * plan.cohort
    assert np.linalg.norm(released) == pytest.approx(1.0, abs=2e-3)


def test_one_user_moves_the_sum_by_at_most_the_sensitivity(ledger):
    plan = make_central()
    rng = np.random.default_rng(1)
    released = []
    others = rng.normal(size=(3, 50)) * 0.2
    for number, users in enumerate((others, np.vstack([others, rng.normal(size=50) * 9.0])), 1):
        total = CentralSum(plan, 50)
        for update in users:
            total.add(update)
        charge = ledger.charge(plan.releases, number, "users")
        released.append(total.release(charge, Still()) * plan.cohort)
    moved = np.linalg.norm(released[1] - released[0])
    assert 0.99 <= moved <= plan.sensitivity(50)


def test_the_noise_is_z_times_the_sensitivity_once_on_the_sum(ledger):
    plan = make_central(noise_multiplier=3.0, population=10, cohort=10)
    total = CentralSum(plan, 20_000)
    released = total.release(ledger.charge(plan.releases, 1, "users"), seeded_source(0))
    assert released.std() * plan.cohort == pytest.approx(3.0 * plan.sensitivity(20_000), rel=0.02)


def test_no_sum_without_its_own_fresh_charge(ledger):
    plan = make_central()
    device = ledger.charge(plan, 1, "data")  # the device's event, not sampled
    sampled = make_central(**SAMPLED)
    total = CentralSum(sampled, 2)
    with pytest.raises(PlanError, match="another plan"):
        total.release(device, Still())
    for fake in (None, object(), device.entry):
        with pytest.raises(PlanError, match="charge"):
            total.release(fake, Still())
    cheap = ledger.charge(replace(sampled, noise_multiplier=50.0).releases, 2, "users")
    with pytest.raises(PlanError, match="another plan"):
        total.release(cheap, Still())
    good = ledger.charge(sampled.releases, 3, "users")
    total.release(good, Still())
    with pytest.raises(PlanError, match="released before"):
        total.release(good, Still())
    with pytest.raises(PlanError, match="late update"):
        total.add(np.ones(2))
    with pytest.raises(PlanError, match="opened before"):
        CentralSum(sampled, 2).release(good, Still())
    for copier in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(PlanError, match="copied"):
            copier(total)
    with pytest.raises(PlanError, match="CentralPlan"):
        CentralSum(make_plan(), 2)


def test_a_fork_releases_nothing(ledger):
    plan = make_central()
    total = CentralSum(plan, 2)
    charge = ledger.charge(plan.releases, 1, "users")
    child = os.fork()
    if child == 0:
        try:
            total.release(charge, Still())
        except PlanError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_users_are_sampled_by_their_own_coins():
    plan = make_central(**SAMPLED)
    source = seeded_source(0)
    sizes = [len(sample_users(plan, 5000, source)) for _ in range(50)]
    assert np.mean(sizes) == pytest.approx(100, rel=0.1)
    assert len(set(sizes)) > 10  # a fixed number would be another mechanism
    assert sample_users(make_central(), 7, source).tolist() == list(range(7))


def test_bad_updates_change_nothing():
    total = PrivateSum(MANIFEST, make_central())
    good = filled(0.01)
    full = {s.name: np.zeros(s.shape, np.float32) for s in MANIFEST.tensors}
    for bad in (good, {**full, MANIFEST.names[0]: np.full((2, 2), np.nan, np.float32)}):
        with pytest.raises(UpdateRejectedError):
            total.add(bad)
    with pytest.raises(PlanError):
        CentralSum(make_central(), 2).add(np.array([1.0, np.nan]))
    assert total.count == 0

"""The plan couples everything: nothing is drawn that wasn't charged, and nothing goes around it."""

import doctest
import importlib
import json
import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from sordino.core import canonical
from sordino.core.config import PrivacyConfig
from sordino.core.errors import PlanError
from sordino.privacy import accounting
from sordino.privacy import plan as coupler
from sordino.privacy.ledger import Ledger
from sordino.privacy.noise import seeded_source
from sordino.privacy.plan import (
    NoPrivacyMechanism,
    NoPrivacyPlan,
    Plan,
    decode_plan,
    guarantee,
    open_round,
    open_round_without_privacy,
    plan_without_privacy,
    private_plan,
)


def make_plan(**changes):
    values = {
        "run_id": "run-1",
        "rounds": 3,
        "steps_per_round": 2,
        "sampling_rate": 0.5,
        "noise_multiplier": 1.5,
        "clip_norm": 2.0,
        "divisor": 4.0,
        "delta": 1e-5,
    }
    return Plan(**{**values, **changes})


def make_twin(**changes):
    values = {
        "run_id": "run-1",
        "rounds": 3,
        "steps_per_round": 2,
        "sampling_rate": 0.5,
        "divisor": 4.0,
    }
    return NoPrivacyPlan(**{**values, **changes})


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.jsonl", "client-1")


@pytest.fixture
def mechanism(ledger):
    plan = make_plan()
    return open_round(plan, ledger.charge(plan, 1, "data"), seeded_source(0))


def run_step(mechanism, population=10, size=8):
    batch = mechanism.sample(population)
    mechanism.clip_factors(np.ones(len(batch)))
    return mechanism.release(np.zeros(size))


def test_exported_members_are_locked():
    assert set(coupler.__all__) == {
        "AdaptiveClip",
        "ChargedPlan",
        "ClipMemory",
        "decode_charged_plan",
        "metric_plan",
        "AnyPlan",
        "CentralPlan",
        "CentralSum",
        "Forecast",
        "Mechanism",
        "first_refused_round",
        "forecast",
        "forecasts",
        "MetricMechanism",
        "MetricPlan",
        "NoPrivacyMechanism",
        "NoPrivacyPlan",
        "Plan",
        "RoundMechanism",
        "Support",
        "UserMechanism",
        "binding_caps",
        "central_plan",
        "counted",
        "decode_metric_plan",
        "decode_plan",
        "describe",
        "events_by_client",
        "events_of",
        "filter_of",
        "guarantee",
        "open_metric",
        "open_round",
        "open_round_without_privacy",
        "open_update",
        "plan_of_run",
        "plan_without_privacy",
        "policy_limit",
        "private_plan",
        "request_of",
        "sample_users",
        "spent",
        "support",
        "verify_ledger",
    }


@pytest.mark.parametrize(
    "name",
    [
        "core.canonical",
        "privacy.accounting",
        "privacy.clipping",
        "privacy.noise.grid",
        "privacy.sampling",
    ],
)
def test_doctests(name):
    assert doctest.testmod(importlib.import_module(f"sordino.{name}")).failed == 0


# The plan as data


def test_the_encoding_is_pinned():
    # A change of these bytes renames every plan: it needs a new version.
    assert make_plan().canonical() == (
        b'{"clip_norm":2.0,"delta":1e-05,"divisor":4.0,"kind":"sordino.plan",'
        b'"neighbouring":"add-or-remove-one","noise":"rounded-gaussian","noise_multiplier":1.5,'
        b'"rounds":3,"run_id":"run-1","sampling":"poisson","sampling_rate":0.5,'
        b'"steps_per_round":2,"trust":"local","unit":"record","version":2}'
    )
    assert make_plan().sha256 == canonical.sha256_hex(make_plan().canonical())
    assert make_plan(clip_norm=2) == make_plan(clip_norm=2.0)
    assert make_plan(clip_norm=2).sha256 == make_plan().sha256


@pytest.mark.parametrize("plan", [make_plan(), make_twin()])
def test_decoding_gives_the_plan_back(plan):
    assert decode_plan(plan.canonical()) == plan


def altered(**changes):
    values = json.loads(make_plan().canonical())
    values.update(changes)
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


BAD_BYTES = {
    "space": make_plan().canonical().replace(b":2.0", b": 2.0"),
    "newline": make_plan().canonical() + b"\n",
    "order": b'{"version":2,' + make_plan().canonical()[1:].replace(b',"version":2', b""),
    "duplicate": make_plan().canonical().replace(b'"rounds":3', b'"rounds":3,"rounds":3'),
    "int for float": altered(clip_norm=2),
    "exponent": make_plan().canonical().replace(b"1e-05", b"0.00001"),
    "bool": altered(rounds=True),
    "bool float": altered(sampling_rate=True),
    "nan": altered(clip_norm=math.nan),
    "infinity": altered(clip_norm=math.inf),
    "overflow": make_plan().canonical().replace(b":2.0", b":1e999"),
    "huge int": make_plan().canonical().replace(b":2.0", b":" + b"9" * 400),
    "string": altered(clip_norm="2.0"),
    "null": altered(clip_norm=None),
    "list": altered(run_id=["run-1"]),
    "unknown key": altered(seed=7),
    "missing key": make_plan().canonical().replace(b'"delta":1e-05,', b""),
    "version 1": altered(version=1),
    "version 3": altered(version=3),
    "version true": altered(version=True),
    "version float": altered(version=2.0),
    "kind": altered(kind="sordino.other"),
    "kind list": altered(kind=[]),
    "trust": altered(trust="central"),
    "unit": altered(unit="user"),
    "neighbouring": altered(neighbouring="replace-one"),
    "sampling": altered(sampling="shuffle"),
    "noise": altered(noise="gaussian"),
    "zero noise": altered(noise_multiplier=0.0),
    "negative noise": altered(noise_multiplier=-1.0),
    "delta one": altered(delta=1.0),
    "q above one": altered(sampling_rate=1.0000001),
    "not ascii": altered(run_id="run-1").replace(b"run-1", "rün".encode()),
    "not an object": b"[]",
    "empty": b"",
    "deep": b"[" * 60_000,
    "long": b" " * 100_000,
}


@pytest.mark.parametrize("data", BAD_BYTES.values(), ids=BAD_BYTES.keys())
def test_anything_but_the_canonical_bytes_is_refused(data):
    with pytest.raises(PlanError):
        decode_plan(data)


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": ""},
        {"run_id": "../x"},
        {"run_id": "a" * 129},
        {"run_id": 3},
        {"rounds": 0},
        {"rounds": 1.0},
        {"rounds": 10**9},
        {"steps_per_round": True},
        {"sampling_rate": 0.0},
        {"noise_multiplier": math.inf},
        {"noise_multiplier": 1.1e6},
        {"clip_norm": 1e300},
        {"clip_norm": 1e-300},
        {"clip_norm": math.nan},
        {"divisor": 0.0},
        {"delta": 0.0},
        {"delta": 1},
        {"trust": "none"},
        {"sampling": "fixed"},
        {"noise": "laplace"},
    ],
)
def test_impossible_plans(change):
    with pytest.raises(PlanError, match=next(iter(change))):
        make_plan(**change)


def test_a_plan_is_frozen_and_says_what_it_charges():
    plan = make_plan()
    with pytest.raises(FrozenInstanceError):
        plan.noise_multiplier = 0.1
    assert (plan.round_event().steps, plan.total_event().steps) == (2, 6)
    assert plan.event_fields() == accounting.event_fields(plan.round_event())
    assert accounting.event_from_fields(plan.event_fields()) == plan.round_event()


def test_the_noise_is_solved_for_the_whole_run():
    plan = private_plan(PrivacyConfig(), run_id="r", rounds=3, local_steps=10)
    figures = guarantee(plan, [plan.total_event()], composition="the whole plan")
    assert 7.99 < figures.epsilon_pld <= 8.0 <= figures.epsilon_rdp
    assert figures.accountants_agree
    assert (figures.delta, figures.unit, figures.neighbouring, figures.user) == (
        1e-5,
        "record",
        "add-or-remove-one",
        "not bounded",
    )
    given = PrivacyConfig(noise_multiplier=2.0)
    assert private_plan(given, run_id="r", rounds=1, local_steps=1).noise_multiplier == 2.0


def test_both_units_side_by_side():
    plan = make_plan()
    figures = guarantee(plan, [plan.round_event()], composition="round 1", records_per_user=4)
    bound = accounting.group_epsilon([plan.round_event()], plan.delta, 4)
    assert figures.user == f"epsilon {bound} for a user of at most 4 records"


def test_no_privacy_is_a_type_of_its_own():
    config = PrivacyConfig(trust="none")
    with pytest.raises(PlanError, match="trust"):
        private_plan(config, run_id="r", rounds=1, local_steps=1)
    twin = plan_without_privacy(config, run_id="r", rounds=3, local_steps=2)
    figures = guarantee(twin, [], composition="the whole plan")
    assert (figures.trust, figures.epsilon_pld, figures.user) == ("none", math.inf, "not bounded")


def test_contradicting_accountants_stop_a_plan(monkeypatch):
    monkeypatch.setattr(accounting, "epsilon_rdp", lambda events, delta: 1.0)
    with pytest.raises(PlanError, match="RDP"):
        private_plan(PrivacyConfig(), run_id="r", rounds=3, local_steps=10)


# The round


def test_a_whole_round(ledger):
    plan = make_plan(noise_multiplier=3.0, clip_norm=2.0)
    mechanism = open_round(plan, ledger.charge(plan, 2, "data"), seeded_source(0))
    noise = np.concatenate([run_step(mechanism, size=20_000) for _ in range(mechanism.steps)])
    assert mechanism.finished
    assert noise.std() == pytest.approx(6.0, rel=0.02)
    steps = noise / plan.grid_step(20_000)
    assert (steps == np.rint(steps)).all()
    assert (mechanism.steps, mechanism.divisor, mechanism.plan) == (2, 4.0, plan)
    assert mechanism.noise_label == "seeded: not private"
    with pytest.raises(PlanError, match="charged steps are done"):
        mechanism.sample(10)
    with pytest.raises(PlanError, match="no step is open"):
        mechanism.release(np.zeros(20_000))


def test_an_empty_batch_is_a_step_with_noise(mechanism):
    assert mechanism.sample(0).tolist() == []
    assert mechanism.release(np.zeros(4)).all()
    run_step(mechanism, size=4)
    assert mechanism.finished


def test_micro_batches_clip_each_record_once(mechanism):
    batch = mechanism.sample(30)
    first, second = np.full(len(batch) - 1, 5.0), np.array([math.nan])
    assert mechanism.clip_factors(first).tolist() == [0.4] * len(first)
    with pytest.raises(PlanError, match="1 records of the batch were not clipped"):
        mechanism.release(np.zeros(4))
    assert mechanism.clip_factors(second).tolist() == [0.0]
    with pytest.raises(PlanError, match="unclipped records"):
        mechanism.clip_factors([1.0])
    mechanism.release(np.zeros(4))


def test_only_one_order(mechanism):
    with pytest.raises(PlanError, match="sample a batch first"):
        mechanism.clip_factors([1.0])
    with pytest.raises(PlanError, match="no step is open"):
        mechanism.release(np.zeros(4))
    batch = mechanism.sample(10)
    with pytest.raises(PlanError, match="still open"):
        mechanism.sample(10)  # no picking among batches
    mechanism.clip_factors(np.ones(len(batch)))
    mechanism.release(np.zeros(4))
    with pytest.raises(PlanError, match="no step is open"):
        mechanism.release(np.zeros(4))  # no second draw to average with the first


IMPOSSIBLE_SUMS = {
    "empty": np.zeros(0),
    "scalar": 1.0,
    "matrix": np.zeros((2, 2)),
    "whole numbers": np.zeros(4, np.int64),
    "halves": np.zeros(4, np.float16),
    "objects": np.array([1.0, None]),
    "words": ["a", "b"],
    "nan": np.array([0.0, math.nan]),
    "infinite": np.array([-math.inf, 0.0]),
}


@pytest.mark.parametrize("total", IMPOSSIBLE_SUMS.values(), ids=IMPOSSIBLE_SUMS.keys())
def test_of_an_impossible_sum_nothing_is_released(mechanism, total):
    mechanism.sample(0)
    with pytest.raises(PlanError, match="clipped sum"):
        mechanism.release(total)


def test_a_sum_that_was_not_clipped_is_not_released(mechanism):
    """Noise for C hides nothing of a sum that is longer than its records, clipped, can be."""
    for total in (np.array([1e-9, 0.0]), np.array([1e300, 0.0])):
        mechanism.sample(0)
        with pytest.raises(PlanError, match="clip each"):
            mechanism.release(total)
        mechanism.release(np.zeros(2))  # the step is still open
    assert mechanism.finished


def test_a_sum_at_the_clip_of_every_record_is_released(mechanism):
    """On the grid and in float32, a record may come out a little longer than C."""
    batch = mechanism.sample(10)
    mechanism.clip_factors(np.full(len(batch), 100.0))
    longest = mechanism.plan.clip_norm * len(batch)
    with pytest.raises(PlanError, match="clip each"):
        mechanism.release(np.array([longest * 1.01, 0.0]))
    mechanism.release(np.array([longest * (1 + 2.0**-11), 0.0], np.float32))


def test_only_the_place_on_the_grid_is_released(tmp_path):
    """Sums that fall on the same place of the grid are indistinguishable, bit for bit."""
    plan, size = make_plan(), 64
    step = plan.grid_step(size)
    place = step * np.arange(size)
    released = []
    for i, total in enumerate((place, place + 0.3 * step, place - 0.49 * step)):
        ledger = Ledger(tmp_path / f"{i}.jsonl", "c")
        opened = open_round(plan, ledger.charge(plan, 1, "data"), seeded_source(0))
        opened.clip_factors(np.ones(len(opened.sample(40))))
        released.append(opened.release(total))
        assert (total != place).any() == (i > 0)  # the caller's array isn't written to
    assert (released[0] == released[1]).all()
    assert (released[0] == released[2]).all()


def test_the_accounted_noise_multiplier_is_the_one_that_holds():
    plan = make_plan(noise_multiplier=0.7, clip_norm=0.3)
    for size in (1, 1000, 2_442_240, 10**9):
        step, moved = plan.grid_step(size), plan.sensitivity(size)
        assert 0.3 + step * math.sqrt(size) <= moved < 0.3003
        assert 0.7 * moved <= plan.noise_std(size) < 0.7 * moved * (1 + 1e-12)
        assert plan.noise_scale(size) * step == plan.noise_std(size)


def test_the_size_stays_that_of_the_adapter(mechanism):
    run_step(mechanism, size=4)
    mechanism.sample(0)
    with pytest.raises(PlanError, match="to be 4"):
        mechanism.release(np.zeros(5))


# The twin


def test_the_twin_draws_the_same_batches_and_adds_no_noise(ledger):
    plan = make_plan()
    private = open_round(plan, ledger.charge(plan, 1, "data"), seeded_source(0, "x"))
    twin = open_round_without_privacy(make_twin(), seeded_source(0, "x"))
    assert isinstance(twin, NoPrivacyMechanism)
    for _ in range(plan.steps_per_round):
        batches = [m.sample(40).tolist() for m in (private, twin)]
        assert batches[0] == batches[1]
        norms = np.full(len(batches[0]), 7.0)
        norms[0] = math.nan
        private.clip_factors(norms)
        assert twin.clip_factors(norms).tolist() == [0.0] + [1.0] * (len(norms) - 1)
        private.release(np.zeros(3))
        assert twin.release(np.array([0.1, 0.2, 0.3])).tolist() == [0.1, 0.2, 0.3]
    assert twin.finished
    assert twin.divisor == private.divisor


def test_replacing_a_field_makes_another_plan():
    assert replace(make_plan(), delta=1e-6).sha256 != make_plan().sha256

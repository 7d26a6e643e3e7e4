"""Properties of plans, rounds and accounting for whatever values Hypothesis finds."""

import contextlib
import json
import math
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sordino.core import canonical
from sordino.core.errors import PlanError
from sordino.privacy.accounting import (
    PoissonSampledGaussian,
    accountants_agree,
    calibrate_noise,
    epsilon_pld,
    epsilon_rdp,
)
from sordino.privacy.ledger import Ledger
from sordino.privacy.noise import seeded_source
from sordino.privacy.plan import NoPrivacyPlan, Plan, decode_plan, open_round

positive = st.floats(min_value=1e-6, max_value=1e6)
schedule = {
    "run_id": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,20}", fullmatch=True),
    "rounds": st.integers(1, 1_000_000),
    "steps_per_round": st.integers(1, 1_000_000),
    "sampling_rate": st.floats(min_value=0, max_value=1, exclude_min=True),
    "divisor": positive,
}
plans = st.builds(
    Plan,
    **schedule,
    noise_multiplier=positive,
    clip_norm=positive,
    delta=st.floats(min_value=0, max_value=1, exclude_min=True, exclude_max=True),
)
twins = st.builds(NoPrivacyPlan, **schedule)
slow = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(plans | twins)
def test_one_plan_one_encoding(plan):
    data = plan.canonical()
    assert decode_plan(data) == plan
    assert canonical.encode(json.loads(data)) == data


@given(plans, plans)
def test_plans_share_a_hash_only_if_equal(a, b):
    assert (a.sha256 == b.sha256) == (a == b)


@given(plans | twins, st.data())
def test_any_changed_byte_is_refused_or_another_plan(plan, data):
    raw = bytearray(plan.canonical())
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= data.draw(st.integers(1, 255))
    try:
        other = decode_plan(bytes(raw))
    except PlanError:
        return
    assert other != plan
    assert other.canonical() == bytes(raw)


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_no_bytes_raise_anything_else(data):
    with pytest.raises(PlanError):
        decode_plan(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(plans, st.sampled_from([f.name for f in fields(Plan)] + ["kind", "version"]), json_values)
def test_no_value_of_any_field_raises_anything_else(plan, name, value):
    values = {**json.loads(plan.canonical()), name: value}
    data = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    with contextlib.suppress(PlanError):
        assert decode_plan(data).canonical() == data


events = st.builds(
    PoissonSampledGaussian,
    sampling_rate=st.floats(1e-4, 1),
    noise_multiplier=st.floats(0.4, 50),
    steps=st.integers(1, 500),
)
deltas = st.floats(1e-8, 1e-3)


@slow
@given(events, deltas)
def test_rdp_is_never_below_pld(event, delta):
    assert accountants_agree(epsilon_pld([event], delta), epsilon_rdp([event], delta))


@slow
@given(events, deltas, st.floats(1.01, 3))
def test_epsilon_moves_the_right_way(event, delta, factor):
    slack = 2e-4  # two roundings up
    base = epsilon_pld([event], delta)
    louder = replace(event, noise_multiplier=event.noise_multiplier * factor)
    assert epsilon_pld([louder], delta) <= base * (1 + 1e-3) + slack
    assert epsilon_pld([event, event], delta) >= base - slack
    assert epsilon_pld([event], delta / factor) >= base - slack
    unsampled = replace(event, sampling_rate=1.0)
    assert base <= epsilon_pld([unsampled], delta) * (1 + 1e-3) + slack


@settings(max_examples=6, deadline=None)
@given(
    epsilon=st.floats(0.1, 20),
    delta=st.floats(1e-7, 1e-4),
    rate=st.floats(0.005, 1),
    steps=st.integers(1, 200),
)
def test_calibration_meets_its_target(epsilon, delta, rate, steps):
    sigma = calibrate_noise(epsilon=epsilon, delta=delta, sampling_rate=rate, steps=steps)
    event = PoissonSampledGaussian(sampling_rate=rate, noise_multiplier=sigma, steps=steps)
    assert epsilon_pld([event], delta) <= epsilon
    assume(sigma > 0.02)
    less = replace(event, noise_multiplier=sigma * 0.98)
    assert epsilon_pld([less], delta) > epsilon * 0.999


class CountingSource:
    """A source that remembers how often noise was drawn."""

    label, private = "counting", False

    def __init__(self):
        self.draws = []
        self._source = seeded_source(0)

    def rounded_gaussian(self, size, scale):
        self.draws.append((size, scale))
        return self._source.rounded_gaussian(size, scale)

    def coins(self, size):
        return self._source.coins(size)


class RoundMachine(RuleBasedStateMachine):
    """Any sequence of calls: one draw a step at the plan's scale, never more than were charged."""

    @initialize(steps=st.integers(1, 4), rate=st.floats(0.1, 1.0))
    def open(self, steps, rate):
        self.plan = Plan(
            run_id="r",
            rounds=1,
            steps_per_round=steps,
            sampling_rate=rate,
            noise_multiplier=1.5,
            clip_norm=2.0,
            divisor=4.0,
            delta=1e-5,
        )
        self.source, self.sampled, self.left = CountingSource(), 0, None
        with tempfile.TemporaryDirectory() as folder:
            charge = Ledger(Path(folder) / "ledger.jsonl", "c").charge(self.plan, 1, "data")
        self.round = open_round(self.plan, charge, self.source)

    @rule(population=st.integers(0, 8))
    def sample(self, population):
        if self.left is None and self.sampled < self.plan.steps_per_round:
            self.left = len(self.round.sample(population))
            self.sampled += 1
        else:
            with pytest.raises(PlanError):
                self.round.sample(population)

    @rule(norms=st.lists(st.floats(), max_size=5))
    def clip(self, norms):
        if self.left is not None and len(norms) <= self.left:
            factors = self.round.clip_factors(norms)
            given_norms = np.array(norms, dtype=float)
            used = factors * np.where(factors == 0, 0.0, given_norms)
            assert (used <= self.plan.clip_norm).all()
            self.left -= len(norms)
        else:
            with pytest.raises(PlanError):
                self.round.clip_factors(norms)

    @rule()
    @precondition(lambda self: self.left)
    def clip_the_rest(self):
        self.round.clip_factors(np.ones(self.left))
        self.left = 0

    @rule()
    def noise(self):
        if self.left == 0:
            assert self.round.release(np.zeros(3)).shape == (3,)
            self.left = None
        else:
            with pytest.raises(PlanError):
                self.round.release(np.zeros(3))

    @invariant()
    def draws_match_steps(self):
        closed = self.sampled - (self.left is not None)
        assert self.source.draws == [(3, self.plan.noise_scale(3))] * closed
        assert self.round.finished == (closed == self.plan.steps_per_round)
        assert math.isclose(self.round.divisor, 4.0)


RoundMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestRound = RoundMachine.TestCase

"""A paid metric: clipped, noised, charged; once a charge, and nothing beside it."""

import copy
import math

import numpy as np
import pytest

from sordino.core.errors import PlanError
from sordino.privacy.accounting import MetricGaussian, StopGaussian
from sordino.privacy.ledger import Ledger
from sordino.privacy.noise import seeded_source
from sordino.privacy.plan import (
    MetricMechanism,
    MetricPlan,
    decode_metric_plan,
    decode_plan,
    open_metric,
)


class Still:
    label = "still: for tests"
    private = False

    def rounded_gaussian(self, size, scale):
        return np.zeros(size, np.int64)


def make_metric(**changes):
    values = {
        "run_id": "run-1:loss",
        "rounds": 5,
        "metric": "loss",
        "purpose": "metric",
        "noise_multiplier": 4.0,
        "clip_norm": 8.0,
        "divisor": 10.0,
        "delta": 1e-5,
    }
    return MetricPlan(**{**values, **changes})


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.db", "client-1")


def release(ledger, plan, number, values, source=None):
    charge = ledger.charge(plan, number, "held-out")
    return open_metric(plan, charge, source or Still()).release(values)


def test_a_plan_of_its_own():
    plan = make_metric()
    assert decode_metric_plan(plan.canonical()) == plan
    with pytest.raises(PlanError, match="kind"):
        decode_plan(plan.canonical())  # nobody trains under it
    assert plan.round_event() == MetricGaussian(
        metric="loss", noise_multiplier=4.0, steps=1, clip_norm=8.0
    )
    assert isinstance(make_metric(purpose="stop").total_event(), StopGaussian)
    for bad in (
        {"purpose": "tuning"},
        {"metric": "Loss!"},
        {"noise_multiplier": 0.0},
        {"clip_norm": math.inf},
        {"delta": 1.0},
        {"steps_per_round": 2},
        {"divisor": math.nan},
    ):
        with pytest.raises(PlanError):
            make_metric(**bad)


def test_each_value_is_clipped_and_a_bad_one_is_zero(ledger):
    values = [1.0, 100.0, -100.0, math.nan, math.inf, -math.inf]
    assert release(ledger, make_metric(), 1, values) == pytest.approx(0.1, abs=1e-2)
    assert release(ledger, make_metric(), 2, []) == 0.0


def test_one_record_moves_the_sum_by_at_most_c(ledger):
    plan = make_metric(divisor=16.0)  # a power of two: the test itself rounds nothing
    base = list(np.random.default_rng(0).normal(4.0, 3.0, 50))
    without = release(ledger, plan, 1, base)
    with_one = release(ledger, plan, 2, [*base, 1e9])
    assert abs(with_one - without) * plan.divisor <= plan.clip_norm


def test_the_noise_is_as_charged(ledger):
    plan = make_metric(rounds=400)
    drawn = [release(ledger, plan, n, [], seeded_source(n)) for n in range(1, 401)]
    assert np.std(drawn) * plan.divisor == pytest.approx(32.0, rel=0.15)


def test_a_charge_is_good_for_one_look(ledger):
    plan = make_metric()
    charge = ledger.charge(plan, 1, "held-out")
    with pytest.raises(PlanError, match="another plan"):
        open_metric(make_metric(noise_multiplier=0.1), charge, Still())
    look = open_metric(plan, charge, Still())
    with pytest.raises(PlanError, match="copied"):
        copy.copy(look)
    with pytest.raises(PlanError, match="one a record"):
        look.release(np.ones((2, 2)))
    look.release([1.0])
    with pytest.raises(PlanError, match="released before"):
        look.release([1.0])
    with pytest.raises(PlanError, match="opened before"):
        open_metric(plan, charge, Still())
    with pytest.raises(PlanError, match="open_metric"):
        MetricMechanism(plan, Still())

"""Events of every kind, both units, the filter, and figures beyond one ε."""

import math

import numpy as np
import pytest
from dp_accounting import gaussian_mechanism
from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.client.opinion import ORDERS, opacus_epsilons
from sordino.core.errors import PlanError, PolicyRefusedError
from sordino.privacy import accounting
from sordino.privacy.accounting import (
    DEFAULT_ORDERS,
    Filter,
    MetricGaussian,
    PoissonSampledGaussian,
    QuantileGaussian,
    StopGaussian,
    UserGaussian,
    compare,
    delta_at,
    delta_curve,
    dominating_gaussian,
    epsilon_for,
    epsilon_pld,
    epsilon_rdp,
    event_fields,
    event_from_fields,
    gaussian_delta,
    group_epsilon,
)
from sordino.privacy.accounting.divergences import divergences
from sordino.privacy.accounting.events import gaussians


def sampled(q=0.016, sigma=0.8, steps=620, **more):
    return PoissonSampledGaussian(sampling_rate=q, noise_multiplier=sigma, steps=steps, **more)


EVENTS = [
    sampled(),
    sampled(unit="user", clip_norm=0.3),
    UserGaussian(noise_multiplier=2.0, steps=3, clip_norm=0.5),
    MetricGaussian(metric="loss", noise_multiplier=5.0, steps=1, clip_norm=8.0),
    QuantileGaussian(quantile=0.5, noise_multiplier=10.0, steps=4),
    StopGaussian(metric="loss", noise_multiplier=5.0, steps=2, unit="user"),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: f"{e.kind}-{e.unit}")
def test_an_event_is_all_that_its_fields_say(event):
    fields = event_fields(event)
    assert event_from_fields(fields) == event
    assert {"kind", "unit", "neighbouring", "sampling", "clip_norm"} <= set(fields)
    assert not {"epsilon", "delta"} & set(fields)
    for key in fields:
        with pytest.raises(PlanError):
            event_from_fields({k: v for k, v in fields.items() if k != key})
    with pytest.raises(PlanError, match="unknown"):
        event_from_fields({**fields, "epsilon": 1.0})
    for key, bad in (
        ("kind", "laplace"),
        ("neighbouring", "replace-one"),
        ("sampling", "shuffled"),
        ("unit", "device"),
        ("noise_multiplier", math.nan),
        ("noise_multiplier", 0.0),
        ("steps", 0),
        ("clip_norm", math.inf),
    ):
        with pytest.raises(PlanError):
            event_from_fields({**fields, key: bad})


@pytest.mark.parametrize(("epsilon", "sigma"), [(1, 4.2247), (3, 1.5439), (10, 0.5411)])
def test_central_in_one_shot(epsilon, sigma):
    event = UserGaussian(noise_multiplier=sigma, steps=1)
    assert epsilon_pld([event], 1e-6) == pytest.approx(epsilon, abs=3e-4)


@pytest.mark.parametrize(
    ("epsilon", "sigma", "plain"), [(1, 1.28, 42.247), (3, 0.83, 15.439), (8, 0.58, 6.530)]
)
def test_central_over_a_hundred_rounds(epsilon, sigma, plain):
    # The published σ are rounded up to the next hundredth, and thousandth.
    users = sampled(q=0.02, sigma=sigma, steps=100, unit="user")
    assert epsilon_pld([users], 1e-6) <= epsilon
    fewer = sampled(q=0.02, sigma=sigma - 0.01, steps=100, unit="user")
    assert epsilon_pld([fewer], 1e-6) > epsilon
    assert epsilon_pld([UserGaussian(noise_multiplier=plain, steps=100)], 1e-6) <= epsilon
    less = UserGaussian(noise_multiplier=plain - 1e-3, steps=100)
    assert epsilon_pld([less], 1e-6) > epsilon


def test_both_units_side_by_side():
    event = UserGaussian(noise_multiplier=4.2247, steps=1)
    # One record of a user replaces its update by another: 2C, half the noise multiplier.
    half = gaussian_mechanism.get_epsilon_gaussian(4.2247 / 2, 1e-6)
    assert epsilon_for("record", [event], 1e-6) == pytest.approx(half, abs=2e-4)
    assert epsilon_for("user", [event], 1e-6) == pytest.approx(1.0, abs=2e-4)
    assert epsilon_for("user", [sampled()], 1e-5) == math.inf
    assert epsilon_for("user", [sampled()], 1e-5, records_per_user=4) == pytest.approx(
        19.9, abs=0.05
    )
    assert epsilon_for("record", [sampled()], 1e-5) == epsilon_pld([sampled()], 1e-5)


def test_events_of_both_units_make_no_single_figure():
    both = [sampled(), UserGaussian(noise_multiplier=20.0, steps=1)]
    with pytest.raises(PlanError, match="both units"):
        epsilon_pld(both, 1e-5)
    record = epsilon_for("record", both, 1e-5)
    assert record > epsilon_pld(both[:1], 1e-5)
    assert epsilon_for("user", both, 1e-5) == math.inf
    assert math.isfinite(epsilon_for("user", both, 1e-5, records_per_user=2))


def test_other_mechanisms_add_up_with_training():
    train = sampled()
    looks = [
        MetricGaussian(metric="loss", noise_multiplier=20.0, steps=3),
        QuantileGaussian(quantile=0.5, noise_multiplier=50.0, steps=3),
        StopGaussian(metric="loss", noise_multiplier=20.0, steps=3),
    ]
    figures = [epsilon_pld([train, *looks[:n]], 1e-5) for n in range(4)]
    assert figures == sorted(figures)
    assert len(set(figures)) == 4
    # At the same noise multiplier a look costs what any Gaussian does.
    same = UserGaussian(noise_multiplier=20.0, steps=3)
    assert epsilon_pld(looks[:1], 1e-5) == epsilon_pld([same], 1e-5)


# --- second opinions ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q", "sigma", "steps"), [(0.016, 0.8, 620), (0.1, 0.729, 30), (1.0, 6.0, 9)]
)
def test_opacus_agrees_on_common_orders(q, sigma, steps):
    event = sampled(q, sigma, steps)
    prv, rdp = opacus_epsilons([(sigma, q, steps)], 1e-5)
    ours = epsilon_rdp([event], 1e-5, orders=ORDERS)
    result = compare(
        pld=epsilon_pld([event], 1e-5), rdp=ours, other_prv=prv, other_rdp=rdp, name="Opacus"
    )
    assert result.agrees, result.statement
    assert ours == pytest.approx(rdp, abs=2e-4)
    # On its own orders dp-accounting leaves some out, so that its figure is never below the best.
    assert epsilon_rdp([event], 1e-5) >= epsilon_pld([event], 1e-5)


def test_a_disagreement_is_said():
    fine = {"pld": 4.1, "rdp": 4.76, "other_prv": 4.11, "other_rdp": 4.76, "name": "Opacus"}
    assert compare(**fine).agrees
    for key, value in (
        ("other_prv", 4.2),
        ("other_prv", 3.9),
        ("other_rdp", 4.7),
        ("other_prv", math.nan),
    ):
        result = compare(**{**fine, key: value})
        assert not result.agrees
        assert "disagrees" in result.statement
    small = {**fine, "pld": 0.1, "other_prv": 0.1109}  # 0.011 where 1 % is less
    assert compare(**small).agrees


# --- more than one point -----------------------------------------------------------------------


def test_the_central_limit_figure_is_too_low_and_ours_is_not():
    q, sigma, steps = 0.016, 0.8, 620
    event = sampled(q, sigma, steps)
    limit = q * math.sqrt(steps * math.expm1(1 / sigma**2))  # its μ
    low = float(
        next(e for e in np.arange(0, 8, 1e-3) if gaussian_delta(limit, np.array([e]))[0] <= 1e-5)
    )
    assert low == pytest.approx(3.26, abs=0.3)
    found = dominating_gaussian([event])
    assert found.mu > limit
    epsilons = np.linspace(0, 12, 301)
    ours = np.array(delta_at([event], list(epsilons)))
    seen = ours >= found.smallest_delta
    assert (gaussian_delta(found.mu, epsilons)[seen] >= ours[seen]).all()
    # And no smaller one does: a percent less is crossed somewhere.
    assert (gaussian_delta(found.mu * 0.99, epsilons)[seen] < ours[seen]).any()


def test_a_gaussian_is_dominated_by_itself():
    found = dominating_gaussian([UserGaussian(noise_multiplier=2.0, steps=1)])
    assert 0.5 <= found.mu <= 0.502
    assert dominating_gaussian([]).mu == 0.0


def test_the_curve_passes_through_the_figure():
    curve = delta_curve([sampled()], 1e-5)
    epsilon = epsilon_pld([sampled()], 1e-5)
    assert curve[0][0] == 0.0
    assert curve[20][0] == pytest.approx(epsilon)
    assert curve[20][1] <= 1e-5
    deltas = [delta for _, delta in curve]
    assert deltas == sorted(deltas, reverse=True)
    exact = 1 - 2 * 0.3085375387259869  # the Gaussian's total variation at μ = 1
    (at_zero,) = delta_at([UserGaussian(noise_multiplier=1.0, steps=1)], [0.0])
    assert exact <= at_zero <= exact * 1.01
    with pytest.raises(PlanError):
        delta_at([sampled()], [-1.0])


# --- the filter --------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [0.016, 0.3, 1.0])
@pytest.mark.parametrize("sigma", [0.6, 2.0])
def test_divergences_are_opacus_own(q, sigma):
    from opacus.accountants.analysis.rdp import compute_rdp

    theirs = compute_rdp(q=q, noise_multiplier=sigma, steps=7, orders=list(DEFAULT_ORDERS))
    ours = divergences(gaussians(sampled(q, sigma, 7)), DEFAULT_ORDERS)
    assert (ours >= theirs * (1 - 1e-9)).all()
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_the_filter_pays_for_its_orders():
    one = Filter(unit="record", epsilon=8.0, delta=1e-5, orders=(4,))
    grid = Filter(unit="record", epsilon=8.0, delta=1e-5, orders=(4, 6))
    plain = epsilon_rdp([sampled()], 1e-5, orders=(4,))
    assert one.spent([sampled()]) == pytest.approx(plain, abs=2e-4)
    # δ is shared in proportion to 1/√(α - 1); the second order takes a part of it over.
    share = 3**-0.5 / (3**-0.5 + 5**-0.5)
    assert plain < grid.spent([sampled()]) <= plain - math.log(share) / 3 + 2e-4


def test_the_filter_is_never_below_what_the_same_events_cost_when_announced():
    cap = Filter(unit="record", epsilon=8.0, delta=1e-5)
    for events in (
        [sampled()],
        [sampled(0.1, 0.75, 30)],
        [sampled(0.02, 2.0, 100), sampled(0.5, 9.0, 10)],
    ):
        assert cap.spent(events) >= epsilon_pld(events, 1e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.01, 0.1, 1.0]), st.floats(0.7, 30.0), st.integers(1, 40)),
        max_size=25,
    )
)
def test_adaptively_chosen_events_never_pass_the_cap(asked):
    cap = Filter(unit="record", epsilon=4.0, delta=1e-5)
    passed = []
    for q, sigma, steps in asked:
        event = sampled(q, sigma, steps)
        try:
            cap.would_allow(passed, event)
        except PolicyRefusedError:
            assert cap.spent([*passed, event]) > 4.0
        else:
            passed.append(event)
    assert cap.spent(passed) <= 4.0
    assert epsilon_pld(passed, 1e-5) <= 4.0 if passed else True


def test_a_cap_on_users_knows_no_unlimited_users():
    event = sampled(0.01, 4.0, 1)
    with pytest.raises(PolicyRefusedError):
        Filter(unit="user", epsilon=1e9, delta=1e-5).would_allow([], event)
    bounded = Filter(unit="user", epsilon=20.0, delta=1e-5, records_per_user=3)
    bounded.would_allow([], event)
    assert bounded.spent([event]) >= group_epsilon([event], 1e-5, 3)


def test_rounds_left_is_where_the_filter_stops():
    cap = Filter(unit="record", epsilon=12.0, delta=1e-5)
    event, before = sampled(0.1, 0.9, 10), [sampled(0.1, 0.9, 20)]
    left = cap.rounds_left(before, event, 1000)
    cap.would_allow([*before, *[event] * (left - 1)], event)
    with pytest.raises(PolicyRefusedError):
        cap.would_allow([*before, *[event] * left], event)
    assert cap.rounds_left(before, event, 1) == 1
    assert cap.rounds_left([sampled(1.0, 0.3, 1000)], event, 10) == 0


@pytest.mark.parametrize(
    "orders",
    [(), (1,), (2, 2), (4, 2), (1.05,), (math.nan,), (True,), (5000,), tuple(range(2, 90))],
)
def test_impossible_orders(orders):
    with pytest.raises(PlanError, match="orders"):
        Filter(unit="record", epsilon=1.0, delta=1e-5, orders=orders)


def test_exported_members_are_locked():
    assert set(accounting.__all__) == {
        "AdaptiveClipGaussian",
        "raised_noise",
        "Comparison",
        "DECIMALS",
        "DEFAULT_ORDERS",
        "Dominating",
        "Event",
        "Filter",
        "Guarantee",
        "LARGEST_NOISE",
        "MetricGaussian",
        "NOT_BOUNDED",
        "PoissonSampledGaussian",
        "QuantileGaussian",
        "SMALLEST_NOISE",
        "StopGaussian",
        "Unit",
        "UserGaussian",
        "accountant",
        "accountants_agree",
        "calibrate_noise",
        "check_orders",
        "compare",
        "delta_at",
        "delta_curve",
        "dominating_gaussian",
        "epsilon_for",
        "epsilon_pld",
        "epsilon_rdp",
        "event_fields",
        "event_from_fields",
        "gaussian_delta",
        "group_epsilon",
        "spent",
        "unit_of",
    }

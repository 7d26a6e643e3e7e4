from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi
from support.federation import MANIFEST, TRAIN, filled, make_plan, make_task, open_plan, update_for

from sordino.core import adapters
from sordino.core.config import TrainConfig
from sordino.core.errors import PlanError, UpdateRejectedError
from sordino.core.records import AdapterManifest, TensorSpec
from sordino.core.schedule import learning_rates
from sordino.server import aggregate
from sordino.server.aggregate import UpdateSum, apply_mean, norm_bound, update_norm, validate_update

SMALL = AdapterManifest((TensorSpec("a.lora_B.weight", (3, 2)),))
NAME = SMALL.names[0]


def tensors(*values: float) -> dict[str, np.ndarray]:
    return {NAME: np.array(values, np.float32).reshape(3, 2)}


floats = st.floats(-4.0, 4.0, width=32)
updates = st.lists(st.lists(floats, min_size=6, max_size=6), min_size=1, max_size=9)


@given(updates, st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_the_order_of_arrival_does_not_change_a_bit(values, random) -> None:  # type: ignore[no-untyped-def]
    means = []
    for _ in range(3):
        random.shuffle(values)
        total = UpdateSum(SMALL, bound=10.0, cohort=9)
        for value in values:
            total.add(tensors(*value))
        means.append(total.mean()[NAME].tobytes())
    assert len(set(means)) == 1


def test_floats_would_depend_on_the_order() -> None:
    # The property above is worth something: plain float32 sums do depend on it.
    values = np.array([1e8, 1.0, -1e8, 1.0], np.float32)
    sums = set()
    for order in itertools.permutations(values):
        total = np.float32(0.0)
        for value in order:
            total = np.float32(total + value)
        sums.add(float(total))
    assert len(sums) > 1


@given(updates)
@settings(max_examples=100, deadline=None)
def test_the_mean_is_exact_to_the_last_fixed_point_digit(values: list[list[float]]) -> None:
    total = UpdateSum(SMALL, bound=10.0, cohort=9)
    for value in values:
        total.add(tensors(*value))
    exact = [math.fsum(column) / len(values) for column in zip(*values, strict=True)]
    assert np.allclose(total.mean()[NAME].ravel(), exact, rtol=1e-15, atol=2.0**-50)


@given(st.floats(1e-30, 1e30), st.integers(1, 1 << 40))
@settings(max_examples=300, deadline=None)
def test_the_sum_cannot_overflow(bound: float, cohort: int) -> None:
    total = UpdateSum(SMALL, bound=bound, cohort=cohort)
    largest = np.float32(bound)
    if not np.isfinite(largest):
        return
    if float(largest) > bound:
        largest = np.nextafter(largest, np.float32(0))
    total.add({NAME: np.full((3, 2), largest, np.float32)})
    one = int(np.abs(total._sums[NAME]).max())
    assert one * cohort < 2**63
    assert one > 2**30 or cohort > 2**20  # and the scale is not wasteful


def test_a_value_beyond_the_bound_is_refused_and_changes_nothing() -> None:
    total = UpdateSum(SMALL, bound=1.0, cohort=4)
    total.add(tensors(1, 0, 0, 0, 0, -1))
    before = total.mean()[NAME]
    with pytest.raises(UpdateRejectedError, match="over-norm"):
        total.add(tensors(0.5, 0.5, 0, 0, 0, 1.5))
    assert total.count == 1
    assert np.array_equal(total.mean()[NAME], before)


def test_no_more_than_the_cohort_and_no_mean_of_nothing() -> None:
    total = UpdateSum(SMALL, bound=1.0, cohort=1)
    with pytest.raises(PlanError, match="at least one update"):
        total.mean()
    total.add(tensors(0, 0, 0, 0, 0, 0))
    with pytest.raises(PlanError, match="cohort of 1"):
        total.add(tensors(0, 0, 0, 0, 0, 0))


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_bound_is_refused(bound: float) -> None:
    with pytest.raises(PlanError, match="norm bound"):
        UpdateSum(SMALL, bound=bound, cohort=1)


def test_apply_mean_leaves_the_frozen_tensors_alone() -> None:
    adapter = adapters.initial_adapter(MANIFEST, 0)
    mean = {name: t.astype(np.float64) for name, t in filled(0.25).items()}
    changed = apply_mean(adapter, mean)
    for name in MANIFEST.names:
        if adapters.is_lora_a(name):
            assert changed[name] is adapter[name]
        else:
            assert np.array_equal(changed[name], np.full_like(adapter[name], 0.25))
            assert changed[name].dtype == np.float32


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ({"run_id": "other"}, "wrong-run"),
        ({"round": 2}, "wrong-round"),
        ({"plan_sha256": "0" * 64}, "wrong-plan"),
        ({"receipt": None}, "no-receipt"),
    ],
)
def test_what_an_update_says_of_itself_is_checked(spoil: dict[str, object], reason: str) -> None:
    good = update_for(make_task(), filled(0.001))
    check(good)
    with pytest.raises(UpdateRejectedError) as raised:
        check(type(good)(**{**good.__dict__, **spoil}))
    assert raised.value.reason == reason


def test_without_privacy_no_receipt_is_needed() -> None:
    plan = open_plan()
    update = update_for(make_task(plan=plan), filled(0.001))
    check(type(update)(**{**update.__dict__, "receipt": None}), plan)


def bound_of(plan, train: TrainConfig, round_number: int = 1) -> float:  # type: ignore[no-untyped-def]
    return norm_bound(plan, train, 100, round_number=round_number)


def check(update, plan=None) -> None:  # type: ignore[no-untyped-def]
    trained = adapters.trained_manifest(MANIFEST, "ffa", 1)
    validate_update(update, round_number=1, plan=plan or make_plan(), trained=trained, bound=100.0)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_honest_updates_stay_below_the_bound_and_it_is_not_loose(
    momentum: float, schedule: str
) -> None:
    plan = make_plan(noise_multiplier=0.8, divisor=13.0, sampling_rate=0.1, steps_per_round=10)
    train = TrainConfig(
        learning_rate=0.7, momentum=momentum, local_steps=10, schedule=schedule, warmup=0.5
    )
    size = 60_000
    records = round(aggregate.RECORDS_ALLOWANCE * 13.0 / 0.1)
    bound = norm_bound(plan, train, size, round_number=2)
    random = np.random.default_rng(5)
    direction = np.zeros(size)
    direction[0] = plan.clip_norm
    for _ in range(3):
        weights, velocity = np.zeros(size), np.zeros(size)
        for rate in learning_rates(train, round_number=2, rounds=plan.rounds, steps=10):
            batch = random.binomial(records, 0.1)  # all of them pull the same way
            gradient = batch * direction + random.normal(0, 0.8, size)
            velocity = momentum * velocity + gradient / plan.divisor
            weights -= rate * velocity
        assert bound / 2 < np.linalg.norm(weights) < bound


@given(
    optimizer=st.sampled_from(["sgd", "adam"]),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    warmup=st.floats(0, 0.9),
    round_number=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_no_schedule_allows_more_than_the_full_rate(
    optimizer: str, schedule: str, warmup: float, round_number: int
) -> None:
    train = TrainConfig(optimizer=optimizer, local_steps=3, schedule=schedule, warmup=warmup)
    full = bound_of(make_plan(), TrainConfig(optimizer=optimizer, local_steps=3))
    assert 0 < bound_of(make_plan(), train, round_number) <= full * (1 + 1e-12)


def test_the_bound_falls_with_the_schedule_by_rounds() -> None:
    train = TrainConfig(local_steps=3, schedule="linear")
    first, second, third = (bound_of(make_plan(), train, number) for number in (1, 2, 3))
    # Rates 9, 8, 7 ninths in the first round; 3, 2, 1 in the last.
    assert first > second > third
    assert third / first == pytest.approx(6 / 24, rel=0.1)


def test_the_tails_are_what_the_docstring_says() -> None:
    steps, divisor, size = 10, 13.0, 60_000
    plan = make_plan(steps_per_round=steps, divisor=divisor, sampling_rate=0.1)
    tail = math.log(2 / aggregate.HONEST_REJECTION)
    mean = aggregate.RECORDS_ALLOWANCE * divisor
    records = steps * mean + tail / 3 + math.sqrt(tail * tail / 9 + 2 * mean * tail * steps)
    records_held = round(mean / 0.1)
    assert binom.sf(records, steps * records_held, 0.1) < aggregate.HONEST_REJECTION / 2
    radius = math.sqrt(size) + math.sqrt(2 * tail)
    assert chi.sf(radius, size) < aggregate.HONEST_REJECTION / 2
    expected = (records + math.sqrt(steps) * radius) / divisor
    bound = norm_bound(plan, TrainConfig(local_steps=steps), size, round_number=1)
    assert expected < bound < expected * 1.01


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_adam_stays_below_its_bound_for_hostile_gradients(schedule: str) -> None:
    torch = pytest.importorskip("torch")
    steps = 12
    train = TrainConfig(optimizer="adam", learning_rate=0.01, local_steps=steps, schedule=schedule)
    plan = make_plan(steps_per_round=steps)
    bound = norm_bound(plan, train, 8, round_number=2)
    random = np.random.default_rng(1)
    worst = 0.0
    for trial in range(60):
        weights = torch.zeros(8, requires_grad=True)
        optimizer = torch.optim.Adam([weights], lr=0.01)
        rates = learning_rates(train, round_number=2, rounds=plan.rounds, steps=steps)
        for step, rate in enumerate(rates):
            optimizer.param_groups[0]["lr"] = rate
            scale = 10.0 ** (trial % 7 * step / 3 - 4)  # growing gradients do most
            sign = random.choice([-1.0, 1.0]) if trial % 2 else 1.0
            weights.grad = torch.full((8,), sign * scale)
            optimizer.step()
        worst = max(worst, float(weights.detach().norm()))
    assert bound / 4 < worst < bound


def test_without_privacy_there_is_a_limit_of_sanity() -> None:
    train = TrainConfig(local_steps=3)
    assert bound_of(open_plan(), train) > bound_of(make_plan(), train)
    adam = TrainConfig(optimizer="adam", local_steps=3)
    assert bound_of(open_plan(), adam) == bound_of(make_plan(), adam)


def test_impossible_bounds_are_refused() -> None:
    with pytest.raises(PlanError, match="parameter_count"):
        norm_bound(make_plan(), TRAIN, 0, round_number=1)
    with pytest.raises(PlanError, match="learning rate"):
        bound_of(make_plan(), TrainConfig(local_steps=3, learning_rate=1e308))


def test_update_norm() -> None:
    assert update_norm(tensors(3, 0, 0, 0, 4, 0)) == 5.0

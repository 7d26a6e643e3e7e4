"""A clip norm that follows a private quantile: one release, one charge, and the right way.

Andrew et al. 2021. What is measured is what leaves a step: the gradients' sum and, beside it, the
count. The same measurements must catch a step that is wrong in each of the usual ways.
"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from support.federation import TinySession, make_task
from support.federation import make_plan as federation_plan
from support.rounds import Still, plan

from sordino.client.app import answer
from sordino.core.config import PrivacyConfig
from sordino.core.errors import ConfigError, PlanError, PolicyRefusedError
from sordino.core.wire import pack
from sordino.privacy import noise
from sordino.privacy.accounting import (
    AdaptiveClipGaussian,
    MetricGaussian,
    PoissonSampledGaussian,
    QuantileGaussian,
    epsilon_pld,
    epsilon_rdp,
    event_from_fields,
    raised_noise,
)
from sordino.privacy.ledger import Ledger, read_ledger
from sordino.privacy.noise import seeded_source
from sordino.privacy.plan import (
    AdaptiveClip,
    ClipMemory,
    decode_plan,
    open_round,
    private_plan,
    request_of,
    verify_ledger,
)
from sordino.privacy.plan import adaptive as following
from sordino.privacy.policy import Policy, check_request

RULE = AdaptiveClip(start=1.0, smallest=0.1, quantile=0.5, rate=0.2, count_noise_multiplier=5.0)
SIZE = 40


def make(rule=RULE, **changes):
    settings = {"clip_norm": 10.0, "divisor": 8.0, "steps_per_round": 1, "rounds": 100_000}
    return plan(**{**settings, **changes}, adaptive=rule)


class Device:
    """Rounds of one plan over the same records, each a gradient of a given norm."""

    def __init__(self, folder, made, source=None, memory=None):
        self.plan, self.number = made, 0
        self.source, self.memory = source or Still(), memory
        self.ledger = Ledger(folder / "ledger.db", "client")

    def open(self):
        self.number += 1
        charge = self.ledger.charge(self.plan, self.number, "data")
        return open_round(self.plan, charge, self.source, self.memory)


def step(mechanism, gradients):
    """One step over all records, as a trainer does it: each on the grid by itself."""
    chosen = mechanism.sample(len(gradients))
    norms = np.array([np.linalg.norm(g) for g in gradients])[chosen]
    factors = mechanism.clip_factors(norms)
    grid = mechanism.plan.grid_step(SIZE)
    total = np.zeros(SIZE)
    for factor, index in zip(factors, chosen, strict=True):
        if factor:
            total += np.rint(gradients[index] * factor / grid) * grid
    return mechanism.release(total)


def along(norm, seed=0):
    direction = np.random.default_rng(seed).normal(size=SIZE)
    return direction / np.linalg.norm(direction) * norm


@pytest.fixture
def released(monkeypatch):
    """Everything that is noised: (sum, standard deviation of its noise)."""
    seen, honest = [], noise.release_on_grid

    def noting(total, *, step, scale, source):
        seen.append((np.array(total), scale * step))
        return honest(total, step=step, scale=scale, source=source)

    monkeypatch.setattr(noise, "release_on_grid", noting)
    return seen


# --- plan and event ----------------------------------------------------------------------------


def test_a_plan_says_how_its_clip_norm_moves():
    made = make()
    assert decode_plan(made.canonical()) == made
    assert json.loads(made.canonical())["adaptive"]["quantile"] == 0.5
    fixed = plan()
    assert b"adaptive" not in fixed.canonical()
    assert decode_plan(fixed.canonical()) == fixed
    assert made.sha256 != replace(made, adaptive=replace(RULE, rate=0.3)).sha256


@pytest.mark.parametrize(
    "changes",
    [
        {"start": 0.05},
        {"start": 10.5},
        {"smallest": 0.0},
        {"smallest": 0.009},  # one grid couldn't serve so wide a range
        {"quantile": 1.0},
        {"quantile": 0.0},
        {"rate": 0.0},
        {"rate": math.nan},
        {"count_noise_multiplier": 1.0},  # not above sigma: nothing left for the gradients
        {"count_noise_multiplier": math.inf},
        {"count_noise_multiplier": 1e4},  # the grid would swallow the count
    ],
)
def test_impossible_rules_are_refused(changes):
    with pytest.raises(PlanError):
        make(AdaptiveClip(**{**vars(RULE), **changes}))


def test_anything_else_in_its_place_is_refused():
    values = json.loads(make().canonical())
    for odd in ({"start": 1.0}, [1], "adaptive", 3, {**values["adaptive"], "more": 1}):
        data = json.dumps({**values, "adaptive": odd}, sort_keys=True, separators=(",", ":"))
        with pytest.raises(PlanError):
            decode_plan(data.encode())


def test_what_is_charged_says_both_releases():
    event = make().round_event()
    assert event == AdaptiveClipGaussian(
        sampling_rate=0.5,
        noise_multiplier=1.0,
        count_noise_multiplier=5.0,
        quantile=0.5,
        steps=1,
        clip_norm=10.0,
    )
    assert event_from_fields(make().event_fields()) == event


def test_gradients_and_count_together_cost_sigma():
    """The theorem, by the accountant: without sampling, z and n composed are sigma."""
    sigma, count = 0.8, 3.0
    gradients = MetricGaussian(
        metric="gradient", noise_multiplier=raised_noise(sigma, count), steps=50
    )
    counts = QuantileGaussian(quantile=0.5, noise_multiplier=count, steps=50)
    joint = AdaptiveClipGaussian(
        sampling_rate=1.0,
        noise_multiplier=sigma,
        count_noise_multiplier=count,
        quantile=0.5,
        steps=50,
    )
    apart = epsilon_pld([gradients, counts], 1e-5)
    assert epsilon_pld([joint], 1e-5) == pytest.approx(apart, rel=2e-4)
    wrong = replace(gradients, noise_multiplier=sigma)  # the raised noise isn't applied
    assert epsilon_pld([wrong, counts], 1e-5) > 1.02 * apart


def test_sampled_it_is_amplified_once():
    made = make()
    twin = PoissonSampledGaussian(sampling_rate=0.5, noise_multiplier=1.0, steps=1)
    assert epsilon_pld([made.round_event()], 1e-5) == epsilon_pld([twin], 1e-5)
    assert epsilon_rdp([made.round_event()], 1e-5) == epsilon_rdp([twin], 1e-5)


def test_a_configuration_solves_for_the_noise_of_both():
    config = PrivacyConfig(clip="adaptive", clip_norm=0.3, clip_range=10.0, epsilon=3.0)
    made = private_plan(config, run_id="r", rounds=3, local_steps=10)
    fixed = private_plan(replace(config, clip="fixed"), run_id="r", rounds=3, local_steps=10)
    assert made.noise_multiplier == fixed.noise_multiplier  # what is accounted
    assert epsilon_pld([made.total_event()], config.delta) <= 3.0
    raised = raised_noise(made.noise_multiplier, made.adaptive.count_noise_multiplier)
    assert raised == pytest.approx(1.02 * made.noise_multiplier)
    bounds = (made.adaptive.smallest, made.adaptive.start, made.clip_norm)
    assert bounds == pytest.approx((0.03, 0.3, 3.0))
    with pytest.raises(ConfigError, match=r"privacy\.clip"):
        PrivacyConfig(clip="adaptive", trust="central")


# --- sensitivity and noise ---------------------------------------------------------------------

OTHERS = [along(norm, seed) for seed, norm in enumerate((0.2, 0.7, 1.0, 3.0))]
EXTRAS = (0.0, 1e-9, 0.5, 1.0, np.nextafter(1.0, 2), 50.0)


def covered(released, folder, made, extra):
    """Whether the noise is at least sigma times what one record moves all that is released."""
    device = Device(folder, made)
    step(device.open(), [*OTHERS, along(extra, 99)])
    step(device.open(), OTHERS)
    (with_it, std), (without, _) = released
    released.clear()
    moved = float(np.linalg.norm(with_it - without))
    return std >= made.noise_multiplier * moved


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("extra", EXTRAS)
def test_one_record_moves_sum_and_count_by_what_is_noised(released, tmp_path, extra, quantile):
    made = make(replace(RULE, quantile=quantile))
    assert covered(released, tmp_path, made, extra)
    bound = made.sensitivity(SIZE, 1.0)
    weight = raised_noise(1.0, 5.0) / 5.0
    assert math.hypot(1.0, weight) < bound < 1.01 * math.hypot(1.0, weight)


def test_noise_that_forgets_the_count_is_caught(released, tmp_path, monkeypatch):
    made = make()
    assert covered(released, tmp_path / "honest", made, 50.0)
    monkeypatch.setattr(type(made), "sensitivity", lambda self, size, clip_norm=None: clip_norm)
    assert not covered(released, tmp_path / "wrong", made, 50.0)


def test_a_count_of_the_wrong_weight_is_caught(released, tmp_path, monkeypatch):
    """At the quantile 0.8 a record moves the count by 0.8, and not by the paper's 1/2."""
    made = make(replace(RULE, quantile=0.8))
    monkeypatch.setattr(
        following.Follower, "_unit", lambda self: self.clip_norm * self._plan.count_weight / 0.5
    )
    assert not covered(released, tmp_path, made, 50.0)


def test_the_grid_is_one_and_the_noise_follows_the_clip_norm(released, tmp_path):
    made = make(steps_per_round=2)
    mechanism = Device(tmp_path, made).open()
    for _ in range(2):
        step(mechanism, [along(50.0)] * 16)  # all beyond: it rises
    (_, first), (_, second) = released
    assert second / first == pytest.approx(math.exp(0.2), rel=1e-3)
    assert made.grid_step(SIZE) <= 0.1 / 1024 / math.sqrt(SIZE + 1)


# --- the count's own noise ---------------------------------------------------------------------


def moves(folder, rounds=300):
    """How far one step of two records, both within, moves the clip norm's logarithm."""
    source = seeded_source(11)
    device = Device(folder, make(divisor=64.0), source)
    found = []
    for _ in range(rounds):
        mechanism = device.open()
        chosen = mechanism.sample(0)
        mechanism.clip_factors(np.ones(len(chosen)))
        mechanism.release(np.zeros(SIZE))
        found.append(math.log(mechanism.clip_norm))
    return np.array(found)


def noisy_enough(found):
    """As charged: n times 1/2, over the divisor, at the rate; and no drift without records."""
    expected = 0.2 * 5.0 * 0.5 / 64.0
    error = expected / math.sqrt(len(found))
    return abs(np.std(found) / expected - 1) < 0.15 and abs(np.mean(found)) < 4 * error


def test_the_count_is_noised_as_charged(tmp_path):
    assert noisy_enough(moves(tmp_path))


def test_a_count_without_noise_is_caught(tmp_path, monkeypatch):
    honest = noise.release_on_grid

    def gradients_only(total, *, step, scale, source):
        noised = honest(total[:-1], step=step, scale=scale, source=source)
        return np.append(noised, total[-1])

    monkeypatch.setattr(noise, "release_on_grid", gradients_only)
    assert not noisy_enough(moves(tmp_path))


def test_half_the_counts_noise_is_caught(tmp_path, monkeypatch):
    honest = noise.release_on_grid

    def halved(total, *, step, scale, source):
        return honest(total, step=step, scale=scale / 2, source=source)

    monkeypatch.setattr(noise, "release_on_grid", halved)
    assert not noisy_enough(moves(tmp_path))


# --- where it goes -----------------------------------------------------------------------------


def settled(folder, quantile, start):
    """The clip norm after many noisy steps over records of norms 0.5, 1, .., 5."""
    rule = replace(RULE, quantile=quantile, start=start)
    made = make(rule, steps_per_round=80, divisor=16.0)  # of a batch of 10 on average
    mechanism = Device(folder, made, seeded_source(3)).open()
    norms = np.tile(np.arange(0.5, 5.5, 0.5), 2)
    seen = []
    for _ in range(80):
        chosen = mechanism.sample(len(norms))
        mechanism.clip_factors(norms[chosen])
        mechanism.release(np.zeros(SIZE))
        seen.append(mechanism.clip_norm)
    return float(np.median(seen[40:]))


@pytest.mark.parametrize("start", [0.3, 9.0])
@pytest.mark.parametrize(("quantile", "low", "high"), [(0.5, 1.8, 3.6), (0.8, 3.2, 5.2)])
def test_it_finds_the_quantile_from_either_side(tmp_path, quantile, low, high, start):
    """Whatever the number of records is: the divisor says 16 where there are 10."""
    assert low < settled(tmp_path, quantile, start) < high


def test_a_wrong_sign_runs_away_and_is_caught(tmp_path, monkeypatch):
    honest = following.Follower.follow
    monkeypatch.setattr(following.Follower, "follow", lambda self, noised: honest(self, -noised))
    assert not 1.8 < settled(tmp_path, 0.5, 9.0) < 3.6


def test_it_stays_within_its_bounds(tmp_path):
    device = Device(tmp_path, make(steps_per_round=30, divisor=0.5))
    for norm, bound in ((1e-6, 0.1), (1e6, 10.0)):
        mechanism = device.open()
        for _ in range(30):
            step(mechanism, [along(norm)] * 8)
            assert 0.1 <= mechanism.clip_norm <= 10.0
        assert mechanism.clip_norm == bound


def test_records_that_are_not_finite_are_neither_within_nor_beyond(released, tmp_path):
    mechanism = Device(tmp_path, make()).open()
    mechanism.sample(4)
    factors = mechanism.clip_factors([math.nan, math.inf, -1.0, 0.5])
    assert factors.tolist() == [0.0, 0.0, 0.0, 1.0]
    mechanism.release(np.zeros(SIZE))
    ((joint, _),) = released
    assert joint[-1] == pytest.approx(0.5 * make().count_weight / 0.5, rel=1e-2)


def test_an_empty_batch_moves_it_by_noise_alone(tmp_path):
    mechanism = Device(tmp_path, make()).open()
    mechanism.sample(0)
    mechanism.release(np.zeros(SIZE))
    assert mechanism.clip_norm == 1.0


# --- from round to round -----------------------------------------------------------------------


def test_the_next_round_goes_on_where_this_one_ended(tmp_path):
    made = make(steps_per_round=2)
    device = Device(tmp_path, made, memory=ClipMemory(tmp_path / "clips"))
    first = device.open()
    step(first, [along(50.0)] * 16)
    assert device.open().clip_norm == 1.0  # the first isn't finished: nothing is kept
    step(first, [along(50.0)] * 16)
    assert device.open().clip_norm == first.clip_norm > 1.4
    other = Device(tmp_path / "other", make(steps_per_round=3), memory=device.memory)
    assert other.open().clip_norm == 1.0  # another plan begins anew


@pytest.mark.parametrize("kept", [b"", b"{}", b"\xff", b'{"clip_norm":5.0}', None])
def test_what_is_lost_or_damaged_begins_anew(tmp_path, kept):
    made = make()
    memory = ClipMemory(tmp_path / "clips")
    for value in (99.0, 0.01):  # outside the plan's bounds
        memory.write(made, value)
        assert memory.read(made, RULE) == 1.0
    memory.write(made, 5.0)
    assert memory.read(made, RULE) == 5.0
    (path,) = (tmp_path / "clips").iterdir()
    if kept is None:
        path.unlink()
    else:
        path.write_bytes(kept)
    assert memory.read(made, RULE) == 1.0


def test_the_policy_bounds_what_it_may_come_to():
    asked = request_of(make(rounds=10))
    check_request(Policy(max_clip_norm=10.0, max_sampling_rate=1.0), asked)
    with pytest.raises(PolicyRefusedError) as refusal:
        check_request(Policy(max_clip_norm=9.9, max_sampling_rate=1.0), asked)
    assert refusal.value.reason == "policy-clip"


def test_a_client_charges_keeps_and_resends_it(tmp_path):
    made = federation_plan(adaptive=RULE, clip_norm=10.0)
    session = TinySession("alice", tmp_path / "alice")
    first = pack(answer(session, make_task(plan=made)))
    assert pack(answer(session, make_task(plan=made))) == first
    assert session.trained == 1
    book = read_ledger(session.state_dir / "ledger.db")["alice"]
    (standing,) = book.charges.values()
    assert dict(standing.reserve.event) == made.event_fields()
    assert len(list((session.state_dir / "clips").iterdir())) == 1
    answer(session, make_task(2, plan=made))
    verdict = verify_ledger(session.state_dir / "ledger.db", max_epsilon=50.0)
    assert verdict.ok, verdict.defects

"""A wrong central release is caught: each judge passes what is built and refuses each mistake.

The judges look at what leaves alone (the change of the adapter that `Releases.release` gives, and
the update that a client sends), so they hold for any way of making it.
"""

import itertools
import math

import numpy as np
import pytest
from support.central import Still, make_central

from sordino.core.records import AdapterManifest, TensorSpec
from sordino.privacy import clipping, noise
from sordino.privacy.ledger import Ledger
from sordino.privacy.noise import seeded_source
from sordino.privacy.plan import CentralSum, UserMechanism, open_update
from sordino.privacy.plan.charged import redeem
from sordino.server.aggregate import PrivateSum
from sordino.server.release import Releases

COHORT, SIZE = 8, 24_000
PLAN = make_central(
    rounds=1000, population=COHORT, cohort=COHORT, noise_multiplier=2.0, clip_norm=0.5
)
TRAINED = AdapterManifest((TensorSpec("a.weight", (SIZE // 3,)), TensorSpec("b", (2, SIZE // 3))))
START = {spec.name: np.zeros(spec.shape, np.float32) for spec in TRAINED.tensors}
SMALL = PLAN.clip_norm / 10
GRID = PLAN.grid_step(SIZE) * math.sqrt(SIZE)  # what rounding to the grid may add to a norm


def split(row):
    first, second = np.split(np.asarray(row, np.float32), [SIZE // 3])
    return {"a.weight": first, "b": second.reshape(2, -1)}


def joined(tensors):
    return np.concatenate([tensors[name].ravel().astype(np.float64) for name in TRAINED.names])


@pytest.fixture
def release(tmp_path):
    """What leaves a coordinator that got these updates."""
    numbers = itertools.count(1)

    def leave(updates, source):
        releases = Releases(plan=PLAN, folder=tmp_path / "c", source=lambda *_: source)
        total = PrivateSum(TRAINED, PLAN)
        for update in updates:
            total.add(split(update))
        return joined(releases.release(next(numbers), START, total))

    return leave


@pytest.fixture
def send(tmp_path):
    """What leaves a client whose local steps ended in this change."""
    numbers = itertools.count(1)
    ledger = Ledger(tmp_path / "d" / "ledger.db", "device")

    def leave(change):
        user = open_update(PLAN, ledger.charge(PLAN, next(numbers), "data"), seeded_source(0))
        for _ in range(user.steps):
            user.clip_factors(np.ones(len(user.sample(5))))
            user.release(np.zeros(3))
        return joined(user.clip_update(split(change)))

    return leave


def directions(count, norm):
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(count, SIZE))
    return norm * rows / np.linalg.norm(rows, axis=1, keepdims=True)


# --- the judges --------------------------------------------------------------------------------


def judge_noise(release, received):
    """Its variance on the sum is (z·Δ)², whoever answered: chi-square, beyond 6 deviations."""
    released = release(directions(received, SMALL), seeded_source(3)) * PLAN.cohort
    noised = released - directions(received, SMALL).sum(0)
    ratio = np.square(noised).mean() / (PLAN.noise_multiplier * PLAN.sensitivity(SIZE)) ** 2
    assert abs(ratio - 1) < 6 * math.sqrt(2 / SIZE), f"variance is {ratio} of what it must be"
    assert abs(noised.mean()) < 6 * noised.std() / math.sqrt(SIZE)


def judge_divisor(release, received):
    """Exact, with the noise held still: the sum over the planned cohort."""
    updates = directions(received, SMALL)
    released = release(updates, Still())
    assert np.linalg.norm(released - updates.sum(0) / PLAN.cohort) <= received * GRID


def judge_sensitivity(release):
    """Exact: one user more, however long the update, moves the sum by at most Δ."""
    others = directions(3, SMALL)
    for norm in (SMALL, PLAN.clip_norm, 40.0):
        more = np.vstack([others, directions(4, norm)[3:]])
        moved = (release(more, Still()) - release(others, Still())) * PLAN.cohort
        assert np.linalg.norm(moved) <= PLAN.sensitivity(SIZE) * (1 + 1e-6)


def judge_whole_update(send):
    """Exact: what a client sends is at most C long over all of its tensors together."""
    for norm in (SMALL, PLAN.clip_norm, 40.0):
        sent = np.linalg.norm(send(directions(1, norm)[0]))
        assert sent <= PLAN.clip_norm
        assert sent == pytest.approx(min(norm, PLAN.clip_norm), abs=GRID)


@pytest.mark.parametrize("received", [1, 3, COHORT])
def test_what_is_built_passes(release, send, received):
    judge_noise(release, received)
    judge_divisor(release, received)
    judge_sensitivity(release)
    judge_whole_update(send)


# --- what is wrong -----------------------------------------------------------------------------


def scaled_noise(monkeypatch, factor):
    honest = noise.release_on_grid

    def wrong(total, *, step, scale, source):
        return honest(total, step=step, scale=scale * factor, source=source)

    monkeypatch.setattr(noise, "release_on_grid", wrong)


def released_by(make):
    """A `CentralSum.release` that gives `make(plan, sum, count, noise on the sum)`."""

    def release(self, charge, source):
        redeem(self._plan.releases, charge)
        total = self._total * self._step
        scale = self._plan.noise_scale(total.size)
        drawn = source.rounded_gaussian(total.size, scale) * self._step
        return make(self._plan, total, self._count, drawn)

    return release


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 1 / COHORT])
def test_noise_of_another_scale_is_caught(monkeypatch, release, factor):
    scaled_noise(monkeypatch, factor)
    with pytest.raises(AssertionError, match="variance"):
        judge_noise(release, 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda plan, total, count, drawn: total / plan.cohort + drawn,
        lambda plan, total, count, drawn: total / plan.cohort + drawn / count,
        lambda plan, total, count, drawn: (total + drawn / plan.cohort) / plan.cohort,
    ],
    ids=["of the sum on the mean", "of the received", "of the mean on the sum"],
)
def test_noise_on_the_mean_is_caught(monkeypatch, release, make):
    monkeypatch.setattr(CentralSum, "release", released_by(make))
    with pytest.raises(AssertionError, match="variance"):
        judge_noise(release, 3)


def test_noise_for_each_update_is_caught(monkeypatch, release):
    def twice(plan, total, count, drawn):
        return (total + math.sqrt(count) * drawn) / plan.cohort

    monkeypatch.setattr(CentralSum, "release", released_by(twice))
    with pytest.raises(AssertionError, match="variance"):
        judge_noise(release, 3)


def test_a_divisor_of_those_who_answered_is_caught(monkeypatch, release):
    def wrong(plan, total, count, drawn):
        return (total + drawn) / count

    monkeypatch.setattr(CentralSum, "release", released_by(wrong))
    judge_divisor(release, COHORT)  # where everybody answers it can't be seen
    with pytest.raises(AssertionError):
        judge_divisor(release, 3)


def no_clip(norms, clip_norm):
    return np.ones(len(norms))


def test_a_sum_that_believes_its_clients_is_caught(monkeypatch, release):
    monkeypatch.setattr(clipping, "clip_factors", no_clip)
    with pytest.raises(AssertionError):
        judge_sensitivity(release)


def test_a_client_without_a_clip_is_caught(monkeypatch, send):
    monkeypatch.setattr(clipping, "clip_factors", no_clip)
    with pytest.raises(AssertionError):
        judge_whole_update(send)


def test_a_clip_of_each_tensor_is_caught(monkeypatch, send):
    honest = UserMechanism.clip_update

    def by_tensor(self, tensors):
        clipped = {}
        for name, tensor in tensors.items():
            self._clipped = False
            clipped |= honest(self, {name: tensor})
        return clipped

    monkeypatch.setattr(UserMechanism, "clip_update", by_tensor)
    with pytest.raises(AssertionError):
        judge_whole_update(send)

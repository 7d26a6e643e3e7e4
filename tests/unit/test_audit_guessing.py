"""Guesses, what they could have shown, and mechanisms held against what they were accounted as."""

import math

import numpy as np
import pytest
from support.audits import RULE, gaussian_scores, one_run

from sordino.core.errors import AuditError
from sordino.privacy.audit import (
    Counts,
    Guessing,
    Neighbours,
    Noise,
    PointsCurve,
    TwoWorlds,
    clopper_pearson,
    count,
    noise_p_value,
    split_rule,
    two_worlds_bound,
    wilson,
)
from sordino.privacy.audit.bounds import accuracy_for, least_correct, rigorous_bound

DELTA = 1e-5


def test_the_highest_are_guessed_in_and_the_lowest_out():
    coins = [True, True, False, False, True]
    rule = Guessing(guessed_in=2, guessed_out=2)
    assert count([5, 4, 3, 2, 1], coins, rule) == Counts(canaries=5, guesses=4, correct=3)
    assert count([1, 2, 3, 4, 5], coins, rule).correct == 1
    only = Guessing(guessed_in=0, guessed_out=1)
    assert count([5, 4, 3, 2, 1], coins, only).correct == 0


def test_ties_go_by_order_and_not_by_coin():
    rule = Guessing(guessed_in=1, guessed_out=1)
    for coins in ([True, False, True, False], [False, True, False, True]):
        assert count([0, 0, 0, 0], coins, rule).correct == (2 if coins[0] else 0)


@pytest.mark.parametrize(
    ("scores", "coins", "words"),
    [
        ([1.0, math.nan], [True, False], r"scores\[1\] finite"),
        ([1.0], [True, False], "one length"),
        ([1.0, 2.0], [1, 0], "booleans"),
        ([], [], "n >= 1"),
        ([1.0], [True], "at most the 1 canaries"),
    ],
)
def test_impossible_scores_are_refused(scores, coins, words):
    with pytest.raises(AuditError, match=words):
        count(scores, coins, Guessing(guessed_in=1, guessed_out=1))


def test_a_rule_must_guess():
    with pytest.raises(AuditError, match="shows nothing"):
        Guessing(guessed_in=0, guessed_out=0)


def test_a_split_never_tests_where_it_chose():
    rng = np.random.default_rng(0)
    coins = rng.random(40) < 0.5
    scores = rng.normal(size=40)
    rules = [Guessing(guessed_in=n, guessed_out=n) for n in (1, 5)]
    seen = []

    def worth(found):
        seen.append(found.canaries)
        return found.correct / found.guesses

    _, rest, left = split_rule(scores, coins, rules, worth)
    assert seen == [20, 20]
    assert rest.tolist() == scores[20:].tolist()
    assert left.tolist() == coins[20:].tolist()


def test_figures_say_what_could_have_been_shown():
    rng = np.random.default_rng(1)
    coins = rng.random(1000) < 0.5
    found = one_run(gaussian_scores(rng, coins, 0.1), coins).figures()
    assert found["epsilon_lower"] == found["ceiling"] == pytest.approx(3.4928, abs=1e-3)
    assert found["epsilon_lower"] >= 0.6 * found["ceiling"]
    assert (found["power"]["guesses"], found["power"]["least_correct"]) == (100, 59)
    assert found["verdict"].endswith("nothing is claimed")
    assert found["p_value"] is None
    assert not found["alarm"]


def test_few_guesses_have_no_power_and_say_so():
    coins = np.arange(20) % 2 == 0
    rules = (Guessing(guessed_in=2, guessed_out=2),)
    found = one_run(coins * 1.0, coins, rules=rules).figures()
    assert found["ceiling"] == 0
    assert found["verdict"] == "no power: all guesses right would show nothing"
    claim = {"claimed_epsilon": 8.0, "curve": ((8.0, 1e-5),)}
    found = one_run(coins * 1.0, coins, rules=(Guessing(guessed_in=10, guessed_out=10),), **claim)
    assert "no power to contradict the claim" in found.figures()["verdict"]


def test_each_look_gets_its_part_of_the_level():
    rng = np.random.default_rng(2)
    coins = rng.random(1000) < 0.5
    scores = gaussian_scores(rng, coins, 1.0)
    alone = one_run(scores, coins).figures()
    among = one_run(scores, coins, family=12, rules=(RULE, Guessing(guessed_in=10, guessed_out=10)))
    assert alone["level_each"] == 0.05
    assert among.figures()["level_each"] == pytest.approx(0.05 / 24)
    assert among.figures()["epsilon_lower"] < alone["epsilon_lower"]


def test_the_p_value_is_corrected_for_every_look():
    coins = np.arange(200) % 3 == 0
    claim = {"claimed_epsilon": 0.5, "curve": ((0.5, 1e-5),)}
    rule = (Guessing(guessed_in=20, guessed_out=20),)
    alone = one_run(coins * 1.0, coins, rules=rule, **claim).figures()
    among = one_run(coins * 1.0, coins, rules=rule, family=10, **claim).figures()
    assert among["p_value"] == pytest.approx(min(1.0, 10 * alone["p_value"]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rules": ()}, "say beforehand"),
        ({"adversary": "nobody"}, "coordinator, peer, user"),
        ({"unit": "row"}, "record, user"),
        ({"delta": 0.0}, "delta"),
        ({"level": 1.0}, "level"),
        ({"family": 0}, "family"),
        ({"payment": "none"}, "payment"),
        ({"canaries": (0,) * 200}, "every canary once"),
        ({"claimed_epsilon": math.inf}, "claimed_epsilon"),
    ],
)
def test_impossible_audits_are_refused(changes, words):
    coins = np.arange(200) % 2 == 0
    with pytest.raises(AuditError, match=words):
        one_run(coins * 1.0, coins, **changes)


def test_power_of_the_least_that_shows_anything():
    counts = Counts(canaries=100, guesses=100, correct=0)
    least = least_correct(counts, lambda found: rigorous_bound(found, DELTA) > 0)
    assert rigorous_bound(counts.with_correct(least), DELTA) > 0
    assert rigorous_bound(counts.with_correct(least - 1), DELTA) == 0
    accuracy = accuracy_for(least, 100, 0.8)
    hits = np.random.default_rng(3).binomial(100, accuracy, size=20_000)
    assert (hits >= least).mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("points", [(), ((1.0, 2.0),), ((-1.0, 0.1),), ((math.inf, 0.1),)])
def test_points_that_are_no_curve_are_refused(points):
    with pytest.raises(AuditError, match="expected"):
        PointsCurve(points=points)


def test_intervals_of_a_share():
    assert wilson(5, 10).low == pytest.approx(0.2366, abs=1e-4)
    assert wilson(5, 10).high == pytest.approx(0.7634, abs=1e-4)
    assert clopper_pearson(5, 10).low == pytest.approx(0.1871, abs=1e-4)
    assert clopper_pearson(5, 10).high == pytest.approx(0.8129, abs=1e-4)
    assert clopper_pearson(10, 10).high == 1.0
    for bad in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(AuditError, match="whole number"):
            wilson(*bad)


# A mechanism against what it was accounted as.


def test_noise_of_the_accounted_size_passes_whatever_it_hides():
    rng = np.random.default_rng(4)
    low = sum(noise_p_value(rng.normal(0, 2.0, size=300), 2.0) < 0.05 for _ in range(400))
    assert 5 <= low <= 40
    signal = 10 * rng.normal(size=300)
    hidden = [noise_p_value(signal + rng.normal(0, 2.0, size=300), 2.0) for _ in range(50)]
    assert min(hidden) > 0.5


def test_less_noise_and_a_stream_used_twice_are_caught():
    rng = np.random.default_rng(5)
    assert noise_p_value(rng.normal(0, 0.2, size=50), 2.0) < 1e-9
    noise, signals = rng.normal(0, 2.0, size=1000), rng.normal(0, 0.1, size=(2, 1000))
    reused = (noise + signals[0]) - (noise + signals[1])
    measure = Noise(
        what="rounds 1 and 2",
        squares=float(reused @ reused),
        coordinates=1000,
        deviation=2.0 * math.sqrt(2),
    )
    assert measure.figures()["alarm"]
    fresh = rng.normal(0, 2.0, size=1000) - rng.normal(0, 2.0, size=1000)
    measure = Noise(
        what="rounds 1 and 2",
        squares=float(fresh @ fresh),
        coordinates=1000,
        deviation=2.0 * math.sqrt(2),
    )
    assert not measure.figures()["alarm"]


def test_a_neighbour_that_moves_the_sum_too_far_is_caught():
    right = Neighbours(what="records", moved=(0.3, 1.0), sensitivity=1.0).figures()
    assert (right["alarm"], right["ratio"]) == (False, 1.0)
    wrong = Neighbours(what="records", moved=(0.3, 1.7), sensitivity=1.0).figures()
    assert wrong["alarm"]
    assert "1.700" in wrong["verdict"]


def test_two_worlds_hold_for_a_gaussian_and_see_a_broken_one():
    rng = np.random.default_rng(6)
    epsilon = 1.0  # of N(0, σ²) against N(1, σ²) at δ = 1e-5, σ = 3.73
    above = 0
    for _ in range(100):
        ins, outs = rng.normal(1, 3.7302, size=200), rng.normal(0, 3.7302, size=200)
        above += two_worlds_bound(ins, outs, threshold=0.5, delta=DELTA) > epsilon
    assert above <= 5
    broken = TwoWorlds(
        what="huge norm",
        with_canary=tuple(rng.normal(100, 3.7, size=100)),
        without=tuple(rng.normal(0, 3.7, size=100)),
        threshold=50.0,
        delta=DELTA,
        claimed_epsilon=1.0,
    ).figures()
    assert broken["alarm"]
    assert broken["epsilon_lower"] == broken["ceiling"] > 3

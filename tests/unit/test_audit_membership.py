"""Membership inference: attacks, the figures, and what stands in a claim's way."""

import math

import numpy as np
import pytest
from scipy.special import ndtr

from sordino.core.errors import AuditError
from sordino.privacy.audit import (
    Membership,
    auc,
    confounds,
    count_doubles,
    fit_offline_scale,
    loss_score,
    min_k_plus_score,
    min_k_score,
    recall_score,
    reference_score,
    rmia_score,
    roc,
    true_positives,
    zlib_score,
)

TEXTS = [np.array([-1.0, -2.0, -3.0, -4.0, -5.0]), np.array([-0.5, -0.5])]


def test_attacks_give_what_their_formulas_do():
    assert loss_score(TEXTS).tolist() == [-3.0, -0.5]
    assert reference_score(TEXTS, [row - 1 for row in TEXTS]).tolist() == [1.0, 1.0]
    assert min_k_score(TEXTS, 0.4).tolist() == [-4.5, -0.5]
    assert min_k_score(TEXTS, 0.1).tolist() == [-5.0, -0.5]
    means, deviations = [np.full(5, -2.0), np.full(2, -1.0)], [np.full(5, 2.0), np.full(2, 0.5)]
    assert min_k_plus_score(TEXTS, means, deviations, 0.4).tolist() == [-1.25, 1.0]
    assert recall_score(TEXTS, [row * 1.5 for row in TEXTS]).tolist() == [1.5, 1.5]
    sizes = zlib_score(TEXTS, ["a" * 400, "a cold wind over the marsh at dawn"])
    assert sizes[0] < sizes[1]


def test_rmia_is_the_share_of_the_population_that_a_text_stands_out_from():
    population = [np.array([math.log(p)]) for p in (0.1, 0.2, 0.3, 0.4)]
    flat = [np.array([math.log(0.25)])] * 4
    text, same = [np.array([math.log(0.3)])], [[np.array([math.log(0.25)])]]
    score = rmia_score(text, same, population, [flat], offline_scale=1.0)
    assert score.tolist() == [0.5]
    half = rmia_score(text, same, population, [flat], offline_scale=1.0, gamma=2.0)
    assert half.tolist() == [0.25]
    # With a = 0 the reference says nothing: p(x) = (p_out + 1)/2.
    blind = rmia_score(text, same, population, [flat], offline_scale=0.0)
    assert blind.tolist() == [0.25]


def test_rmia_s_scale_is_found_on_a_model_of_one_s_own():
    out = np.linspace(0.05, 0.6, 30)
    assert fit_offline_scale(0.7 * out + 0.3, out) == pytest.approx(0.7)
    assert fit_offline_scale(out, out) == 1.0


@pytest.mark.parametrize("attack", [loss_score, min_k_score])
def test_texts_that_can_t_be_scored_are_refused(attack):
    for texts in ([], [np.array([])], [np.array([math.nan])]):
        with pytest.raises(AuditError, match="expected"):
            attack(texts)


def test_auc_counts_pairs():
    rng = np.random.default_rng(0)
    ins, outs = rng.integers(0, 6, size=40) + 1.0, rng.integers(0, 6, size=30) + 0.0
    pairs = [(i > o) + (i == o) / 2 for i in ins for o in outs]
    assert auc(ins, outs).estimate == pytest.approx(np.mean(pairs))
    false, true = roc(ins, outs)
    assert np.trapezoid(true, false) == pytest.approx(np.mean(pairs))


def _covered(shift, part):
    """How many of 200 intervals, shrunk to a part of their width, hold the truth."""
    rng, truth, covered = np.random.default_rng(1), float(ndtr(shift / math.sqrt(2))), 0
    for _ in range(200):
        found = auc(rng.normal(shift, 1, size=40), rng.normal(0, 1, size=60))
        low, high = (
            found.estimate + part * (end - found.estimate) for end in (found.low, found.high)
        )
        covered += low <= truth <= high
    return covered


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_auc_s_interval_covers_the_truth(shift):
    assert _covered(shift, 1.0) >= 185


def test_half_the_interval_is_seen_not_to_cover():
    assert _covered(0.0, 0.5) < 160


def test_wholly_apart_still_has_an_interval():
    found = auc(np.arange(10.0) + 100, np.arange(10.0))
    assert (found.estimate, found.high) == (1.0, 1.0)
    assert 0.5 < found.low < 1.0


def test_true_positives_say_the_realised_rate():
    rng = np.random.default_rng(2)
    found = true_positives(rng.normal(2, 1, size=2000), rng.normal(size=2000), 0.01)
    assert found.realised.estimate <= 0.01
    assert found.realised.low < 0.01 < found.realised.high
    assert found.true_positives.estimate == pytest.approx(float(ndtr(2 - 2.326)), abs=0.06)
    assert found.true_positives.low < found.true_positives.estimate < found.true_positives.high
    ties = true_positives(np.ones(2000), np.ones(2000), 0.01)
    assert (ties.realised.estimate, ties.true_positives.estimate) == (0.0, 0.0)


@pytest.mark.parametrize(("others", "at", "needed"), [(999, 0.01, 1000), (9000, 0.001, 10000)])
def test_too_small_a_sample_is_refused(others, at, needed):
    found = true_positives(np.ones(50), np.zeros(others), at)
    assert (found.realised, found.true_positives) == (None, None)
    assert str(needed) in found.refused
    assert true_positives(np.ones(50), np.zeros(needed), at).refused == ""


def words(rng, count):
    return " ".join(rng.choice(["tide", "rope", "lamp", "salt", "mast", "fog"], size=count))


def test_what_else_could_tell_members_apart_is_found():
    rng = np.random.default_rng(3)
    ins, outs = ([words(rng, 12) for _ in range(60)] for _ in range(2))
    assert confounds(ins, outs).found == ()
    longer = [f"{text} {text}" for text in ins]
    assert "length" in confounds(longer, outs).found[0]
    dated = confounds(ins, outs, times=(range(60), range(100, 160)))
    assert "time" in dated.found[0]
    doubled = confounds([*ins[:-1], outs[0].upper()], outs)
    assert doubled.found == ("1 of 60 members have a double among the others",)


def test_a_long_part_of_another_text_is_a_double():
    rng = np.random.default_rng(4)
    text = words(rng, 30)
    assert count_doubles([f"Prologue. {text}"], [text]) == 1
    assert count_doubles([words(rng, 30)], [text]) == 0


def membership(members, others, **changes):
    values = {
        "attack": "loss",
        "adversary": "user",
        "members": tuple(members),
        "others": tuple(others),
        "members_length": tuple(50 + i % 7 for i in range(len(members))),
        "others_length": tuple(50 + i % 7 for i in range(len(others))),
        "doubles": 0,
    }
    return Membership(**{**values, **changes})


def test_a_model_that_remembers_is_told_and_one_that_doesn_t_isn_t():
    rng = np.random.default_rng(5)
    high = membership(rng.normal(3, 1, size=100), rng.normal(size=100)).figures()
    assert high["auc"]["estimate"] >= 0.9
    assert high["verdict"] == "members are told from others"
    told = 0
    for _ in range(200):
        found = membership(rng.normal(size=50), rng.normal(size=50)).figures()["auc"]
        told += not found["low"] <= 0.5 <= found["high"]
    assert told <= 18


def test_a_confound_stands_in_the_verdict_whatever_the_figure():
    rng = np.random.default_rng(6)
    scores = rng.normal(3, 1, size=100), rng.normal(size=100)
    for changes in (
        {"members_length": tuple(range(200, 300))},
        {"doubles": 3},
        {"members_time": tuple(range(100)), "others_time": tuple(range(200, 300))},
    ):
        found = membership(*scores, **changes).figures()
        assert found["verdict"].startswith("no claim")
        assert found["confounds"]["found"]


def test_impossible_memberships_are_refused():
    with pytest.raises(AuditError, match="members and members_length"):
        membership([1.0, 2.0], [1.0, 2.0], members_length=(1,))
    with pytest.raises(AuditError, match="doubles"):
        membership([1.0, 2.0], [1.0, 2.0], doubles=3)
    with pytest.raises(AuditError, match="others_time"):
        membership([1.0, 2.0], [1.0, 2.0], members_time=(1.0, 2.0))

"""Exposure, extraction and planted identities: known answers, controls and nulls."""

import math

import numpy as np
import pytest

from sordino.core.errors import AuditError
from sordino.privacy.audit import (
    Exposure,
    Extraction,
    Identities,
    Suffix,
    Value,
    discoverable,
    exposure,
    exposure_p_value,
    holds,
    matching_tokens,
    queries_needed,
    rank_of,
    sampled_exposure,
)


def test_exposure_is_log2_of_the_space_less_log2_of_the_rank():
    assert exposure(1, 10_000) == pytest.approx(math.log2(10_000))
    assert exposure(10_000, 10_000) == 0.0
    assert exposure(100, 10_000) == pytest.approx(6.6439, abs=1e-3)


def test_a_rank_counts_what_scores_higher_and_half_of_what_scores_the_same():
    assert rank_of(3.0, [1.0, 2.0, 4.0]) == 2.0
    assert rank_of(3.0, [3.0, 3.0, 4.0]) == 3.0
    assert rank_of(0.0, np.zeros(9)) == 5.5  # a model that tells nothing apart: in the middle


def test_the_null_is_as_published():
    """P(exposure >= x) is about 2^-x, its mean about 1.443 bits."""
    space = 4096
    bits = np.array([exposure(rank, space) for rank in range(1, space + 1)])
    assert bits.mean() == pytest.approx(1.443, abs=5e-3)
    for x in (1, 3, 6):
        assert (bits >= x).mean() == pytest.approx(2.0**-x, rel=0.02)


def test_the_null_is_seldom_called_learnt_and_the_plain_mean_would_be():
    rng = np.random.default_rng(0)
    found = naive = 0
    for _ in range(200):
        bits = [exposure(float(r), 1000) for r in rng.integers(1, 1001, size=15)]
        found += exposure_p_value(bits) <= 0.05
        naive += np.mean(bits) > 1.443
    assert found <= 18
    assert naive > 18


def test_a_sampled_rank_bounds_the_exact_one_and_says_its_ceiling():
    rng = np.random.default_rng(1)
    space = rng.normal(size=50_000)
    truth = exposure(rank_of(2.5, space), space.size + 1)
    covered = 0
    for _ in range(100):
        found = sampled_exposure(2.5, rng.choice(space, size=2000, replace=False))
        covered += found.low <= truth <= found.high
    assert covered >= 92
    top = sampled_exposure(100.0, rng.normal(size=1000))
    assert top.estimate == pytest.approx(math.log2(1001))
    assert math.isinf(top.high)
    assert top.low < math.log2(1001)


def ranked(ranks, repetitions, **changes):
    values = {"adversary": "user", "space": 1000, "exact": True}
    return Exposure(ranks=tuple(ranks), repetitions=tuple(repetitions), **{**values, **changes})


def test_repetitions_are_held_against_the_null_one_by_one():
    rng = np.random.default_rng(2)
    null = [float(rank) for rank in rng.integers(1, 1001, size=20)]
    found = ranked(null + [1.0] * 10, [0] * 20 + [16] * 10).figures()
    assert found["verdict"] == "learnt: secrets repeated 16 times are above the null"
    assert [row["above_null"] for row in found["by_repetitions"]] == [False, True]
    assert found["by_repetitions"][1]["mean"] == pytest.approx(found["ceiling"])
    assert ranked(null, [4] * 20).figures()["verdict"] == "no exposure above the null"


def test_exposed_controls_take_the_claim_away():
    found = ranked([1.0] * 20, [0] * 10 + [4] * 10).figures()
    assert found["verdict"].startswith("no claim")


@pytest.mark.parametrize("rank", [0.0, 1001.0, math.nan])
def test_impossible_ranks_are_refused(rank):
    with pytest.raises(AuditError, match="rank"):
        ranked([rank], [1])


# Extraction.


@pytest.mark.parametrize(
    ("chance", "p", "needed"), [(0.5, 0.5, 1), (0.01, 0.5, 69), (0.1, 0.9, 22), (1.0, 0.9, 1)]
)
def test_queries_needed(chance, p, needed):
    assert queries_needed(math.log(chance), p) == needed
    assert discoverable(math.log(chance), needed, p)
    assert needed == 1 or not discoverable(math.log(chance), needed - 1, p)
    assert 1 - (1 - chance) ** needed >= p - 1e-12


def test_queries_needed_far_below_what_a_float_can_hold():
    assert queries_needed(-50.0) == pytest.approx(math.log(2) * math.exp(50), rel=1e-6)
    assert math.isinf(queries_needed(-2000.0))
    with pytest.raises(AuditError, match="log_probability"):
        queries_needed(0.1)


def test_matching_tokens():
    assert matching_tokens([1, 2, 3], [1, 2, 4]) == 2
    assert matching_tokens([1, 2, 3], [1, 2, 3, 4]) == 3
    assert matching_tokens([1, 2, 3], []) == 0


def suffixes(planted, greedy, count=30, log_probability=-30.0):
    one = Suffix(planted=planted, tokens=10, greedy=greedy, log_probability=log_probability)
    return (one,) * count


def test_extraction_is_held_against_controls():
    learnt = Extraction(
        adversary="user", scheme="greedy", suffixes=suffixes(True, 10) + suffixes(False, 0)
    )
    assert learnt.figures()["verdict"] == "planted texts come out, and controls don't as often"
    assert learnt.figures()["planted"]["greedy"]["estimate"] == 1.0
    known = Extraction(
        adversary="user", scheme="greedy", suffixes=suffixes(True, 10) + suffixes(False, 10)
    )
    assert "don't come out more often" in known.figures()["verdict"]
    alone = Extraction(adversary="user", scheme="greedy", suffixes=suffixes(True, 10))
    assert alone.figures()["verdict"].startswith("no claim")


def test_what_sampling_would_find_counts_as_well():
    one_in_ten = suffixes(True, 0, log_probability=math.log(0.1))
    found = Extraction(adversary="user", scheme="t = 1", suffixes=one_in_ten + suffixes(False, 0))
    rates = {
        row["queries"]: row["rate"]["estimate"]
        for row in found.figures()["planted"]["discoverable"]
    }
    assert rates == {1: 0.0, 10: 1.0, 100: 1.0, 1000: 1.0}
    assert found.figures()["verdict"].startswith("planted texts come out")


# Planted people.


def people(rng, planted, learnt, count=40):
    return tuple(
        Value(
            attribute="telephone",
            planted=planted,
            rank=1.0 if learnt else float(rng.integers(1, 21)),
            candidates=20,
            reconstructed=learnt,
            extracted=False,
        )
        for _ in range(count)
    )


def test_inference_is_held_against_chance_and_controls():
    rng = np.random.default_rng(3)
    learnt = Identities(
        adversary="user", values=people(rng, True, True) + people(rng, False, False)
    ).figures()
    assert learnt["verdict"] == "inferred above chance: telephone"
    assert learnt["attributes"][0]["planted"]["by_chance"] == pytest.approx(0.05)
    null = 0
    for _ in range(100):
        null += Identities(adversary="user", values=people(rng, True, False)).figures()[
            "attributes"
        ][0]["above_chance"]
    assert null <= 9
    guessed = Identities(
        adversary="user", values=people(rng, True, True) + people(rng, False, True)
    ).figures()
    assert guessed["verdict"].startswith("no claim")


def test_a_value_is_found_whatever_its_spacing():
    assert holds("+49 30 1234-567", ["no", "call (49) 30 123 4567."])
    assert not holds("+49 30 1234-567", ["49 30 1234", "567"])
    with pytest.raises(AuditError, match="a letter or a digit"):
        holds("--", ["--"])

"""Bounds move the way they must, whatever the counts; metrics stay within their ranges."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.privacy.audit import (
    Counts,
    GaussianCurve,
    auc,
    clopper_pearson,
    exposure,
    f_dp_bound,
    f_dp_p_value,
    gaussian_estimate,
    leak,
    queries_needed,
    rank_of,
    readings,
    steinke_bound,
    steinke_p_value,
    true_positives,
    wilson,
)
from sordino.privacy.audit.strings import common_subsequence, words

some = settings(max_examples=40, deadline=None)
deltas = st.sampled_from([0.0, 1e-6, 1e-5, 1e-3, 0.01])


@st.composite
def counts(draw, most=120):
    guesses = draw(st.integers(1, most))
    canaries = draw(st.integers(guesses, 4 * most))
    correct = draw(st.integers(0, guesses))
    return Counts(canaries=canaries, guesses=guesses, correct=correct)


@some
@given(counts(), deltas, st.floats(0, 6), st.floats(0, 6))
def test_a_larger_epsilon_is_harder_to_reject(found, delta, one, other):
    """Where it decides about a bound: below a level of a third. So one crossing is the only one."""
    low, high = sorted((one, other))
    p_low, p_high = (steinke_p_value(found, epsilon, delta) for epsilon in (low, high))
    assert p_low <= p_high + 1e-12 or p_high > 1 / 3


@some
@given(counts(), deltas)
def test_more_right_guesses_show_more(found, delta):
    more = found.with_correct(min(found.correct + 1, found.guesses))
    assert steinke_bound(more, delta) >= steinke_bound(found, delta) - 1e-6
    assert f_dp_bound(more, delta) >= f_dp_bound(found, delta) - 1e-6
    if delta:
        assert gaussian_estimate(more, delta) >= gaussian_estimate(found, delta) - 1e-6
    curve = GaussianCurve(mu=1.0)
    assert f_dp_p_value(more, curve) <= f_dp_p_value(found, curve) + 1e-9


@some
@given(counts(), deltas, deltas, st.sampled_from([0.001, 0.01, 0.05]))
def test_a_larger_delta_and_a_smaller_level_show_less(found, one, other, level):
    small, large = sorted((one, other))
    for bound in (steinke_bound, f_dp_bound):
        assert bound(found, large) <= bound(found, small) + 1e-6
        assert bound(found, small, level) <= bound(found, small, 0.05) + 1e-6


@some
@given(counts(), deltas)
def test_no_bound_is_above_that_of_all_right(found, delta):
    best = found.with_correct(found.guesses)
    ceiling = math.log(0.05 ** (1 / found.guesses) / -math.expm1(math.log(0.05) / found.guesses))
    assert steinke_bound(found, delta) <= steinke_bound(best, delta) + 1e-6
    assert steinke_bound(best, 0.0) <= max(0.0, ceiling) + 1e-6
    assert f_dp_bound(best, 0.0) <= max(0.0, ceiling) + 1e-6


@some
@given(counts(), st.floats(0.05, 4), st.floats(0.05, 4))
def test_a_curve_that_promises_more_is_rejected_sooner(found, one, other):
    strict, loose = sorted((one, other))
    strictly = f_dp_p_value(found, GaussianCurve(mu=strict))
    assert strictly <= f_dp_p_value(found, GaussianCurve(mu=loose)) + 1e-9


columns = st.lists(st.integers(-5, 5), min_size=2, max_size=30).map(lambda v: [float(x) for x in v])


@some
@given(columns, columns)
def test_auc_turns_with_its_samples_and_keeps_within_its_interval(ins, outs):
    found, turned = auc(ins, outs), auc(outs, ins)
    assert math.isclose(found.estimate + turned.estimate, 1.0)
    assert 0 <= found.low <= found.estimate + 1e-12
    assert found.estimate - 1e-12 <= found.high <= 1
    assert math.isclose(found.low, 1 - turned.high, abs_tol=1e-9)
    stretched = auc([3 * v + 1 for v in ins], [3 * v + 1 for v in outs])
    assert math.isclose(found.estimate, stretched.estimate)


@some
@given(columns, st.lists(st.integers(-5, 5), min_size=60, max_size=90))
def test_the_realised_rate_is_never_above_the_wanted_one(ins, outs):
    found = true_positives(ins, [float(v) for v in outs], 0.2)
    assert found.realised is not None
    assert found.realised.estimate <= 0.2


@some
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_intervals_hold_their_estimate_and_the_exact_one_is_wider(share):
    hits, trials = share
    exact, usual = clopper_pearson(hits, trials), wilson(hits, trials)
    for found in (exact, usual):
        assert 0 <= found.low <= found.estimate <= found.high <= 1
    assert exact.high - exact.low >= usual.high - usual.low - 0.02


@some
@given(st.floats(-5, 5), st.lists(st.floats(-5, 5), min_size=1, max_size=40))
def test_exposure_falls_with_the_rank_and_stays_in_range(secret, candidates):
    space = len(candidates) + 1
    rank = rank_of(secret, candidates)
    assert 0 <= exposure(rank, space) <= math.log2(space)
    assert exposure(rank_of(secret + 1, candidates), space) >= exposure(rank, space)


@some
@given(st.floats(-40, -1e-6), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_surer_extraction_takes_more_queries(log_probability, one, other):
    low, high = sorted((one, other))
    assert queries_needed(log_probability, low) <= queries_needed(log_probability, high)


texts = st.lists(
    st.sampled_from(["tide", "rope", "lamp", "Salt", "mast", "fog,", "the", "QX7"]),
    min_size=3,
    max_size=25,
).map(" ".join)


@some
@given(texts, texts)
def test_a_leak_is_in_range_and_whole_for_the_text_itself(hidden, response):
    found = leak(f"{hidden} again", response)
    assert 0 <= found.sentences <= 1
    assert 0 <= found.rouge_l <= 1
    whole = leak(f"{hidden} again", f"{response} {hidden} again {response}")
    assert (whole.sentences, whole.rouge_l) == (1, 1)
    assert whole.fuzzy > 99.9


@some
@given(texts, texts)
def test_a_common_subsequence_is_the_same_both_ways(first, second):
    one, other = words(first), words(second)
    assert common_subsequence(one, other) == common_subsequence(other, one)
    assert common_subsequence(one, one) == len(one)


@some
@given(st.text(max_size=200))
def test_readings_never_fail_and_begin_with_the_response(response):
    assert readings(response)[:1] == ((response,) if response else ())

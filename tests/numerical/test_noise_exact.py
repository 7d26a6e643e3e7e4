"""The noise is the rounded Gaussian: by theory, draw by draw, and by statistics that reject others.

Streams are fixed, so that a failure is never chance. Each statistic is shown to reject what could
be mistaken for the right noise.
"""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from scipy import stats
from support.gaussians import (
    cell_probabilities,
    fixed_stream,
    given_words,
    no_more,
    reference_magnitude,
)

from sordino.core.errors import PlanError
from sordino.privacy.noise import grid_step, release_on_grid, seeded_source
from sordino.privacy.noise.exact import exact_magnitude
from sordino.privacy.noise.rounded import RoundedGaussian
from sordino.privacy.noise.table import CELL_BITS, DEGREE, OCTAVES, table
from sordino.privacy.noise.tail import upper_tail

USUAL = 3.3e6  # steps: σ near 1.6 over 2.4 million parameters
FLOAT_ONLY = 2.0**56  # a grid finer than float64's digits


def draws(size, scale, name="draws", **settings):
    stream, further = fixed_stream(name), fixed_stream(name + " further")
    return RoundedGaussian(scale, **settings).draw(size, stream.fill, further.fill)


# --- the tail and the table are what they say ----------------------------------------------------


@pytest.mark.parametrize("x", [0, Fraction(1, 10**12), Fraction(1, 3), 1, 2.5, 6, 9.25, 38, 100])
@pytest.mark.parametrize("digits", [20, 60, 300])
def test_the_tail_is_within_its_error(x, digits):
    tail = upper_tail(Fraction(x), digits)
    with mpmath.workdps(digits + 2400):  # Q(100) is 10^-2174
        point = mpmath.mpf(Fraction(x).numerator) / Fraction(x).denominator
        above = mpmath.erfc(point / mpmath.sqrt(2)) / 2
        off = abs(mpmath.mpf(str(tail.above)) - above)
        # The bound leaves a million to one for what the derivation doesn't foresee.
        assert off <= mpmath.mpf(str(tail.error)) / 10**6
        density = mpmath.exp(-(point**2) / 2) / mpmath.sqrt(2 * mpmath.pi)
        assert abs(mpmath.mpf(str(tail.density)) / density - 1) <= 2 * mpmath.mpf(str(tail.error))


def polynomial_at(cell, x):
    value = table().coefficients[DEGREE][cell]
    for k in reversed(range(DEGREE)):
        value = value * x + table().coefficients[k][cell]
    return float(value)


def test_the_table_is_within_its_bound_in_every_cell():
    rng = np.random.default_rng(0)
    half = 2.0 ** -(CELL_BITS + 1)
    closest = 0.0
    for cell in range(1, 1 + (OCTAVES << CELL_BITS)):
        octave, inner = divmod(cell - 1, 1 << CELL_BITS)
        unit = 2.0 ** (octave - OCTAVES - 1)
        for x in (-half, half * (1 - 2**-40), half * rng.uniform(-1, 1)):
            u = unit * (1 + (inner + 0.5) / (1 << CELL_BITS) + x)
            with mpmath.workdps(40):
                exact = mpmath.sqrt(2) * mpmath.erfinv(1 - 2 * mpmath.mpf(u))
                off = float(abs(polynomial_at(cell, x) - exact))
            assert off <= table().errors[cell]
            closest = max(closest, off / table().errors[cell])
    assert table().errors[1:].max() < 2.0**-35
    assert table().errors[-32:].max() < 2.0**-49
    assert closest > 1e-3  # the bound isn't idle


# --- draw by draw, from the same bits ------------------------------------------------------------


def awkward_words(rng):
    """Random words; words far in the tail; the two ends of every octave and cell."""
    words = [rng.integers(0, 2**64, 100, dtype=np.uint64)]
    words += [rng.integers(0, 2**64, 3, dtype=np.uint64) >> np.uint64(s) for s in range(1, 40)]
    ends = np.array([1 << b for b in range(30, 64)], np.uint64)
    words += [ends, ends - np.uint64(1), np.array([2**64 - 1], np.uint64)]
    cells = (np.arange(32, 64, dtype=np.uint64) << np.uint64(58)) - np.uint64(1)
    return np.concatenate([*words, cells, cells + np.uint64(1)])


@pytest.mark.parametrize("scale", [0.3, 1.0, 41.7, USUAL, 2.0**33 / 3])
def test_every_draw_is_the_one_that_its_bits_define(scale):
    words = awkward_words(np.random.default_rng(1))
    further = [7, 11, 13]
    sampler = RoundedGaussian(scale)
    for word in words.tolist():
        more = iter(further)
        drawn = sampler.draw(
            1, given_words([word]), lambda out, more=more: out.fill(next(more))
        ).item()
        expected = reference_magnitude(word, scale, further)
        assert drawn == (-expected if word & 1 else expected)


def test_draws_next_to_a_rounding_boundary():
    """Words on both sides of the boundary between two cells, the last of which shares it."""
    checked = 0
    for k in (0, 1, 12_345, 3_300_000, 9_000_001, 14_000_000):
        with mpmath.workdps(60):
            edge = (mpmath.mpf(k) + 0.5) / mpmath.mpf(USUAL)
            digits = int(mpmath.floor(mpmath.erfc(edge / mpmath.sqrt(2)) / 2 * 2**64))
        for near in range(digits - 3, digits + 4):
            sampler = RoundedGaussian(USUAL)
            for further in ([0] * 3, [2**63] * 3, [2**64 - 1] * 3):
                more = iter(further)
                (drawn,) = sampler.draw(
                    1, given_words([2 * near]), lambda out, more=more: out.fill(next(more))
                )
                assert drawn == reference_magnitude(2 * near, USUAL, further)
                assert drawn in (k, k + 1)
                checked += 1
            assert sampler.recomputed == 3  # float64 couldn't have known
    assert checked == 6 * 7 * 3


@pytest.mark.parametrize("distrust", [2.0**20, 2.0**26, 2.0**40])
def test_recomputing_changes_nothing(distrust):
    trusting = RoundedGaussian(USUAL)
    doubting = RoundedGaussian(USUAL, distrust=distrust)
    size = 20_000 if distrust < 2.0**40 else 1500
    drawn = [
        s.draw(size, fixed_stream("same").fill, fixed_stream("same further").fill)
        for s in (trusting, doubting)
    ]
    assert (drawn[0] == drawn[1]).all()
    assert trusting.recomputed == 0
    assert doubting.recomputed > 30
    assert (doubting.recomputed == size) == (distrust == 2.0**40)


def test_a_bound_that_is_too_small_is_caught():
    """The comparison above has power: without the exact path some draws would be wrong."""
    scale = 2.0**48  # here float64 is off by a tenth of a step, and more in the tails
    blind = RoundedGaussian(scale)
    blind._limits[1:] = 0.5
    wrong = blind.draw(3000, fixed_stream("blind").fill, no_more)
    right = draws(3000, scale, "blind")
    assert blind.recomputed == 0
    assert 10 < (wrong != right).sum() < 3000
    assert np.abs(wrong - right).max() < 4096


def test_on_a_grid_finer_than_floats_every_draw_is_still_exact():
    words = fixed_stream("fine").words(400)
    extended = 0
    for word in words.tolist():
        used = []
        supply = iter([3**40, 5**27, 7**22])

        def more(used=used, supply=supply):
            used.append(next(supply))
            return used[-1]

        drawn = exact_magnitude(word, FLOAT_ONLY, more)
        assert drawn == reference_magnitude(word, FLOAT_ONLY, [3**40, 5**27, 7**22])
        extended += bool(used)
    assert 0 < extended < 100  # 63 bits are mostly, but not always, enough


def test_no_bits_are_left_in_the_buffers():
    sampler = RoundedGaussian(USUAL)
    assert sampler.draw(3, fixed_stream("left").fill, no_more).all()
    assert not any(b.any() for b in (sampler._words, sampler._cells, sampler._floats))


@pytest.mark.parametrize("distrust", [0.0, 0.99, math.nan])
def test_the_bound_can_be_widened_only(distrust):
    with pytest.raises(PlanError, match="distrust"):
        RoundedGaussian(USUAL, distrust=distrust)


def test_the_first_bits_may_all_be_zero():
    for word in (0, 1):
        drawn = exact_magnitude(word, 1e6, lambda: 1 << 60)
        assert drawn == reference_magnitude(word, 1e6, [1 << 60] * 3)
        assert 9.1e6 < drawn < 9.5e6
    assert exact_magnitude(0, 1e6, iter([0, 5, 5]).__next__) > 12e6


# --- as statistics -------------------------------------------------------------------------------


def fit_p_value(drawn, scale):
    """Chi-square against the exact probability of each cell, joined where fewer than 8 fall."""
    reach = math.ceil(4 * scale)
    inner = np.clip(drawn, -reach - 1, reach + 1) + reach + 1
    seen = np.bincount(inner, minlength=2 * reach + 3)
    due = cell_probabilities(scale, reach) * len(drawn)
    keep = due >= 8
    seen = np.append(seen[keep], seen[~keep].sum())
    due = np.append(due[keep], due[~keep].sum())
    seen, due = seen[due > 0], due[due > 0]
    return stats.chisquare(seen, due * (seen.sum() / due.sum())).pvalue


def shape_p_value(drawn, scale):
    return stats.kstest(drawn / scale, "norm").pvalue


def moment_p_values(drawn, scale):
    """Mean, variance (that of the grid's cells included), skewness and kurtosis."""
    z, n = drawn / scale, len(drawn)
    variance = 1 + 1 / (12 * scale**2)
    scores = [
        z.mean() / math.sqrt(variance / n),
        (np.square(z).mean() - variance) / math.sqrt(2 / n),
        (z**3).mean() / math.sqrt(15 / n),
        ((z**4).mean() - 3) / math.sqrt(96 / n),
    ]
    return [2 * stats.norm.sf(abs(s)) for s in scores]


def low_bit_p_value(drawn):
    """On a fine grid the last binary digit is a fair coin; a float's digits end before it."""
    return stats.binomtest(int((drawn & 1).sum()), len(drawn)).pvalue


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.7, 40.0])
def test_the_cells_have_the_gaussians_mass(scale):
    assert fit_p_value(draws(400_000, scale, f"fit {scale}"), scale) > 1e-3


def test_moments_and_shape_on_the_usual_grid():
    drawn = draws(1_000_000, USUAL, "moments")
    assert min(moment_p_values(drawn, USUAL)) > 1e-3
    assert shape_p_value(drawn, USUAL) > 1e-3
    assert low_bit_p_value(drawn) > 1e-3


@pytest.mark.parametrize("beyond", [3.0, 4.0, 4.5])
def test_tails(beyond):
    drawn = draws(2_000_000, USUAL, "tails")
    for side in (drawn, -drawn):
        count = int((side > beyond * USUAL).sum())
        assert stats.binomtest(count, len(drawn), stats.norm.sf(beyond)).pvalue > 1e-3


def test_far_tails_are_as_heavy_as_they_should_be():
    """Given that |Z| exceeds 6.5, reached by fixing a uniform's first 33 bits to zero."""
    words = fixed_stream("far").words(3000) >> np.uint64(33)
    further = fixed_stream("far further")
    drawn = RoundedGaussian(USUAL).draw(3000, given_words(words), further.fill)
    uniform = stats.norm.sf(np.abs(drawn) / USUAL) * 2.0**34
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3


def correlations(a, b):
    """Of values, of sizes, of signs and of last digits: each standard normal if independent."""
    pairs = [
        (a, b),
        (np.abs(a), np.abs(b)),
        (np.sign(a), np.sign(b)),
        (a & 1, b & 1),
        (np.abs(a), np.sign(b)),
    ]
    n = math.sqrt(len(a))
    return [abs(float(np.corrcoef(x.astype(float), y.astype(float))[0, 1])) * n for x, y in pairs]


def test_coordinates_and_calls_are_independent():
    source, n = seeded_source(4, "noise"), 100_000
    first, second = (source.rounded_gaussian(n, USUAL) for _ in range(2))
    other = seeded_source(4, "another").rounded_gaussian(n, USUAL)
    coins = source.coins(n).view(np.int64)
    for lag in (1, 2, 64, 2**14):
        assert max(correlations(first[lag:], first[:-lag])) < 4
    for a, b in ((first, second), (first, other), (first, coins), (first, second[::-1])):
        assert max(correlations(a, b)) < 4
    assert abs(np.corrcoef(np.abs(first), np.sign(first))[0, 1]) < 4 / math.sqrt(n)
    assert len(np.intersect1d(first[:1000], second[:1000])) < 5


# --- what is wrong is caught ---------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0.5, 0.98, 1.02])
def test_a_wrong_scale_is_caught(wrong):
    assert moment_p_values(draws(200_000, USUAL * wrong), USUAL)[1] < 1e-6
    assert fit_p_value(draws(200_000, 3.7 * wrong), 3.7) < 1e-6


def test_another_distribution_of_the_same_variance_is_caught():
    rng = np.random.default_rng(0)
    laplace = np.rint(rng.laplace(0, USUAL / math.sqrt(2), 50_000))
    assert shape_p_value(laplace, USUAL) < 1e-6
    discrete = draws(300_000, 0.6)  # of the same mean and nearly the same spread
    assert fit_p_value(discrete, math.sqrt(0.6**2 + 1 / 12)) < 1e-6


@pytest.mark.parametrize("rounding", [np.floor, np.ceil, np.trunc])
def test_a_biased_rounding_is_caught(rounding):
    exact = np.random.default_rng(2).normal(0, 3.7, 400_000)
    assert fit_p_value(np.rint(exact).astype(np.int64), 3.7) > 1e-3
    assert fit_p_value(rounding(exact).astype(np.int64), 3.7) < 1e-6


def test_a_repeated_stream_is_caught():
    class Repeating:
        def __init__(self):
            self.words = fixed_stream("once").words(20_000)

        def fill(self, out):
            out[:] = self.words[: len(out)]

    sampler, source = RoundedGaussian(USUAL), Repeating()
    first, second = (sampler.draw(20_000, source.fill, source.fill) for _ in range(2))
    assert max(correlations(first[:10_000], second[:10_000])) > 50
    assert min(moment_p_values(first[:10_000], USUAL)) > 1e-3  # and by nothing else
    blocks = sampler.draw(2**15, source.fill, source.fill)  # within one call, block by block
    assert max(correlations(blocks[2**14 :], blocks[: 2**14])) > 50


def test_a_float_only_sampler_is_caught():
    """Its values are porous: on a fine grid whole numbers that no float can reach are missing."""
    floats = np.rint(np.random.default_rng(3).normal(0, FLOAT_ONLY, 2000)).astype(np.int64)
    assert low_bit_p_value(floats) < 1e-6
    blind = RoundedGaussian(FLOAT_ONLY)
    blind._limits[1:] = 0.5  # our own sampler without its exact path
    assert low_bit_p_value(blind.draw(2000, fixed_stream("porous").fill, no_more)) < 1e-6
    exact = draws(2000, FLOAT_ONLY, "porous")
    assert low_bit_p_value(exact) > 1e-3
    assert low_bit_p_value(exact >> 1) > 1e-3


def test_a_float_added_to_a_float_is_caught():
    """Its digits name the sum: of two candidates only one could have given the released value."""
    total, other = np.full(500, 0.1), np.full(500, 0.1 + 2.0**-30)
    step = grid_step(1.0, 500)
    floats = total + np.random.default_rng(4).normal(0, 1, 500)
    assert (floats / step != np.rint(floats / step)).mean() > 0.99
    released = [
        release_on_grid(t, step=step, scale=1 / step, source=seeded_source(1))
        for t in (total, other)
    ]
    assert (released[0] == released[1]).all()
    assert (released[0] / step == np.rint(released[0] / step)).all()

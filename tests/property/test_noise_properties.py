"""Properties of the grid and of single draws, for whatever values Hypothesis finds."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.gaussians import given_words, reference_magnitude
from support.rounds import Still

from sordino.client.train import grid_sum
from sordino.core.errors import PlanError
from sordino.privacy.noise import (
    check_sum,
    grid_step,
    noise_scale,
    release_on_grid,
    rounded_sensitivity,
    seeded_source,
)
from sordino.privacy.noise.exact import exact_magnitude
from sordino.privacy.noise.rounded import RoundedGaussian

clip_norms = st.floats(1e-30, 1e30)
sizes = st.integers(1, 10**12)
scales = st.floats(1e-3, 2.0**56)
words = st.integers(0, 2**64 - 1)
quick = settings(max_examples=100, deadline=None)


@quick
@given(words, scales, st.lists(words, min_size=3, max_size=3))
def test_a_draw_is_what_its_bits_define(word, scale, further):
    try:
        expected = reference_magnitude(word, scale, further)
    except ValueError:  # 256 zeros, or a boundary at all of them
        return
    more = iter(further)
    assert exact_magnitude(word, scale, more.__next__) == expected
    more = iter(further)
    (drawn,) = RoundedGaussian(scale).draw(1, given_words([word]), lambda out: out.fill(next(more)))
    assert drawn == (-expected if word & 1 else expected)


@quick
@given(words, words, scales)
def test_draws_keep_the_order_of_their_uniforms(one, other, scale):
    """A larger uniform is nearer to the middle: no cell of the table is out of place."""
    low, high = sorted((one >> 1, other >> 1))
    sampler = RoundedGaussian(scale)
    far, near = sampler.draw(2, given_words([2 * low, 2 * high]), lambda out: out.fill(2**63))
    assert far >= near


@quick
@given(clip_norms, sizes)
def test_the_grid_costs_between_a_half_and_a_whole_thousandth(clip_norm, size):
    step = grid_step(clip_norm, size)
    assert math.frexp(step)[0] == 0.5  # a power of two
    lost = Fraction(step) ** 2 * size / Fraction(clip_norm) ** 2
    assert Fraction(1, 2048) ** 2 < lost <= Fraction(1, 1024) ** 2
    moved = rounded_sensitivity(clip_norm, step, size)
    assert (Fraction(moved) - Fraction(clip_norm)) ** 2 >= Fraction(step) ** 2 * size
    assert clip_norm < moved <= clip_norm * 1.001


@quick
@given(clip_norms, sizes, st.floats(1e-3, 1e6))
def test_the_scale_is_never_rounded_down(clip_norm, size, noise_multiplier):
    step = grid_step(clip_norm, size)
    moved = rounded_sensitivity(clip_norm, step, size)
    scale = noise_scale(noise_multiplier, moved, step)
    exact = Fraction(noise_multiplier) * Fraction(moved) / Fraction(step)
    assert exact <= Fraction(scale) <= exact * (1 + Fraction(1, 2**52))


def test_a_float_error_adds_to_the_sensitivity():
    step = grid_step(1.0, 10**6)
    plain = rounded_sensitivity(1.0, step, 10**6)
    assert rounded_sensitivity(1.0, step, 10**6, summation_error=0.25) >= plain + 0.25
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(PlanError, match="error"):
            rounded_sensitivity(1.0, step, 10**6, summation_error=bad)


@pytest.mark.parametrize(
    ("clip_norm", "size"),
    [(0.0, 1), (-1.0, 1), (math.nan, 1), (math.inf, 1), (1.0, 0), (1.0, 2.0), (1.0, 2**41)],
)
def test_impossible_grids(clip_norm, size):
    with pytest.raises(PlanError):
        grid_step(clip_norm, size)


def on_grid(total, step):
    """What the noise is added to."""
    return release_on_grid(total, step=step, scale=1.0, source=Still())


vectors = arrays(np.float64, 40, elements=st.floats(-1e3, 1e3))


@quick
@given(vectors, vectors, st.floats(1e-3, 1e3))
def test_neighbours_on_the_grid_are_within_the_sensitivity(total, record, clip_norm):
    length = np.linalg.norm(record)
    moved = total + record * (clip_norm / max(length, clip_norm)) * (1 - 1e-12)
    step = grid_step(clip_norm, 40)
    distance = np.linalg.norm(on_grid(moved, step) - on_grid(total, step))
    # The sum itself is a float's here: its error is what `summation_error` is for.
    error = 40 * 2.0**-52 * (1e3 + clip_norm)
    assert distance <= rounded_sensitivity(clip_norm, step, 40, summation_error=error)


def test_the_worst_neighbours_come_near_the_bound():
    """Every coordinate half a step from the next place: the bound isn't loose by much."""
    size, step = 10_000, grid_step(1.0, 10_000)
    total = np.full(size, 0.4999 * step)
    moved = total + np.full(size, 1 / math.sqrt(size))
    distance = np.linalg.norm(on_grid(moved, step) - on_grid(total, step))
    bound = rounded_sensitivity(1.0, step, size)
    assert 1 < distance <= bound
    tight = rounded_sensitivity(1.0, 0.0, size)
    assert distance > tight  # forgetting the grid would have been wrong


@quick
@given(
    arrays(np.float32, (5, 30), elements=st.floats(-1, 1, width=32)),
    arrays(np.float64, 5, elements=st.floats(0, 1)),
    st.permutations(range(5)),
)
def test_records_on_the_grid_add_up_exactly(samples, weights, order):
    """In any order and grouping; and a record moves the sum by C + γ√d/2 and its own rounding."""
    step = grid_step(1.0, 30)

    def total(rows):
        rows = list(rows)
        return grid_sum(
            torch.from_numpy(weights[rows]), torch.from_numpy(samples[rows].copy()), step
        ).numpy()

    whole = total(range(5))
    assert (whole == total(order)).all()
    assert (whole == total(order[:2]) + total(order[2:])).all()
    assert (on_grid(whole, step) == whole).all()
    for row in range(5):
        alone = total([row])
        length = float(weights[row]) * np.linalg.norm(samples[row].astype(np.float64))
        assert np.linalg.norm(alone) <= length * (1 + 2.0**-22) + step * math.sqrt(30) / 2
        rest = [r for r in range(5) if r != row]
        assert (whole - total(rest) == alone).all()


def test_large_records_add_up_exactly_where_float32_would_not():
    samples = np.random.default_rng(0).uniform(0.5, 1, (300, 7)).astype(np.float32)
    step, weights = 2.0**-22, np.full(300, 0.9)
    total = grid_sum(torch.from_numpy(weights), torch.from_numpy(samples.copy()), step).numpy()
    alone = [
        grid_sum(torch.from_numpy(weights[:1]), torch.from_numpy(samples[i : i + 1].copy()), step)
        for i in range(300)
    ]
    exact = [sum(Fraction(float(a[j])) for a in alone) for j in range(7)]
    assert [Fraction(t) for t in total.tolist()] == exact
    in_float32 = torch.stack(alone).squeeze(1).to(torch.float32).sum(0).tolist()
    assert [Fraction(t) for t in in_float32] != exact


@quick
@given(vectors)
def test_a_release_is_the_sum_on_the_grid_and_the_draw(total):
    step, scale = grid_step(1.0, 40), 5000.0
    released = release_on_grid(total, step=step, scale=scale, source=seeded_source(1, "x"))
    drawn = seeded_source(1, "x").rounded_gaussian(40, scale)
    expected = [
        (round(Fraction(t) / Fraction(step)) + k) * Fraction(step)
        for t, k in zip(total.tolist(), drawn.tolist(), strict=True)
    ]
    assert [Fraction(r) for r in released.tolist()] == expected


@quick
@given(arrays(np.float32, 8, elements=st.floats(width=32)))
def test_nothing_but_finite_sums_pass(total):
    if np.isfinite(total).all():
        assert check_sum(total).dtype == np.float32
    else:
        with pytest.raises(PlanError, match="isn't finite"):
            check_sum(total)

"""The clipping rule: factor times norm is never above the clip norm, whatever the norm."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sordino.core.errors import PlanError
from sordino.privacy.clipping import clip_factors

C = st.floats(min_value=1e-30, max_value=1e30)


@given(st.lists(st.floats(min_value=0, allow_nan=False, allow_infinity=False)), C)
def test_never_above_the_clip_norm(norms, clip_norm):
    factors = clip_factors(np.array(norms), clip_norm)
    assert factors.dtype == np.float64
    assert (factors * np.array(norms) <= clip_norm).all()
    assert ((factors >= 0) & (factors <= 1)).all()


@given(st.lists(st.floats(min_value=0, width=32, allow_nan=False, allow_infinity=False)), C)
def test_float32_stays_float32_and_below_even_exactly(norms, clip_norm):
    given_norms = np.array(norms, dtype=np.float32)
    factors = clip_factors(given_norms, clip_norm)
    assert factors.dtype == np.float32
    # The product of two float32 is exact in float64.
    assert (factors.astype(np.float64) * given_norms.astype(np.float64) <= clip_norm).all()


@given(st.floats(min_value=1e-6, max_value=1e6), st.floats(min_value=1e-3, max_value=1e3))
def test_no_more_is_taken_than_needed(norm, clip_norm):
    scaled = clip_factors([norm], clip_norm)[0] * norm
    assert scaled == pytest.approx(min(norm, clip_norm), rel=1e-14)


def test_what_is_not_a_norm_counts_nothing():
    factors = clip_factors([math.nan, math.inf, -math.inf, -1.0, 0.0, 5e-324], 1.0)
    assert factors.tolist() == [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]


def test_empty_batch():
    assert clip_factors([], 1.0).shape == (0,)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, math.inf])
def test_impossible_clip_norm(clip_norm):
    with pytest.raises(PlanError, match="clip_norm"):
        clip_factors([1.0], clip_norm)

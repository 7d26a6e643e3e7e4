"""The span check finds tokens where it can, and says so where it can't."""

import numpy as np
import pytest

from sordino.core.errors import AuditError
from sordino.privacy.audit import Inversion, numerical_rank, span_check

WIDTH, VOCABULARY, RANK = 64, 500, 8


@pytest.fixture
def vocabulary():
    return np.random.default_rng(0).normal(size=(VOCABULARY, WIDTH))


def update_of(vocabulary, tokens, noise=0.0):
    """The gradient of A: Σ (Bᵀg)xᵀ, rank r, as float32."""
    rng = np.random.default_rng(1)
    down = rng.normal(size=(RANK, len(tokens)))
    return (down @ vocabulary[tokens] + rng.normal(0, noise, (RANK, WIDTH))).astype(np.float32)


def inversion(vocabulary, tokens, *, update=None, noise=0.0):
    update = update_of(vocabulary, tokens, noise) if update is None else update
    found = span_check(update, vocabulary, noise=noise)
    absent = np.setdiff1d(np.arange(VOCABULARY), tokens)
    return Inversion(
        what="one step",
        matrix="A",
        adapter_rank=RANK,
        rows=update.shape[0],
        columns=update.shape[1],
        noise=noise,
        distinct=len(tokens),
        singular_values=tuple(found.singular_values.tolist()),
        present=tuple(found.residuals[tokens].tolist()),
        absent=tuple(found.residuals[absent].tolist()),
    ).figures()


def test_fewer_tokens_than_the_rank_are_found_one_by_one(vocabulary):
    found = inversion(vocabulary, [3, 77, 200, 410, 499])
    assert (found["rank"], found["found"], found["false"], found["auc"]) == (5, 5, 0, 1.0)
    assert found["power"]


def test_more_tokens_than_the_rank_are_not_and_it_says_so(vocabulary):
    found = inversion(vocabulary, list(range(100)))
    assert (found["rank"], found["found"]) == (RANK, 0)
    assert found["verdict"] == "no power: 100 distinct tokens, and the adapter's rank is 8"


def test_another_record_s_tokens_are_not_found(vocabulary):
    other = update_of(vocabulary, [3, 77, 200])
    found = inversion(vocabulary, [10, 20, 30], update=other)
    assert found["found"] == 0
    assert found["false"] == 3


def test_with_b_zero_there_is_nothing_to_see(vocabulary):
    found = inversion(vocabulary, [3, 77], update=np.zeros((RANK, WIDTH), dtype=np.float32))
    assert found["rank"] == 0
    assert found["verdict"].startswith("no power: the update is zero")


def test_noise_hides_the_row_space(vocabulary):
    clear = inversion(vocabulary, [3, 77, 200])
    noisy = inversion(vocabulary, [3, 77, 200], noise=50.0)
    assert (clear["found"], noisy["found"]) == (3, 0)
    assert not noisy["power"]
    low = inversion(vocabulary, [3, 77, 200], noise=0.01)
    assert (low["rank"], low["auc"]) == (3, 1.0)


def test_noise_alone_has_rank_zero():
    rng = np.random.default_rng(2)
    ranks = [
        numerical_rank(
            np.linalg.svd(rng.normal(0, 0.3, (8, 64)), compute_uv=False), (8, 64), noise=0.3
        )
        for _ in range(200)
    ]
    assert max(ranks) == 0


def test_where_a_is_frozen_the_projections_are_exposed(vocabulary):
    """B's update is Σ g(Ax)ᵀ: tokens are found by Ax, in r dimensions."""
    rng = np.random.default_rng(3)
    a = rng.normal(size=(RANK, WIDTH))
    tokens = [5, 60, 300]
    update = rng.normal(size=(32, 3)) @ (vocabulary[tokens] @ a.T)
    found = span_check(update.astype(np.float32), vocabulary @ a.T)
    assert found.rank == 3
    assert found.residuals[tokens].max() < 1e-4
    assert np.delete(found.residuals, tokens).min() > 1e-3


def test_shapes_that_don_t_fit_are_refused(vocabulary):
    with pytest.raises(AuditError, match=r"\(\., d\) each"):
        span_check(np.ones((8, 3)), vocabulary)
    with pytest.raises(AuditError, match="finite"):
        span_check(np.full((8, WIDTH), np.nan), vocabulary)

"""Poisson sampling and the noise, by statistics that also reject what is mistaken for them.

Each test statistic is checked both ways: the right mechanism passes, the wrong one fails. Streams
are seeded, so that a failure is never chance.
"""

import copy
import math
import os
import pickle

import numpy as np
import pytest
from scipy import stats

from sordino.core.errors import PlanError
from sordino.privacy.noise import SEEDED_LABEL, SYSTEM_LABEL, seeded_source, system_source
from sordino.privacy.sampling import poisson_sample

POPULATION, RATE, TRIALS = 50, 0.1, 4000


def shuffled_fixed_size(population, rate, rng):
    return np.sort(rng.permutation(population)[: round(population * rate)])


def batches(draw):
    return [draw() for _ in range(TRIALS)]


def size_p_value(drawn):
    """Are the batch sizes Binomial(n, q)? By their variance, which a fixed size has none of."""
    sizes = np.array([len(batch) for batch in drawn])
    expected = POPULATION * RATE * (1 - RATE)
    statistic = TRIALS * sizes.var() / expected
    return 2 * min(stats.chi2.sf(statistic, TRIALS), stats.chi2.cdf(statistic, TRIALS))


def pair_p_value(drawn):
    """Do two records join independently? Counts both of the pair 0, 1 against q²."""
    both = sum(1 for batch in drawn if {0, 1} <= set(batch.tolist()))
    return stats.binomtest(both, TRIALS, RATE**2).pvalue


def inclusion_p_value(drawn):
    counts = np.bincount(np.concatenate(drawn), minlength=POPULATION)
    expected = TRIALS * RATE
    statistic = ((counts - expected) ** 2 / (expected * (1 - RATE))).sum()
    return stats.chi2.sf(statistic, POPULATION)


def test_poisson_passes_and_fixed_size_is_rejected():
    source = seeded_source(1, "sampling")
    good = batches(lambda: poisson_sample(POPULATION, RATE, source.uniform))
    assert min(size_p_value(good), pair_p_value(good), inclusion_p_value(good)) > 1e-3
    rng = np.random.default_rng(1)
    bad = batches(lambda: shuffled_fixed_size(POPULATION, RATE, rng))
    assert size_p_value(bad) < 1e-9


def test_wrong_rate_and_coupled_coins_are_rejected():
    source = seeded_source(2, "sampling")
    double = batches(lambda: poisson_sample(POPULATION, 2 * RATE, source.uniform))
    assert inclusion_p_value(double) < 1e-9

    def coupled():  # one coin for all: right rate for each record, no independence
        return poisson_sample(POPULATION, RATE, lambda n: np.full(n, source.uniform(1)[0]))

    assert pair_p_value(batches(coupled)) < 1e-9


def test_edges_of_sampling():
    source = seeded_source(0)
    assert poisson_sample(0, 0.5, source.uniform).tolist() == []
    assert poisson_sample(5, 1.0, source.uniform).tolist() == [0, 1, 2, 3, 4]
    assert poisson_sample(3, 0.5, lambda n: np.array([0.5, 0.49, 0.0])).tolist() == [1, 2]
    for population in (-1, 1.0, True, "3"):
        with pytest.raises(PlanError, match="population"):
            poisson_sample(population, 0.5, source.uniform)
    for rate in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(PlanError, match="sampling_rate"):
            poisson_sample(3, rate, source.uniform)


@pytest.mark.parametrize("broken", [[0.1], [0.1, 0.2, 1.0], [0.1, 0.2, math.nan], [-0.1, 0.2, 0.3]])
def test_a_broken_source_is_noticed(broken):
    with pytest.raises(PlanError, match="noise source"):
        poisson_sample(3, 0.5, lambda n: np.array(broken))


def gaussian_p_value(draws, std):
    return stats.kstest(draws, "norm", args=(0, std)).pvalue


def spread_p_value(draws, std):
    statistic = float((draws**2).sum()) / std**2
    n = len(draws)
    return 2 * min(stats.chi2.sf(statistic, n), stats.chi2.cdf(statistic, n))


def test_noise_passes_and_a_wrong_scale_is_rejected():
    std, n = 2.5, 20_000
    source = seeded_source(3, "noise")
    good = source.gaussian(n, std)
    assert min(gaussian_p_value(good, std), spread_p_value(good, std)) > 1e-3
    for wrong in (0.5, 0.95, 1.05):
        assert spread_p_value(source.gaussian(n, std * wrong), std) < 1e-6
    laplace = np.random.default_rng(0).laplace(0, std / math.sqrt(2), n)  # the right variance
    assert gaussian_p_value(laplace, std) < 1e-6


def test_draws_are_independent_of_each_other_and_of_the_coins():
    source = seeded_source(4, "noise")
    n = 20_000
    first, second, coins = source.gaussian(n, 1.0), source.gaussian(n, 1.0), source.uniform(n)
    for a, b in ((first, second), (first[1:], first[:-1]), (first, coins)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(n)


def test_the_coins_never_shift_the_noise():
    one, other = seeded_source(5, "run", "client"), seeded_source(5, "run", "client")
    one.uniform(1000)
    assert (one.gaussian(10, 1.0) == other.gaussian(10, 1.0)).all()


def test_seeds_and_contexts_name_different_streams():
    draws = [
        seeded_source(seed, *context).gaussian(4, 1.0).tolist()
        for seed, context in ((0, ()), (1, ()), (0, ("a", "b")), (0, ("ab",)), (0, ("b", "a")))
    ]
    assert len({tuple(d) for d in draws}) == len(draws)
    for seed in (-1, 1.5, True):
        with pytest.raises(PlanError, match="seed"):
            seeded_source(seed)


def test_labels_say_what_the_noise_is():
    assert (system_source().label, system_source().private) == (SYSTEM_LABEL, True)
    assert (seeded_source(0).label, seeded_source(0).private) == (SEEDED_LABEL, False)
    assert (SYSTEM_LABEL, SEEDED_LABEL) == ("floating point, not hardened", "seeded: not private")


def test_system_sources_never_repeat():
    a, b = system_source(), system_source()
    assert not np.intersect1d(a.gaussian(100, 1.0), b.gaussian(100, 1.0)).size
    for copier in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(PlanError, match="copied"):
            copier(a)


def test_a_forked_process_draws_other_noise():
    source = system_source()
    source.gaussian(1, 1.0)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, source.gaussian(4, 1.0).tobytes() + source.uniform(4).tobytes())
        os._exit(0)
    os.close(write)
    data = b""
    while part := os.read(read, 1024):
        data += part
    os.close(read)
    os.waitpid(child, 0)
    theirs = np.frombuffer(data)
    ours = np.concatenate([source.gaussian(4, 1.0), source.uniform(4)])
    assert len(theirs) == 8
    assert not np.intersect1d(theirs, ours).size


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf])
def test_impossible_scale(std):
    for source in (system_source(), seeded_source(0)):
        with pytest.raises(PlanError, match="std"):
            source.gaussian(1, std)

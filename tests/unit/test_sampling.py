"""Poisson sampling, by statistics that reject what is mistaken for it; and where bits come from.

Each test statistic is checked both ways: the right mechanism passes, the wrong one fails. Streams
are seeded, so that a failure is never chance.
"""

import copy
import math
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from sordino.core.errors import PlanError
from sordino.privacy.noise import (
    SEEDED_LABEL,
    SYSTEM_LABEL,
    seeded_source,
    sources,
    stream,
    system_source,
)
from sordino.privacy.noise.stream import Keystream
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
    good = batches(lambda: poisson_sample(POPULATION, RATE, source.coins))
    assert min(size_p_value(good), pair_p_value(good), inclusion_p_value(good)) > 1e-3
    rng = np.random.default_rng(1)
    bad = batches(lambda: shuffled_fixed_size(POPULATION, RATE, rng))
    assert size_p_value(bad) < 1e-9


def test_wrong_rate_and_coupled_coins_are_rejected():
    source = seeded_source(2, "sampling")
    double = batches(lambda: poisson_sample(POPULATION, 2 * RATE, source.coins))
    assert inclusion_p_value(double) < 1e-9

    def coupled():  # one coin for all: right rate for each record, no independence
        return poisson_sample(POPULATION, RATE, lambda n: np.full(n, source.coins(1)[0]))

    assert pair_p_value(batches(coupled)) < 1e-9


def test_edges_of_sampling():
    source = seeded_source(0)
    assert poisson_sample(0, 0.5, source.coins).tolist() == []
    assert poisson_sample(5, 1.0, source.coins).tolist() == [0, 1, 2, 3, 4]
    for population in (-1, 1.0, True, "3"):
        with pytest.raises(PlanError, match="population"):
            poisson_sample(population, 0.5, source.coins)
    for rate in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(PlanError, match="sampling_rate"):
            poisson_sample(3, rate, source.coins)


@pytest.mark.parametrize(
    "broken",
    [
        np.zeros(2, np.uint64),
        np.zeros((3, 1), np.uint64),
        np.zeros(3),
        np.zeros(3, np.int64),
        np.zeros(3, np.uint32),
    ],
)
def test_a_broken_source_is_noticed(broken):
    with pytest.raises(PlanError, match="source is broken"):
        poisson_sample(3, 0.5, lambda n: broken)


class Script:
    """Words from a list, to put a coin exactly where the rate is."""

    def __init__(self, *calls):
        self.calls = list(calls)

    def __call__(self, n):
        given = self.calls.pop(0)
        assert len(given) == n
        return np.array(given, np.uint64)


def test_a_coin_is_compared_with_every_digit_of_the_rate():
    half = 1 << 63
    script = Script([half - 1, half, half + 1])
    assert poisson_sample(3, 0.5, script).tolist() == [0]  # P(u < 1/2), and not <=
    # 2^-70 is 0 in the first 64 digits and 2^58 in the next: only a coin that ties is drawn on.
    script = Script([0, 1, 0, 0], [2**58 - 1, 2**58, 0])
    assert poisson_sample(4, 2.0**-70, script).tolist() == [0, 3]
    assert not script.calls


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1, exclude_min=True, exclude_max=True), st.integers(0, 2**256 - 1))
def test_the_rate_is_taken_as_the_number_that_it_is(rate, bits):
    digits = [[bits >> shift & (2**64 - 1)] for shift in (192, 128, 64, 0)]
    for near in (False, True):
        if near:  # a coin that shares the rate's first digits
            digits[0] = [int(Fraction(rate) * 2**64)]
        uniform = sum(Fraction(d, 2 ** (64 * i + 64)) for i, (d,) in enumerate(digits))
        assume(not uniform <= Fraction(rate) <= uniform + Fraction(1, 2**256))
        joined = poisson_sample(1, rate, Script(*digits)).tolist() == [0]
        assert joined == (uniform < Fraction(rate))


# Where bits come from


def test_the_coins_never_shift_the_noise():
    one, other = seeded_source(5, "run", "client"), seeded_source(5, "run", "client")
    one.coins(1000)
    assert (one.rounded_gaussian(10, 1e6) == other.rounded_gaussian(10, 1e6)).all()


def test_seeds_and_contexts_name_different_streams():
    draws = [
        seeded_source(seed, *context).rounded_gaussian(4, 1e6).tolist()
        for seed, context in ((0, ()), (1, ()), (0, ("a", "b")), (0, ("ab",)), (0, ("b", "a")))
    ]
    assert len({tuple(d) for d in draws}) == len(draws)
    for seed in (-1, 1.5, True):
        with pytest.raises(PlanError, match="seed"):
            seeded_source(seed)


def test_labels_say_what_the_noise_is():
    assert (system_source().label, system_source().private) == (SYSTEM_LABEL, True)
    assert (seeded_source(0).label, seeded_source(0).private) == (SEEDED_LABEL, False)
    assert "hardened" not in SYSTEM_LABEL  # what reports warn about
    assert SYSTEM_LABEL.startswith("ChaCha20 keyed by the operating system, exactly sampled")
    assert SEEDED_LABEL.startswith("seeded: not private")


def words_of(source, n=64):
    return np.concatenate([source.rounded_gaussian(n, 2.0**55).view(np.uint64), source.coins(n)])


def test_system_sources_never_repeat():
    a, b = system_source(), system_source()
    drawn = np.concatenate([words_of(a), words_of(a), words_of(b)])
    assert len(np.unique(drawn)) == len(drawn)
    for copier in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(PlanError, match="copied"):
            copier(a)
        with pytest.raises(PlanError, match="copied"):
            copier(Keystream(bytes(32)))


def test_a_forked_process_draws_other_noise():
    source = system_source()
    words_of(source)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, words_of(source, 4).tobytes())
        os._exit(0)
    os.close(write)
    data = b""
    while part := os.read(read, 1024):
        data += part
    os.close(read)
    os.waitpid(child, 0)
    theirs, ours = np.frombuffer(data, np.uint64), words_of(source, 4)
    assert len(theirs) == 8
    assert not np.intersect1d(theirs, ours).size


def test_threads_never_get_the_same_words():
    keys, source, size = Keystream(bytes(32)), system_source(), 512
    for draw in (keys.words, lambda n: source.rounded_gaussian(n, 2.0**56)[:4]):
        with ThreadPoolExecutor(4) as pool:
            drawn = np.concatenate(list(pool.map(draw, [size if draw == keys.words else 4] * 200)))
        assert len(np.unique(drawn)) == len(drawn)


def test_the_keystream_is_chacha20_with_its_key_replaced_at_each_read():
    def chacha20(key, size):
        cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None)
        return cipher.encryptor().update(bytes(size))

    key, keys = bytes(range(32)), Keystream(bytearray(range(32)))
    for words in (1, 8, 100_000):
        block = chacha20(key, 32 + 8 * words)
        assert keys.words(words).astype("<u8").tobytes() == block[32:]
        key = block[:32]


def test_a_given_key_is_overwritten():
    key = bytearray(b"k" * 32)
    Keystream(key)
    assert key == bytes(32)
    with pytest.raises(PlanError, match="32 bytes"):
        Keystream(b"short")


# Nothing weaker takes over


@pytest.mark.parametrize("error", [OSError("no entropy"), NotImplementedError("no generator")])
def test_without_the_systems_entropy_there_is_no_source(monkeypatch, error):
    def refuse(size):
        raise error

    monkeypatch.setattr(sources.os, "urandom", refuse)
    with pytest.raises(PlanError, match="gives no entropy"):
        system_source()


@pytest.mark.parametrize("given", [bytes(32), b""])
def test_entropy_that_repeats_or_is_short_is_refused(monkeypatch, given):
    monkeypatch.setattr(sources.os, "urandom", lambda size: given)
    with pytest.raises(PlanError, match="entropy"):
        system_source()


class BrokenCipher:
    def __init__(self, update):
        self.update = update


@pytest.mark.parametrize("failure", ["absent", "wrong"])
def test_without_a_working_cipher_there_is_no_source(monkeypatch, failure):
    def broken(key):
        if failure == "absent":
            raise UnsupportedAlgorithm("no ChaCha20 here")
        return BrokenCipher(lambda data: data)  # a cipher that does nothing

    stream.check_cipher.cache_clear()
    monkeypatch.setattr(stream, "_encryptor", broken)
    for source in (system_source, lambda: seeded_source(0)):
        with pytest.raises(PlanError, match="ChaCha20"):
            source()


def test_a_cipher_that_stops_releases_nothing(monkeypatch):
    made = Keystream(bytes(32))

    class Stuck:
        def update_into(self, data, out):
            return 0

    monkeypatch.setattr(stream, "_encryptor", lambda key: Stuck())
    with pytest.raises(PlanError, match="cipher failed"):
        made.words(4)


def test_without_the_cryptography_library_nothing_is_drawn():
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "try:\n    import sordino.privacy.noise\n"
        "except ImportError as error:\n    print('refused', error.name)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.startswith("refused cryptography")


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 2.0**57])
def test_impossible_scale(scale):
    for source in (system_source(), seeded_source(0)):
        with pytest.raises(PlanError, match="scale"):
            source.rounded_gaussian(1, scale)

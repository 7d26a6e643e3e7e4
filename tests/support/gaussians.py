"""A second opinion on rounded Gaussians: mpmath's, from the same bits; and bits to draw from."""

import hashlib
import itertools
from fractions import Fraction

import mpmath
import numpy as np

from sordino.privacy.noise.stream import Keystream


def fixed_stream(name):
    """Words that are the same in every run of the tests."""
    return Keystream(hashlib.sha256(name.encode()).digest())


def no_more(words):
    raise AssertionError("64 bits were enough for these draws")


def given_words(words):
    """A `fill` that hands out an array's words in order."""
    position = 0

    def fill(out):
        nonlocal position
        out[:] = words[position : position + len(out)]
        position += len(out)

    return fill


def reference_magnitude(word, scale, further=(), digits=80):
    """round(scale·Q⁻¹(V)) by mpmath, V from the upper 63 bits of `word` and all further words.

    Raises:
        ValueError: These bits don't decide it.
    """
    value, bits = word >> 1, 64
    for extra in further:
        value, bits = value << 64 | extra, bits + 64
    with mpmath.workdps(digits + bits // 3):
        ends = []
        for uniform in (Fraction(value, 1 << bits), Fraction(value + 1, 1 << bits)):
            v = mpmath.mpf(uniform.numerator) / uniform.denominator
            if not v:
                raise ValueError("undecided")
            z = mpmath.sqrt(2) * mpmath.erfinv(1 - 2 * v)
            ends.append(int(mpmath.floor(z * mpmath.mpf(scale) + mpmath.mpf(1) / 2)))
    if ends[0] != ends[1]:
        raise ValueError("undecided")
    return ends[0]


def cell_probabilities(scale, reach):
    """P(K = k) for k in -reach..reach, exactly rounded to float64, and both tails as two more."""
    with mpmath.workdps(40):
        edges = [mpmath.ncdf((mpmath.mpf(k) - 0.5) / scale) for k in range(-reach, reach + 2)]
        inner = [float(b - a) for a, b in itertools.pairwise(edges)]
        tail = float(edges[0])
    return np.array([tail, *inner, tail])

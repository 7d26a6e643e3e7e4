"""Where noise comes from: a source with two independent streams, Gaussian and uniform.

The streams are separate so that the number of records, which decides how many uniforms a step
takes, never shifts the Gaussian draws. A source knows nothing of plans: scale and order are
`plan`'s.

`system_source` draws float64 Gaussians from a statistical generator under a secret key: the low
bits of a float can in principle betray the sum they are added to. Its label says so, and every
report prints the label. `seeded_source` is for tests and method studies: whoever knows the seed can
subtract the noise.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from typing import NoReturn, Protocol, final

import numpy as np
from numpy.typing import NDArray

from sordino.core.errors import PlanError, expected

SYSTEM_LABEL = "floating point, not hardened"
SEEDED_LABEL = "seeded: not private"


class NoiseSource(Protocol):
    """Randomness for one client: Gaussians for the noise, uniforms for the sampler."""

    @property
    def label(self) -> str:
        """What the report says under `noise.source`."""
        ...

    @property
    def private(self) -> bool:
        """False where somebody could draw the same numbers again."""
        ...

    def gaussian(self, size: int, std: float) -> NDArray[np.float64]:
        """`size` independent draws from N(0, std²)."""
        ...

    def uniform(self, size: int) -> NDArray[np.float64]:
        """`size` independent draws from [0, 1)."""
        ...


def system_source() -> NoiseSource:
    """A source keyed by the operating system's entropy, a fresh key for each stream.

    A forked process gets new keys (two processes must never add the same noise), and the source can
    be neither copied nor pickled.
    """
    return _SystemSource()


def seeded_source(seed: int, *context: str) -> NoiseSource:
    """A reproducible source; the same seed and context give the same streams. Not private.

    Args:
        seed: Any whole number >= 0.
        context: Tells streams apart, for example run, client and round.

    Raises:
        PlanError: The seed isn't a whole number >= 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise PlanError(expected("seed", seed, "a whole number >= 0"))
    return _SeededSource(seed, context)


@final
class _SystemSource:
    label = SYSTEM_LABEL
    private = True

    def __init__(self) -> None:
        self._rekey()

    def _rekey(self) -> None:
        self._process = os.getpid()
        self._gaussian = _generator(secrets.token_bytes(32))
        self._uniform = _generator(secrets.token_bytes(32))

    def gaussian(self, size: int, std: float) -> NDArray[np.float64]:
        if os.getpid() != self._process:
            self._rekey()
        return _gaussian(self._gaussian, size, std)

    def uniform(self, size: int) -> NDArray[np.float64]:
        if os.getpid() != self._process:
            self._rekey()
        return self._uniform.random(size)

    def __reduce__(self) -> NoReturn:
        raise PlanError("a private noise source can't be copied: its stream would repeat")


@final
class _SeededSource:
    label = SEEDED_LABEL
    private = False

    def __init__(self, seed: int, context: tuple[str, ...]) -> None:
        self._gaussian = _generator(_derive(seed, context, "gaussian"))
        self._uniform = _generator(_derive(seed, context, "uniform"))

    def gaussian(self, size: int, std: float) -> NDArray[np.float64]:
        return _gaussian(self._gaussian, size, std)

    def uniform(self, size: int) -> NDArray[np.float64]:
        return self._uniform.random(size)


def _derive(seed: int, context: tuple[str, ...], stream: str) -> bytes:
    # JSON keeps ("a", "b") and ("ab",) apart.
    return hashlib.sha256(json.dumps([seed, list(context), stream]).encode()).digest()


def _generator(key: bytes) -> np.random.Generator:
    words = np.frombuffer(key, dtype=np.uint32)
    return np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence(words.tolist())))


def _gaussian(generator: np.random.Generator, size: int, std: float) -> NDArray[np.float64]:
    if not (math.isfinite(std) and std > 0):
        raise PlanError(expected("std", std, "finite and > 0"))
    return generator.normal(0.0, std, size)

"""Where randomness comes from: the operating system, or a seed that says it isn't private."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from typing import Final, NoReturn, Protocol, final

import numpy as np
from numpy.typing import NDArray

from sordino.core.errors import PlanError, expected
from sordino.privacy.noise.rounded import RoundedGaussian
from sordino.privacy.noise.stream import KEY_BYTES, Keystream

SYSTEM_LABEL: Final = "ChaCha20 keyed by the operating system, exactly sampled rounded Gaussian"
SEEDED_LABEL: Final = "seeded: not private"


class NoiseSource(Protocol):
    """Randomness for one client: Gaussians for the noise, coins for the sampler."""

    @property
    def label(self) -> str:
        """What the report says under `noise.source`."""
        ...

    @property
    def private(self) -> bool:
        """False where somebody could draw the same numbers again."""
        ...

    def rounded_gaussian(self, size: int, scale: float) -> NDArray[np.int64]:
        """`size` independent draws of round(scale·Z), Z standard Gaussian."""
        ...

    def coins(self, size: int) -> NDArray[np.uint64]:
        """`size` words of 64 independent fair bits each."""
        ...


def system_source() -> NoiseSource:
    """A source keyed by the operating system's entropy, a fresh key for each stream.

    A forked process gets new keys (two processes must never add the same noise), and the source can
    be neither copied nor pickled.

    Raises:
        PlanError: The operating system gives no entropy, or there is no ChaCha20 that works. There
            is no weaker generator to fall back to.
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


class _Streams:
    """Three streams that never shift each other.

    The number of records decides how many coins a step takes, and the rare draw that needs more
    bits must not move the draws after it.
    """

    def __init__(self, noise: bytearray, further: bytearray, coins: bytearray) -> None:
        self._noise, self._further = Keystream(noise), Keystream(further)
        self._coins = Keystream(coins)
        self._sampler: tuple[float, RoundedGaussian] | None = None
        self._lock = threading.Lock()  # two draws in the sampler's buffers would share their bits

    def rounded_gaussian(self, size: int, scale: float) -> NDArray[np.int64]:
        with self._lock:
            if self._sampler is None or self._sampler[0] != scale:
                self._sampler = scale, RoundedGaussian(scale)
            return self._sampler[1].draw(size, self._noise.fill, self._further.fill)

    def coins(self, size: int) -> NDArray[np.uint64]:
        return self._coins.words(size)


@final
class _SystemSource:
    label = SYSTEM_LABEL
    private = True

    def __init__(self) -> None:
        self._rekey()

    def _rekey(self) -> None:
        keys = [_entropy() for _ in range(3)]
        if len({bytes(key) for key in keys}) < len(keys):
            raise PlanError("the operating system repeats its entropy: no noise can be drawn")
        self._process, self._streams = os.getpid(), _Streams(*keys)

    def _own(self) -> _Streams:
        if os.getpid() != self._process:
            self._rekey()
        return self._streams

    def rounded_gaussian(self, size: int, scale: float) -> NDArray[np.int64]:
        return self._own().rounded_gaussian(size, scale)

    def coins(self, size: int) -> NDArray[np.uint64]:
        return self._own().coins(size)

    def __reduce__(self) -> NoReturn:
        raise PlanError("a private noise source can't be copied: its stream would repeat")


@final
class _SeededSource:
    label = SEEDED_LABEL
    private = False

    def __init__(self, seed: int, context: tuple[str, ...]) -> None:
        self._streams = _Streams(
            *(_derive(seed, context, stream) for stream in ("noise", "further", "coins"))
        )

    def rounded_gaussian(self, size: int, scale: float) -> NDArray[np.int64]:
        return self._streams.rounded_gaussian(size, scale)

    def coins(self, size: int) -> NDArray[np.uint64]:
        return self._streams.coins(size)


def _entropy() -> bytearray:
    try:
        key = os.urandom(KEY_BYTES)
    except (OSError, NotImplementedError) as error:
        raise PlanError(f"the operating system gives no entropy: {error}") from error
    if len(key) != KEY_BYTES:
        raise PlanError(expected("entropy", len(key), f"of {KEY_BYTES} bytes"))
    return bytearray(key)


def _derive(seed: int, context: tuple[str, ...], stream: str) -> bytearray:
    # JSON keeps ("a", "b") and ("ab",) apart.
    return bytearray(hashlib.sha256(json.dumps([seed, list(context), stream]).encode()).digest())

"""Quantized blocks: as the `gguf` library makes them, and of random bytes."""

import gguf
import numpy as np
from gguf import quants

from sordino.client.model.blocks import FORMATS

SCALE_FIELDS = {  # where each format keeps its float16 fields
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q6_K": (208,),
}
# Of a float16: zero, subnormals and the smallest normal, the largest, infinity, NaNs that signal
# and that don't, ordinary ones; then the same with the other sign.
_MAGNITUDES = (0, 1, 0x1FF, 0x3FF, 0x400, 0x401, 0x7BFF, 0x7C00, 0x7C01, 0x7DFF, 0x7E00, 0x7FFF)
_MAGNITUDES += (0x3C00, 0x2E66)
ODD_HALVES = np.array([m | sign for sign in (0, 0x8000) for m in _MAGNITUDES], np.uint16)


def random_blocks(name: str, blocks: int, seed: int = 0) -> np.ndarray:
    """Random bytes with finite scales: every code, every scale bit, no NaN."""
    rng = np.random.default_rng(seed)
    fmt = FORMATS[name]
    if name in ("F32", "F16", "BF16"):
        values = rng.standard_normal((blocks, fmt.values)).astype(np.float32)
        kind = getattr(gguf.GGMLQuantizationType, name)
        return quants.quantize(values, kind).view(np.uint8).reshape(blocks, fmt.bytes)
    raw = rng.integers(0, 256, (blocks, fmt.bytes), dtype=np.uint8)
    for offset in SCALE_FIELDS[name]:
        scale = (rng.standard_normal(blocks) * 0.01).astype(np.float16)
        raw[:, offset : offset + 2] = scale.view(np.uint8).reshape(-1, 2)
    return raw


def odd_blocks(name: str) -> np.ndarray:
    """Random codes under every pair of `ODD_HALVES`, then bytes that are random altogether."""
    rng = np.random.default_rng(1)
    first, second = (h.ravel() for h in np.meshgrid(ODD_HALVES, ODD_HALVES))
    raw = rng.integers(0, 256, (len(first), FORMATS[name].bytes), dtype=np.uint8)
    for offset, halves in zip(SCALE_FIELDS[name], (first, second), strict=False):
        raw[:, offset : offset + 2] = halves.view(np.uint8).reshape(-1, 2)
    return np.concatenate([raw, rng.integers(0, 256, (1024, raw.shape[1]), dtype=np.uint8)])


def quantize(weight: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Quantize ``float32[rows, columns]``.

    The library can read K blocks but not make them: they are drawn at random, half as large as
    the weights, and whoever asked takes the values from the library's reading of them.
    """
    if kind.name not in ("Q4_K", "Q6_K"):
        return quants.quantize(weight, kind)
    fmt = FORMATS[kind.name]
    rng = np.random.default_rng([weight.shape[0], int(abs(weight[0, 0]) * 1e6)])
    raw = rng.integers(0, 256, (weight.size // fmt.values, fmt.bytes), dtype=np.uint8)
    # A Q4_K value is d·(6 bits)·(4 bits) - m·(6 bits), a Q6_K one d·(8 bits)·(6 bits): so spread.
    size = float(weight.std()) / 2
    halves = (size / 254, 7.5 * size / 254) if kind.name == "Q4_K" else (size / 1367,)
    for offset, value in zip(SCALE_FIELDS[kind.name], halves, strict=True):
        raw[:, offset : offset + 2] = (
            np.full(len(raw), value, np.float16).view(np.uint8).reshape(-1, 2)
        )
    return raw.reshape(weight.shape[0], -1)

"""Products with frozen matrices, in a form that is read fast once a token.

A training step makes a matrix dense for hundreds of rows at a time, and that pays. A decoder that
writes one token reads every weight for one row, so its speed is that of reading: what counts is
how many bytes a weight has when it is used. Matrices are therefore packed once, before the first
token, and the packed copy is dropped with the model that holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor

from sordino.client.model.matrices import Matrix
from sordino.core.errors import ConfigError, ModelError, expected

Form = Literal["half", "full", "streamed"]
Weights = Form | Literal["auto"]
Product = Callable[[Tensor], Tensor]  # float32[tokens, columns] -> float32[tokens, rows]

BYTES: Mapping[Form, int] = {
    "half": 2,
    "full": 4,
    "streamed": 0,
}  # that a packed weight adds to the mapped file
_TILE = 16_384  # rows made dense at once: a head of 262144 x 640 in float32 is 671 MB
_HALF_MAX = 65_504.0


@dataclass(frozen=True)
class HalfProduct:
    """Weights in float16, activations and sums in float32.

    FBGEMM widens the weights in registers. The only rounding beyond a float32 product's is that of
    each dequantized weight to 11 bits.

    Attributes:
        packed: FBGEMM's own layout, a tile each.
    """

    packed: tuple[Any, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply."""
        return _joined([torch.ops.quantized.linear_dynamic_fp16(x, tile) for tile in self.packed])


@dataclass(frozen=True)
class FullProduct:
    """Weights in float32.

    Attributes:
        weight: ``[rows, columns]``.
    """

    weight: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply."""
        return x @ self.weight.t()


@dataclass(frozen=True)
class StreamedProduct:
    """Weights as they lie in the file, made dense a tile at a time for each use: slow and small.

    Attributes:
        tiles: Each makes one tile dense, ``[rows, columns]``.
    """

    tiles: tuple[Callable[[], Tensor], ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply."""
        return _joined([x @ tile().t() for tile in self.tiles])


def pack_product(matrices: Sequence[Matrix], form: Form) -> Product:
    """Pack matrices that share an input, one above the other, as one product.

    Args:
        matrices: All with the same number of columns.
        form: How; `choose_form` finds one.

    Returns:
        ``[tokens, columns] -> [tokens, sum of rows]``, in float32.

    Raises:
        ModelError: A weight is too large for float16.
    """
    tiles = tuple(
        partial(matrix.tile, start, min(start + _TILE, matrix.rows))
        for matrix in matrices
        for start in range(0, matrix.rows, _TILE)
    )
    if form == "streamed":
        return StreamedProduct(tiles)
    if form == "full":
        return FullProduct(torch.cat([tile() for tile in tiles]))
    if sum(matrix.rows for matrix in matrices) <= _TILE:
        return HalfProduct((_pack_half(torch.cat([tile() for tile in tiles])),))
    return HalfProduct(tuple(_pack_half(tile()) for tile in tiles))


def choose_form(values: int, wanted: Weights, memory_mb: float | None) -> Form:
    """Choose how to pack a model.

    Args:
        values: How many weights it has in matrices that are multiplied with.
        wanted: ``auto``: float16 where this build of torch has the kernel, else float32, else
            what needs no memory.
        memory_mb: What a packed copy may take, in units of 10⁶ bytes; None: any amount.

    Raises:
        ConfigError: The wanted form doesn't fit, or there is no such form.
        ModelError: This build of torch lacks the kernel for ``half``.
    """
    if wanted == "auto":
        fast: Form = "half" if has_half_products() else "full"
        return fast if _fits(values, fast, memory_mb) else "streamed"
    if wanted not in BYTES:
        raise ConfigError(expected("weights", wanted, f"one of auto, {', '.join(BYTES)}"))
    if not _fits(values, wanted, memory_mb):
        needed = values * BYTES[wanted] / 1e6
        raise ConfigError(
            expected("memory_mb", memory_mb, f">= {needed:.0f}", f"weights {wanted!r} take that")
        )
    if wanted == "half" and not has_half_products():
        raise ModelError("this build of torch has no float16 products (FBGEMM): use weights 'full'")
    return wanted


@cache
def has_half_products() -> bool:
    """Whether this build of torch multiplies with packed float16 weights: x86 ones do."""
    try:
        product = HalfProduct((_pack_half(torch.eye(8)),))
        return bool(torch.equal(product(torch.ones(1, 8)), torch.ones(1, 8)))
    except (RuntimeError, NotImplementedError, AttributeError):
        return False


def _fits(values: int, form: Form, memory_mb: float | None) -> bool:
    return memory_mb is None or values * BYTES[form] <= memory_mb * 1e6


def _pack_half(dense: Tensor) -> Any:
    if not bool((dense.abs() <= _HALF_MAX).all()):  # FBGEMM would saturate without a word
        raise ModelError("a weight is too large for float16: use weights 'full'")
    return torch.ops.quantized.linear_prepack_fp16(dense, None)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

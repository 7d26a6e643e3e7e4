"""Frozen weight matrices that stay quantized in memory and are made dense one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from sordino.client.model.blocks import BlockFormat
from sordino.core.errors import ModelError


class Matrix(Protocol):
    """A frozen ``[rows, columns]`` weight.

    Attributes:
        rows: Output features.
        columns: Input features.
        nbytes: Bytes that the quantized form holds.
    """

    @property
    def rows(self) -> int: ...  # noqa: D102

    @property
    def columns(self) -> int: ...  # noqa: D102

    @property
    def nbytes(self) -> int: ...  # noqa: D102

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return all of it, ``[rows, columns]``; the caller drops it after one use."""
        ...

    def tile(
        self,
        start: int,
        stop: int,
        dtype: torch.dtype = torch.float32,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return rows ``start:stop``, for a product that takes a few at a time.

        Args:
            start: First row.
            stop: After the last; at most `rows`.
            dtype: Of the result.
            out: A contiguous ``[stop - start, columns]`` that may be used for it.
        """
        ...

    def gather(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the rows that `ids` (int64, 1-D) names, for an embedding."""
        ...


@dataclass(frozen=True)
class BlockMatrix:
    """A matrix in GGUF blocks, as it lies in the mapped file.

    Attributes:
        raw: ``uint8[rows, bytes_per_row]``, usually a view of the mapped file.
        format: The block format.
        columns: Values in a row.
        rotary_heads: If above zero, the rows lie in GGUF's rotary order for this many heads (the
            llama architecture stores q and k so). Rows are whole blocks, so the order is undone on
            the codes of one layer at a time, and no process holds a copy of its own.
    """

    raw: Tensor
    format: BlockFormat
    columns: int
    rotary_heads: int = 0

    @property
    def rows(self) -> int:
        """Output features."""
        return self.raw.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the quantized form."""
        return self.raw.numel()

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Dequantize the whole matrix."""
        return self.tile(0, self.rows, dtype)

    def tile(
        self,
        start: int,
        stop: int,
        dtype: torch.dtype = torch.float32,
        out: Tensor | None = None,
    ) -> Tensor:
        """Dequantize rows ``start:stop``."""
        if self.rotary_heads:
            return self.gather(torch.arange(start, stop), dtype, out)
        return self._dequantize(self.raw[start:stop], dtype, out)

    def gather(
        self, ids: Tensor, dtype: torch.dtype = torch.float32, out: Tensor | None = None
    ) -> Tensor:
        """Dequantize the named rows only."""
        return self._dequantize(self.raw[self._stored(ids)], dtype, out)

    @property
    def pairs(self) -> bool:
        """Whether `paired` is there for this format."""
        return self.format.paired is not None

    def paired(self, start: int, stop: int) -> Tensor:
        """Dequantize rows ``start:stop`` to float32, in the order of `BlockFormat.paired`.

        Raises:
            ModelError: The format has no such way.
        """
        if self.format.paired is None:
            raise ModelError(f"blocks of {self.format.name} have no paired order")
        per_row, bytes_each = self.columns // self.format.values, self.format.bytes
        size = self.rows // self.rotary_heads if self.rotary_heads else 1
        first, last = start // size * size, -(-stop // size) * size  # whole heads
        chosen = _blocks_of(last - first, per_row, size)
        dense = self.format.paired(self.raw[first:last].reshape(-1, bytes_each), chosen)
        return dense.view(-1, self.columns)[start - first : stop - first]

    def _stored(self, ids: Tensor) -> Tensor:
        return rotary_rows(ids, self.rows // self.rotary_heads) if self.rotary_heads else ids

    def _dequantize(self, raw: Tensor, dtype: torch.dtype, out: Tensor | None) -> Tensor:
        blocks = raw.reshape(-1, self.format.bytes)
        if out is None or dtype != torch.float32:
            dense = self.format.dequantize(blocks).view(-1, self.columns)
            return dense.to(dtype) if out is None else out.copy_(dense)
        self.format.dequantize(blocks, out.view(-1, self.format.values))
        return out


def rotary_rows(ids: Tensor, size: int) -> Tensor:
    """Where rows lie in the file: in rotary order the halves of a head of `size` alternate."""
    head, place = ids // size * size, ids % size
    return head + 2 * (place % (size // 2)) + place // (size // 2)


@lru_cache(maxsize=32)
def _blocks_of(rows: int, per_row: int, size: int) -> Tensor:
    """The blocks of each row in turn, ``int32[rows * per_row]``; `size`: of a head, or 1."""
    stored = torch.arange(rows)
    if size > 1:
        stored = rotary_rows(stored, size)
    return (stored[:, None] * per_row + torch.arange(per_row)).flatten().int()


@dataclass(frozen=True)
class Int8Matrix:
    """Symmetric int8 with one scale a row: the plain form of a Hugging Face folder.

    Attributes:
        codes: ``int8[rows, columns]``.
        scales: ``float32[rows, 1]``.
    """

    codes: Tensor
    scales: Tensor

    @property
    def rows(self) -> int:
        """Output features."""
        return self.codes.shape[0]

    @property
    def columns(self) -> int:
        """Input features."""
        return self.codes.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the quantized form."""
        return self.codes.numel() + 4 * self.scales.numel()

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Dequantize the whole matrix."""
        return self.tile(0, self.rows, dtype)

    def tile(
        self,
        start: int,
        stop: int,
        dtype: torch.dtype = torch.float32,
        out: Tensor | None = None,
    ) -> Tensor:
        """Dequantize rows ``start:stop``."""
        if out is None:
            out = torch.empty((stop - start, self.columns), dtype=dtype)
        if dtype == torch.float32:
            return out.copy_(self.codes[start:stop]).mul_(self.scales[start:stop])
        return out.copy_(self.tile(start, stop))

    def gather(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Dequantize the named rows only."""
        return self.codes[ids].float().mul_(self.scales[ids]).to(dtype)


def quantize_int8(weight: Tensor) -> Int8Matrix:
    """Quantize ``float[rows, columns]`` to int8, rounding to nearest, one scale a row.

    >>> m = quantize_int8(torch.tensor([[1.0, -2.0], [0.0, 0.0]]))
    >>> m.dense().tolist()
    [[1.0078740119934082, -2.0], [0.0, 0.0]]
    """
    weight = weight.float()
    scales = weight.abs().amax(dim=1, keepdim=True).div_(127)
    safe = torch.where(scales > 0, scales, torch.ones_like(scales))
    codes = (weight / safe).round_().clamp_(-127, 127).to(torch.int8)
    return Int8Matrix(codes, scales)

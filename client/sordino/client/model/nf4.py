"""NF4, the 4-bit normal float of QLoRA, through bitsandbytes' CPU functions."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sordino.core.errors import ModelError

BLOCK = 64  # values that share one scale, as bitsandbytes has it by default


@dataclass(frozen=True)
class Nf4Matrix:
    """A matrix in NF4 blocks of `BLOCK` values, counted over the rows laid end to end.

    Attributes:
        codes: ``uint8[rows * columns / 2]``, two values a byte, the first in the high half.
        scales: ``float32[rows * columns / BLOCK]``, the largest magnitude of each block.
        rows: Output features.
        columns: Input features.
    """

    codes: Tensor
    scales: Tensor
    rows: int
    columns: int

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
        """Dequantize rows ``start:stop``, which may begin and end within a block."""
        first, last = start * self.columns, min(stop, self.rows) * self.columns
        block, end = first // BLOCK, -(-last // BLOCK)
        values = _dequantize(
            self.codes[block * BLOCK // 2 : end * BLOCK // 2],
            self.scales[block:end],
            min(end * BLOCK, self.rows * self.columns) - block * BLOCK,
        )
        del out  # bitsandbytes makes a tensor of its own
        rows = values[first - block * BLOCK : last - block * BLOCK]
        return rows.view(-1, self.columns).to(dtype)

    def gather(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Dequantize all and keep the named rows: embeddings are not stored in NF4."""
        return self.dense(dtype)[ids]


def quantize_nf4(weight: Tensor) -> Nf4Matrix:
    """Quantize ``float[rows, columns]`` to NF4.

    Raises:
        ModelError: bitsandbytes is not installed, or the matrix has an odd number of values.
    """
    if weight.numel() % 2:
        raise ModelError(f"NF4 packs values in pairs: a matrix of {tuple(weight.shape)} is odd")
    functional = _bitsandbytes()
    codes, state = functional.quantize_4bit(
        weight.float().flatten(), blocksize=BLOCK, quant_type="nf4"
    )
    return Nf4Matrix(codes.flatten(), state.absmax.float(), weight.shape[0], weight.shape[1])


def _dequantize(codes: Tensor, scales: Tensor, values: int) -> Tensor:
    functional = _bitsandbytes()
    # One long row: bitsandbytes' CPU kernel starts a new block at each row of a matrix, which its
    # quantizer doesn't, so rows that aren't whole blocks would come back wrong.
    state = functional.QuantState(
        absmax=scales, shape=torch.Size([values]), dtype=torch.float32, blocksize=BLOCK,
        quant_type="nf4",
    )  # fmt: skip
    out: Tensor = functional.dequantize_4bit(codes, state)
    return out.view(-1)


def _bitsandbytes() -> Any:
    try:
        # On CPUs with bf16 units it warns that a kernel for inference, of no use here, is missing.
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        from bitsandbytes import functional  # noqa: PLC0415
    except ImportError as error:
        raise ModelError(
            'NF4 needs bitsandbytes: pip install "sordino[nf4]", or set model.quantization = "int8"'
        ) from error
    return functional

"""GGUF block formats: quantized bytes to float32, bit for bit as the `gguf` library does it.

A row of a GGUF tensor is a whole number of blocks. Every function here takes blocks as
``uint8[n, bytes_per_block]`` and returns ``float32[n, values_per_block]``. Products and sums are
separate operations on purpose: a fused multiply-add rounds once and would differ in the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sordino.core.errors import ModelError


@dataclass(frozen=True)
class BlockFormat:
    """How one GGUF tensor type packs its values.

    Attributes:
        name: The type's name in the `gguf` library, for example ``"Q4_1"``.
        values: Values in a block.
        bytes: Bytes in a block.
        dequantize: ``uint8[n, bytes] -> float32[n, values]``.
    """

    name: str
    values: int
    bytes: int
    dequantize: Callable[[Tensor], Tensor]


def _half(field: Tensor) -> Tensor:
    return field.view(torch.float16).float()


def _nibbles(codes: Tensor, width: int) -> Tensor:
    """Split ``uint8[n, k*width]`` into low then high nibbles of each run of `width` bytes."""
    runs = codes.reshape(codes.shape[0], -1, 1, width)
    out = torch.empty((runs.shape[0], runs.shape[1], 2, width), dtype=torch.uint8)
    torch.bitwise_and(runs[:, :, 0], 15, out=out[:, :, 0])
    torch.bitwise_right_shift(runs[:, :, 0], 4, out=out[:, :, 1])
    return out.view(codes.shape[0], -1)


def _f32(blocks: Tensor) -> Tensor:
    return blocks.view(torch.float32)


def _f16(blocks: Tensor) -> Tensor:
    return _half(blocks)


def _bf16(blocks: Tensor) -> Tensor:
    return blocks.view(torch.bfloat16).float()


def _q4_0(blocks: Tensor) -> Tensor:
    codes = _nibbles(blocks[:, 2:], 16).float()
    return codes.sub_(8).mul_(_half(blocks[:, :2]))


def _q4_1(blocks: Tensor) -> Tensor:
    codes = _nibbles(blocks[:, 4:], 16).float()
    return codes.mul_(_half(blocks[:, :2])).add_(_half(blocks[:, 2:4]))


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8).float().mul_(_half(blocks[:, :2]))


def _q4_k(blocks: Tensor) -> Tensor:
    n = blocks.shape[0]
    low, high, mixed = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([low & 0x3F, (mixed & 0x0F) | ((low >> 2) & 0x30)], dim=1)
    mins = torch.cat([high & 0x3F, (mixed >> 4) | ((high >> 2) & 0x30)], dim=1)
    d = (_half(blocks[:, 0:2]) * scales.float()).view(n, 8, 1)
    dm = (_half(blocks[:, 2:4]) * mins.float()).view(n, 8, 1)
    codes = _nibbles(blocks[:, 16:], 32).view(n, 8, 32).float()
    return codes.mul_(d).sub_(dm).view(n, 256)


def _q6_k(blocks: Tensor) -> Tensor:
    n = blocks.shape[0]
    low = _nibbles(blocks[:, :128], 64).view(n, 8, 32)
    pairs = blocks[:, 128:192].reshape(n, 2, 1, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(1, 1, 4, 1)
    high = ((pairs >> shifts) & 3).view(n, 8, 32)
    codes = (low | (high << 4)).float().sub_(32).view(n, 16, 16)
    scales = blocks[:, 192:208].view(torch.int8).float()
    d = (_half(blocks[:, 208:210]) * scales).view(n, 16, 1)
    return codes.mul_(d).view(n, 256)


FORMATS = {
    f.name: f
    for f in (
        BlockFormat("F32", 1, 4, _f32),
        BlockFormat("F16", 1, 2, _f16),
        BlockFormat("BF16", 1, 2, _bf16),
        BlockFormat("Q4_0", 32, 18, _q4_0),
        BlockFormat("Q4_1", 32, 20, _q4_1),
        BlockFormat("Q8_0", 32, 34, _q8_0),
        BlockFormat("Q4_K", 256, 144, _q4_k),
        BlockFormat("Q6_K", 256, 210, _q6_k),
    )
}


def block_format(name: str, tensor: str = "") -> BlockFormat:
    """Look a block type up by its GGUF name.

    Raises:
        ModelError: The type isn't supported; the message names it, the tensor, and what is.
    """
    if name not in FORMATS:
        where = f" of tensor {tensor}" if tensor else ""
        raise ModelError(
            f"block type {name}{where} is not supported: convert the file to one of "
            f"{', '.join(FORMATS)}"
        )
    return FORMATS[name]

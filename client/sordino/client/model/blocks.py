"""GGUF block formats: quantized bytes to float32, bit for bit as the `gguf` library does it.

A row of a GGUF tensor is a whole number of blocks. Every function here takes blocks as
``uint8[n, bytes_per_block]`` and writes ``float32[n, values_per_block]``. Products and sums are
separate operations on purpose: a fused multiply-add rounds once and could differ in the last bit.
Codes are unpacked many at a time, as wide words, and become floats in one pass over contiguous
bytes: this runs twice for every weight of the base in every micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sordino.client.model.scratch import scratch
from sordino.core.errors import ModelError

NIBBLES = 0x0F0F0F0F0F0F0F0F


@dataclass(frozen=True)
class BlockFormat:
    """How one GGUF tensor type packs its values.

    Attributes:
        name: The type's name in the `gguf` library, for example ``"Q4_1"``.
        values: Values in a block.
        bytes: Bytes in a block.
        write: Dequantizes ``uint8[n, bytes]`` into a contiguous ``float32[n, values]``.
        paired: Where there is a faster way to the same values in another order:
            ``uint8[n, bytes], int32[n] -> float32[n, values]``, the blocks that the numbers name,
            and within each its two halves in turn: value 0, value ``values / 2``, value 1, ...
    """

    name: str
    values: int
    bytes: int
    write: Callable[[Tensor, Tensor], object]
    paired: Callable[[Tensor, Tensor], Tensor] | None = None

    def dequantize(self, blocks: Tensor, out: Tensor | None = None) -> Tensor:
        """Dequantize ``uint8[n, bytes]`` to ``float32[n, values]``, into `out` if it is given."""
        if out is None:
            out = torch.empty((blocks.shape[0], self.values), dtype=torch.float32)
        self.write(blocks, out)
        return out


def _half(field: Tensor) -> Tensor:
    return field.view(torch.float16).float()


def _nibbles(packed: Tensor, width: int) -> Tensor:
    """Split ``uint8[n, k*width]`` into low then high nibbles of each run of `width` bytes.

    Valid until the next call. `width` is a multiple of 16: whole runs of 16 bytes are moved at
    once, as numbers of that size; nothing is computed with them.
    """
    shape = (packed.shape[0], packed.shape[1] // width, width // 16)
    count = packed.numel()
    buffer = scratch("codes", (4 * count,), torch.uint8)
    low, high, out = buffer[:count], buffer[count : 2 * count], buffer[2 * count :]
    low.view(packed.shape).copy_(packed)
    torch.bitwise_right_shift(low.view(torch.int64), 4, out=high.view(torch.int64))
    runs = out.view(torch.complex128).view(shape[0], shape[1], 2, shape[2])
    for number, half in enumerate((low, high)):
        half.view(torch.int64).bitwise_and_(NIBBLES)
        runs[:, :, number].copy_(half.view(torch.complex128).view(shape))
    return out.view(packed.shape[0], 2 * packed.shape[1])


def _f32(blocks: Tensor, out: Tensor) -> None:
    out.view(torch.uint8).view(blocks.shape).copy_(blocks)


def _f16(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks.view(torch.float16))


def _bf16(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks.view(torch.bfloat16))


def _q4_0(blocks: Tensor, out: Tensor) -> None:
    out.copy_(_nibbles(blocks[:, 2:], 16)).sub_(8).mul_(_half(blocks[:, :2]))


def _q4_1(blocks: Tensor, out: Tensor) -> None:
    out.copy_(_nibbles(blocks[:, 4:], 16)).mul_(_half(blocks[:, :2])).add_(_half(blocks[:, 2:4]))


def _q4_1_paired(blocks: Tensor, chosen: Tensor) -> Tensor:
    """Through FBGEMM's look-up of 4-bit rows, each a block: codes, scale, smallest value.

    It takes a byte's low half for one value and its high half for the next, so the order is its
    own. A product of a code and a float16 scale is exact in float32, so it doesn't matter whether
    the smallest value is added in the same operation: the values are those of `_q4_1`, to the bit
    but for the sign of a zero.
    """
    words = blocks.view(torch.int32)
    rows = scratch("codes", words.shape, torch.int32)
    rows.view(-1)[:-1].copy_(words.view(-1)[1:])  # all moved up by one word: the codes are in place
    rows[:, 4].copy_(words[:, 0])
    each = _counting(chosen.shape[0])
    values: Tensor = torch.ops.quantized.embedding_bag_4bit_rowwise_offsets(
        rows.view(torch.uint8), chosen, each, False, 0, False, None, None, False
    )
    return values


@lru_cache(maxsize=64)
def _counting(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.int32)


def _q8_0(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks[:, 2:].view(torch.int8)).mul_(_half(blocks[:, :2]))


def _q4_k(blocks: Tensor, out: Tensor) -> None:
    n = blocks.shape[0]
    low, high, mixed = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([low & 0x3F, (mixed & 0x0F) | ((low >> 2) & 0x30)], dim=1)
    mins = torch.cat([high & 0x3F, (mixed >> 4) | ((high >> 2) & 0x30)], dim=1)
    d = (_half(blocks[:, 0:2]) * scales.float()).view(n, 8, 1)
    dm = (_half(blocks[:, 2:4]) * mins.float()).view(n, 8, 1)
    out.copy_(_nibbles(blocks[:, 16:], 32)).view(n, 8, 32).mul_(d).sub_(dm)


def _q6_k(blocks: Tensor, out: Tensor) -> None:
    n = blocks.shape[0]
    low = _nibbles(blocks[:, :128], 64).view(n, 8, 32)
    pairs = blocks[:, 128:192].reshape(n, 2, 1, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(1, 1, 4, 1)
    high = ((pairs >> shifts) & 3).view(n, 8, 32)
    codes = high.bitwise_left_shift_(4).bitwise_or_(low)
    scales = blocks[:, 192:208].view(torch.int8).float()
    d = (_half(blocks[:, 208:210]) * scales).view(n, 16, 1)
    out.copy_(codes.view(n, 256)).sub_(32).view(n, 16, 16).mul_(d)


FORMATS = {
    f.name: f
    for f in (
        BlockFormat("F32", 1, 4, _f32),
        BlockFormat("F16", 1, 2, _f16),
        BlockFormat("BF16", 1, 2, _bf16),
        BlockFormat("Q4_0", 32, 18, _q4_0),
        BlockFormat("Q4_1", 32, 20, _q4_1, _q4_1_paired),
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

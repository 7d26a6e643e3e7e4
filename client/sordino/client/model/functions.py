"""The differentiable pieces of a decoder, each saving for the backward only what it must.

All work on packed records: the tokens of several records lie one after another in one
``[tokens, features]`` tensor without padding, and `Packing` says where each record begins. Records
meet only inside attention, which is per record, so every row's gradient belongs to one record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from sordino.client.model.parts import Activation


@dataclass(frozen=True)
class Packing:
    """Where each record lies in a packed tensor.

    Attributes:
        lengths: Tokens of each record, in order; none is zero.
    """

    lengths: tuple[int, ...]

    @cached_property
    def bounds(self) -> list[tuple[int, int]]:
        """Start and stop row of each record."""
        stops, at = [], 0
        for length in self.lengths:
            stops.append((at, at + length))
            at += length
        return stops

    @property
    def longest(self) -> int:
        """Tokens of the longest record."""
        return max(self.lengths, default=0)

    @cached_property
    def positions(self) -> Tensor:
        """Position of each row within its record, ``int64[tokens]``."""
        return torch.cat([torch.arange(n) for n in self.lengths])

    @cached_property
    def uniform(self) -> bool:
        """All records have the same length, so that no padding is ever needed."""
        return len(set(self.lengths)) <= 1

    @cached_property
    def slots(self) -> Tensor:
        """Row of each token in a ``[records * longest]`` padded layout, ``int64[tokens]``."""
        starts = torch.arange(len(self.lengths)) * self.longest
        return torch.repeat_interleave(starts, torch.tensor(self.lengths)) + self.positions

    def pad(self, rows: Tensor) -> Tensor:
        """Lay ``[tokens, ...]`` out as ``[records, longest, ...]``, zeros at the end."""
        shape = (len(self.lengths), self.longest, *rows.shape[1:])
        if self.uniform:
            return rows.reshape(shape)
        padded = rows.new_zeros((shape[0] * shape[1], *rows.shape[1:]))
        return padded.index_copy(0, self.slots, rows).view(shape)

    def unpad(self, padded: Tensor) -> Tensor:
        """Undo `pad`."""
        flat = padded.reshape(-1, *padded.shape[2:])
        return flat if self.uniform else flat.index_select(0, self.slots)


def pack(records: Sequence[Tensor]) -> tuple[Tensor, Packing]:
    """Join 1-D id tensors into one; every record must have at least one token."""
    return torch.cat(list(records)), Packing(tuple(int(r.numel()) for r in records))


class RmsNorm(Function):
    """``x / rms(x) * weight`` with a frozen weight; saves x and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True).add_(eps))
        ctx.save_for_backward(x, scale, weight)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, scale, weight = ctx.saved_tensors
        weighted = grad * weight
        along = (weighted * x).mean(-1, keepdim=True).mul_(scale.pow(3))
        return torch.addcmul(weighted.mul_(scale), x, along, value=-1), None, None


class GatedSilu(Function):
    """``silu(gate) * up``; saves its two inputs and recomputes the rest."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        # silu'(g) = sigmoid + silu * (1 - sigmoid)
        slope = torch.addcmul(sigmoid, silu, 1 - sigmoid)
        return slope.mul_(up).mul_(grad), silu.mul_(grad)


class GatedGelu(Function):
    """``gelu(gate) * up``; saves its two inputs and recomputes the rest."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, approximate: str) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.approximate = approximate
        return F.gelu(gate, approximate=approximate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        how = ctx.approximate
        slope = torch.ops.aten.gelu_backward(grad * up, gate, approximate=how)
        return slope, F.gelu(gate, approximate=how).mul_(grad), None


def activate(name: Activation, up: Tensor, gate: Tensor | None = None) -> Tensor:
    """The inner part of an MLP: of `up` alone, or of a gate that multiplies it.

    Without a gate it is torch's own function, which saves its input and nothing else.
    """
    approximate = "tanh" if name == "gelu_tanh" else "none"
    if gate is None:
        return F.silu(up) if name == "silu" else F.gelu(up, approximate=approximate)
    gated: Tensor = (
        GatedSilu.apply(gate, up)  # type: ignore[no-untyped-call]
        if name == "silu"
        else GatedGelu.apply(gate, up, approximate)  # type: ignore[no-untyped-call]
    )
    return gated


class Rotate(Function):
    """Rotary position embedding on ``[tokens, heads, head_dim]``; saves nothing but the angles.

    The angles turn the first of a head's values, twice as many as there are angles; the others
    pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, -sin), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    low, high, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    out = torch.empty_like(x)
    torch.mul(low, cos, out=out[..., :half]).addcmul_(high, sin, value=-1)
    torch.mul(high, cos, out=out[..., half : 2 * half]).addcmul_(low, sin)
    if rest.shape[-1]:
        out[..., 2 * half :] = rest
    return out


def rotary_angles(
    positions: Tensor, frequencies: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `Rotate`, each ``[tokens, 1, len(frequencies)]``."""
    angles = torch.outer(positions.double(), frequencies).unsqueeze(1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: Packing,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Attention within each record.

    Args:
        q: ``[tokens, heads, head_dim]``.
        k: ``[tokens, kv_heads, head_dim]``.
        v: As `k`.
        packing: Where the records lie. Padding comes after a record's last token, where the causal
            mask hides it from every real one.
        scale: What the products are multiplied with; None: one over the root of `head_dim`.
        window: How many tokens back each looks, itself included; None: all.

    Returns:
        ``[tokens, heads * head_dim]``.
    """
    groups = q.shape[1] // k.shape[1]
    q, k, v = (packing.pad(t).transpose(1, 2) for t in (q, k, v))
    if groups > 1:
        k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    if window is None or packing.longest <= window:  # then the window hides nothing
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    else:
        ahead = torch.ones(packing.longest, packing.longest, dtype=torch.bool).tril()
        mask = ahead & ~ahead.tril(-window)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return packing.unpad(mixed.transpose(1, 2)).flatten(1)

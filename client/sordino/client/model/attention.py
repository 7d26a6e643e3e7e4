"""Causal attention within each record of a packed batch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sordino.client.model.packing import Packing
from sordino.client.model.rotary import Angles, rotate
from sordino.client.model.scratch import kept

# torch's own kernel behind `scaled_dot_product_attention` on a CPU. Called by itself it writes
# into the packed tensors, and saves no padded copies of them.
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _PackedAttention(Function):
    """Rotary positions and attention; saves the rotated heads, the output and a number a row."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        angles: Angles | None,
        packing: Packing,
        scale: float | None,
        window: int | None,
    ) -> Tensor:
        if angles:
            # In place: nobody else reads what was before. Of several views of one tensor autograd
            # lets none be written into; their gradients are turned back here, which it can't know.
            rotate(q.data, *angles)
            rotate(k.data, *angles)
        out = kept(q.shape, q.dtype)
        normalizers = []
        for rows, shape in _runs(packing):
            heads = (_heads(t[rows], shape) for t in (q, k, v))
            mixed, normalizer = _forward(*heads, **_masking(shape[1], window, q.dtype), scale=scale)
            out[rows] = mixed.transpose(1, 2).reshape(-1, *q.shape[1:])
            normalizers.append(kept(normalizer.shape, normalizer.dtype).copy_(normalizer))
        ctx.save_for_backward(q, k, v, out, *normalizers)
        ctx.angles, ctx.packing, ctx.scale, ctx.window = angles, packing, scale, window
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, out, *normalizers = ctx.saved_tensors
        grads = tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
        for (rows, shape), normalizer in zip(_runs(ctx.packing), normalizers, strict=True):
            masking = _masking(shape[1], ctx.window, q.dtype)
            causal, mask = masking["is_causal"], masking["attn_mask"]
            heads = (_heads(t[rows], shape) for t in (grad, q, k, v, out))
            found = _backward(*heads, normalizer, 0.0, causal, attn_mask=mask, scale=ctx.scale)
            for target, part in zip(grads, found, strict=True):
                target[rows] = part.transpose(1, 2).reshape(-1, *target.shape[1:])
        if ctx.angles:
            cos, sin = ctx.angles
            grads = (rotate(grads[0], cos, -sin), rotate(grads[1], cos, -sin), grads[2])
        return *grads, None, None, None, None


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: Packing,
    *,
    angles: Angles | None = None,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Attention within each record; no row of a record depends on another record.

    Args:
        q: ``[tokens, heads, head_dim]``, before the rotation.
        k: ``[tokens, kv_heads, head_dim]``, before the rotation.
        v: As `k`.
        packing: Where the records lie.
        angles: Cosines and sines of each row's position; None: no rotary positions.
        scale: What the products are multiplied with; None: one over the root of `head_dim`.
        window: How many tokens back each looks, itself included; None: all.

    Returns:
        ``[tokens, heads * head_dim]``.
    """
    mixed: Tensor = _PackedAttention.apply(q, k, v, angles, packing, scale, window)  # type: ignore[no-untyped-call]
    return mixed.flatten(1)


def _runs(packing: Packing) -> Iterator[tuple[slice, tuple[int, int]]]:
    """Neighbours of one length, which need no padding: their rows, and (records, length)."""
    start = 0
    for length, run in groupby(packing.lengths):
        records = len(list(run))
        yield slice(start, start + records * length), (records, length)
        start += records * length


def _heads(rows: Tensor, shape: tuple[int, int]) -> Tensor:
    """``[records * length, heads, head_dim]`` as ``[records, heads, length, head_dim]``."""
    return rows.view(*shape, *rows.shape[1:]).transpose(1, 2)


def _masking(length: int, window: int | None, dtype: torch.dtype) -> dict[str, Any]:
    if window is None or length <= window:  # then the window hides nothing
        return {"is_causal": True, "attn_mask": None}
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    seen &= ~seen.tril(-window)
    mask = torch.zeros(length, length, dtype=dtype).masked_fill_(~seen, float("-inf"))
    return {"is_causal": False, "attn_mask": mask}

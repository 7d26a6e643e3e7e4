"""Keys and values of the tokens so far, and attention over them.

Every row begins at slot 0 whatever the others' lengths, so a token's slot is its position and
nothing is padded. What lies beyond a row's own tokens is zeros or masked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sordino.client.model.architecture import Architecture
from sordino.client.model.ropes import Rope
from sordino.client.model.rotary import Angles, rotary_angles


class KvCache:
    """Room for the keys and values of some rows.

    Attributes:
        layers: ``float32[rows, capacity, 2 * kv_heads, head_dim]`` each, keys before values.
        angles: For each rotary embedding, cosines and signed sines of every position, each
            ``[capacity, 1, dims]``.
    """

    def __init__(self, arch: Architecture, rows: int, capacity: int) -> None:
        """Allocate; the pages come into being as they are written."""
        shape = (rows, capacity, 2 * arch.kv_heads, arch.head_dim)
        self.layers = [torch.zeros(shape) for _ in range(arch.layers)]
        ropes = {span.rope for span in arch.spans if span.rope}
        self.angles = {rope: _angles(rope, capacity) for rope in ropes}
        self.capacity = capacity

    def begin_with(self, stored: Sequence[Tensor]) -> None:
        """Put the same first tokens, ``[tokens, 2 * kv_heads, head_dim]`` a layer, in all rows."""
        for layer, first in zip(self.layers, stored, strict=True):
            layer[:, : first.shape[0]] = first

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        for index, layer in enumerate(self.layers):
            self.layers[index] = layer.index_select(0, rows)


def cache_bytes(arch: Architecture, rows: int, capacity: int) -> int:
    """What a `KvCache` takes once it is full."""
    return 4 * rows * capacity * arch.layers * 2 * arch.kv_heads * arch.head_dim


def _angles(rope: Rope, capacity: int) -> Angles:
    cos, sin = rotary_angles(torch.arange(capacity), rope.frequencies(), torch.float32)
    # A half turns into the other with the other's sign: one product for both.
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotate_(heads: Tensor, angles: Angles, positions: Tensor) -> None:
    """Turn ``[tokens, heads, head_dim]`` in place, the first values of each head."""
    cos, sin = (table.index_select(0, positions) for table in angles)
    turned = heads[..., : cos.shape[-1]]
    swapped = turned.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    turned.mul_(cos).addcmul_(swapped, sin)


@dataclass(frozen=True)
class Segment:
    """Consecutive new tokens of one row: `count` of them, the first at position `start`."""

    row: int
    start: int
    count: int

    @property
    def stop(self) -> int:
        """The position after the last."""
        return self.start + self.count


class Attention(Protocol):
    """Attention of a forward's new tokens over what is stored, theirs included."""

    def __call__(self, q: Tensor, stored: Tensor, *, window: int | None, scale: float) -> Tensor:
        """From queries ``[tokens, heads, head_dim]`` to ``[tokens, heads * head_dim]``."""
        ...


@dataclass(frozen=True)
class OneEach:
    """One new token for each row of the cache, all rows at once.

    The query heads that share a key stand where several queries would: that needs no copy of keys.

    Attributes:
        positions: Of the new tokens, a row each.
    """

    positions: tuple[int, ...]
    _masks: dict[int, Tensor | None] = field(default_factory=dict)

    def __call__(self, q: Tensor, stored: Tensor, *, window: int | None, scale: float) -> Tensor:
        """Attend."""
        first = 0 if window is None else max(0, min(self.positions) + 1 - window)
        k, v = _keys_and_values(stored[:, first : max(self.positions) + 1])
        grouped = q.view(q.shape[0], k.shape[1], -1, q.shape[2])
        mask = self._mask(first, window)
        return F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask, scale=scale).view(
            q.shape[0], -1
        )

    def _mask(self, first: int, window: int | None) -> Tensor | None:
        key = window or 0
        if key not in self._masks:
            self._masks[key] = self._make_mask(first, window)
        return self._masks[key]

    def _make_mask(self, first: int, window: int | None) -> Tensor | None:
        if len(set(self.positions)) == 1:
            return None  # all rows see just what was cut out
        at = torch.tensor(self.positions).view(-1, 1, 1, 1)
        hidden = _hidden(torch.arange(first, max(self.positions) + 1), at, window)
        return torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)


@dataclass(frozen=True)
class Several:
    """Any number of new tokens for any rows; a row's attention doesn't depend on the others'.

    Attributes:
        segments: In the order of the new tokens.
    """

    segments: tuple[Segment, ...]
    _masks: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)

    def __call__(self, q: Tensor, stored: Tensor, *, window: int | None, scale: float) -> Tensor:
        """Attend."""
        out, at = torch.empty_like(q), 0
        for s in self.segments:
            first = 0 if window is None else max(0, s.start + 1 - window)
            k, v = _keys_and_values(stored[s.row : s.row + 1, first : s.stop])
            mask = self._mask(s.start - first, s.count, window)
            mixed = F.scaled_dot_product_attention(
                q[None, at : at + s.count].transpose(1, 2), k, v,
                attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True,
            )  # fmt: skip
            out[at : at + s.count] = mixed[0].transpose(0, 1)
            at += s.count
        return out.flatten(1)

    def _mask(self, before: int, count: int, window: int | None) -> Tensor | None:
        """Which of `before + count` tokens the last `count` see; None: all up to themselves."""
        if not before and (window is None or count <= window):
            return None
        key = (before, count, window or 0)
        if key not in self._masks:
            slots = torch.arange(before + count)
            self._masks[key] = ~_hidden(slots, slots[before:, None], window)
        return self._masks[key]


def _keys_and_values(stored: Tensor) -> tuple[Tensor, Tensor]:
    """Views ``[rows, kv_heads, tokens, head_dim]`` of what a `KvCache` stores."""
    k, v = stored.transpose(1, 2).chunk(2, dim=1)
    return k, v


def _hidden(slots: Tensor, at: Tensor, window: int | None) -> Tensor:
    """Which slots a token at position `at` doesn't see."""
    return slots > at if window is None else (slots > at) | (slots <= at - window)


def pieces(segments: Iterable[Segment], most: int) -> Iterable[tuple[Segment, ...]]:
    """Cut segments up so that no forward has more than `most` tokens.

    >>> [len(p) for p in pieces([Segment(0, 0, 3), Segment(1, 0, 3)], 4)]
    [2, 1]
    """
    held: list[Segment] = []
    room = most
    for segment in segments:
        start = segment.start
        while start < segment.stop:
            count = min(room, segment.stop - start)
            held.append(Segment(segment.row, start, count))
            start, room = start + count, room - count
            if not room:
                yield tuple(held)
                held, room = [], most
    if held:
        yield tuple(held)

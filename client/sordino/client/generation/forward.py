"""One forward of new tokens over a cache: the same for a prompt and for a single token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sordino.client.generation.cache import Attention, KvCache, OneEach, Segment, Several, rotate_
from sordino.client.generation.model import GenerationModel, Layer
from sordino.client.model.architecture import Architecture
from sordino.client.model.elementwise import activate


def forward_segments(
    model: GenerationModel, ids: Tensor, segments: tuple[Segment, ...], cache: KvCache
) -> Tensor:
    """Run the segments' tokens through all layers, and store their keys and values.

    Args:
        model: The base, with or without an adapter.
        ids: ``int64[tokens]``, segment after segment.
        segments: Where they belong; earlier tokens of these rows must be in the cache.
        cache: Is written to.

    Returns:
        ``float32[tokens, hidden]``, before the last norm.
    """
    positions = torch.cat([torch.arange(s.start, s.stop) for s in segments])
    rows = torch.repeat_interleave(
        torch.tensor([s.row for s in segments]), torch.tensor([s.count for s in segments])
    )
    return _forward(model, ids, rows, positions, cache, Several(segments))


def forward_one_each(
    model: GenerationModel, ids: Tensor, positions: tuple[int, ...], cache: KvCache
) -> Tensor:
    """Run one token of every row of the cache; as `forward_segments`, and faster."""
    at = torch.tensor(positions)
    return _forward(model, ids, torch.arange(len(positions)), at, cache, OneEach(positions))


def _forward(
    model: GenerationModel,
    ids: Tensor,
    rows: Tensor,
    positions: Tensor,
    cache: KvCache,
    attention: Attention,
) -> Tensor:
    slots = rows * cache.capacity + positions
    tokens = _Tokens(model.architecture, positions, slots, cache, attention)
    x = model.embed(ids, positions)
    for layer, stored in zip(model.layers, cache.layers, strict=True):
        x = tokens.through(layer, stored, x)
    return x


@dataclass(frozen=True)
class _Tokens:
    """The new tokens of a forward.

    Attributes:
        arch: Of the model.
        positions: ``int64[tokens]``, each within its row.
        slots: ``int64[tokens]``, each within the cache, rows laid end to end.
        cache: Where their keys and values go.
        attention: Over what is stored.
    """

    arch: Architecture
    positions: Tensor
    slots: Tensor
    cache: KvCache
    attention: Attention

    def through(self, layer: Layer, stored: Tensor, x: Tensor) -> Tensor:
        """Apply one layer to ``[tokens, hidden]``."""
        mixed = self._attend(layer, stored, layer.norm("before_attention", x))
        mixed = layer.norm("after_attention", mixed)
        if self.arch.parts.parallel:
            return x + mixed + self._mlp(layer, layer.norm("before_mlp", x))
        x = x + mixed
        return x + layer.norm("after_mlp", self._mlp(layer, layer.norm("before_mlp", x)))

    def _attend(self, layer: Layer, stored: Tensor, x: Tensor) -> Tensor:
        arch, turned = self.arch, self.arch.heads + self.arch.kv_heads
        heads = layer.qkv(x).view(x.shape[0], -1, arch.head_dim)
        q, k = heads[:, : arch.heads], heads[:, arch.heads : turned]
        if "query" in layer.norms:
            q.copy_(layer.norm("query", q))
        if "key" in layer.norms:
            k.copy_(layer.norm("key", k))
        if layer.rope:
            rotate_(heads[:, :turned], self.cache.angles[layer.rope], self.positions)
        stored.view(-1, *stored.shape[2:]).index_copy_(0, self.slots, heads[:, arch.heads :])
        mixed = self.attention(q, stored, window=layer.window, scale=arch.attention_scale)
        return layer.o(mixed)

    def _mlp(self, layer: Layer, x: Tensor) -> Tensor:
        name = self.arch.parts.activation
        up = layer.up(x)
        if "gate" not in self.arch.family.linears:
            return layer.down(activate(name, up))
        gate, up = up.chunk(2, dim=1)
        return layer.down(activate(name, gate).mul_(up))

"""Prompts: what they may be, what they begin with in common, and how they enter the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sordino.client.generation.cache import KvCache, Segment, pieces
from sordino.client.generation.forward import forward_segments
from sordino.client.generation.model import GenerationModel
from sordino.core.errors import DataError, ModelError, expected

Ids = Sequence[int]

_PIECE = 1024  # tokens in one forward of prompts: what it holds is a few MB, whatever the prompts
_WORTH = 16  # a prefix is shared where that spares so many tokens: a forward of its own costs more


@dataclass(frozen=True, eq=False)
class Prefix:
    """Tokens whose keys and values are known.

    Attributes:
        ids: The tokens.
        layers: ``float32[len(ids), 2 * kv_heads, head_dim]`` each.
        model: That computed them; they are of no use to another, nor with another adapter.
    """

    ids: tuple[int, ...]
    layers: tuple[Tensor, ...]
    model: GenerationModel

    def cut(self, length: int) -> Prefix:
        """Its first tokens; nothing is copied."""
        return Prefix(self.ids[:length], tuple(x[:length] for x in self.layers), self.model)


@torch.inference_mode()
def prefill(model: GenerationModel, ids: Ids, *, after: Prefix | None = None) -> Prefix:
    """Compute what prompts begin with, once for all that do.

    Args:
        model: From `prepare`.
        ids: At least one.
        after: A prefix to go on from: what its beginning has in common with `ids` isn't computed
            again. A chat hands in the last turn's.

    Raises:
        DataError: `ids` is empty, or holds one that isn't in the vocabulary.
        ModelError: It is longer than what the model was made for, or `after` is another model's.
    """
    check_prompts(model, [ids])
    _check_owner(model, after)
    known = after.cut(_common([ids, after.ids])) if after else None
    cache = begin(model, 1, len(ids), known)
    for _ in feed(model, [ids], cache, known):
        pass  # what counts is the cache
    return Prefix(tuple(ids), tuple(layer[0] for layer in cache.layers), model)


def shared_prefix(
    model: GenerationModel, prompts: Sequence[Ids], known: Prefix | None
) -> Prefix | None:
    """What all prompts begin with, as far as it is known or worth computing once.

    Each prompt keeps its last token to itself: that is where its logits come from.

    Raises:
        ModelError: What is known is another model's.
    """
    _check_owner(model, known)
    if not prompts:
        return None
    common = min(_common(prompts), min(map(len, prompts)) - 1)
    ids = tuple(prompts[0][:common])
    reused = _common([ids, known.ids]) if known else 0
    if (common - reused) * (len(prompts) - 1) >= _WORTH:
        return prefill(model, ids, after=known)
    return known.cut(reused) if known else None


def _common(sequences: Sequence[Ids]) -> int:
    """How many first ids all sequences share."""
    # All lie between the smallest and the largest, so what these two share, all do.
    low, high = min(map(tuple, sequences)), max(map(tuple, sequences))
    pairs = zip(low, high, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(low), len(high)))


def begin(model: GenerationModel, rows: int, capacity: int, shared: Prefix | None) -> KvCache:
    """A cache in which every row begins with the shared prefix."""
    cache = KvCache(model.architecture, rows, capacity)
    if shared:
        cache.begin_with(shared.layers)
    return cache


def feed(
    model: GenerationModel, rows: Sequence[Ids], cache: KvCache, shared: Prefix | None
) -> Iterator[tuple[Segment, Tensor]]:
    """Run whole rows, without what they share, into a cache from `begin`.

    Yields:
        Consecutive tokens of one row, and the last layer's output for them,
        ``float32[count, hidden]``. A long row comes in several segments.
    """
    start = len(shared.ids) if shared else 0
    segments = [Segment(row, start, len(ids) - start) for row, ids in enumerate(rows)]
    for piece in pieces(segments, _PIECE):
        ids = torch.tensor([i for s in piece for i in rows[s.row][s.start : s.stop]])
        outputs = forward_segments(model, ids, piece, cache).split([s.count for s in piece])
        yield from zip(piece, outputs, strict=True)


def check_prompts(
    model: GenerationModel, prompts: Sequence[Ids], new: int = 0, what: str = "prompts"
) -> None:
    """Refuse what the model can't go on from.

    Args:
        model: Whose vocabulary and positions count.
        prompts: To check.
        new: Tokens that are to be written after each.
        what: Their name in a message.

    Raises:
        DataError: One is empty, or holds an id that isn't in the vocabulary.
        ModelError: One is too long.
    """
    arch = model.architecture
    for index, ids in enumerate(prompts):
        if not ids:
            raise DataError(expected(f"{what}[{index}]", 0, "of at least one token"))
        wrong = next((i for i in ids if not 0 <= i < arch.vocabulary), None)
        if wrong is not None:
            raise DataError(
                expected(f"ids of {what}[{index}]", wrong, f"in [0, {arch.vocabulary})")
            )
        if len(ids) + new > arch.positions:
            raise ModelError(
                f"{what}[{index}] has {len(ids)} tokens, and {new} more are asked for: "
                f"the model was made for {arch.positions}; shorten it or lower max_new_tokens"
            )


def _check_owner(model: GenerationModel, prefix: Prefix | None) -> None:
    if prefix is not None and prefix.model is not model:
        raise ModelError(
            "the prefix was computed by another model or with another adapter: call prefill again"
        )

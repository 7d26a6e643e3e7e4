"""How likely given continuations are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sordino.client.generation.model import GenerationModel
from sordino.client.generation.prompts import (
    Ids,
    Prefix,
    begin,
    check_prompts,
    feed,
    shared_prefix,
)
from sordino.core.errors import ConfigError, DataError, expected

_HEAD_ROWS = 64  # rows of logits at once: 49152 tokens in float32 are 0.2 MB a row


@torch.inference_mode()
def score(
    model: GenerationModel,
    prompts: Sequence[Ids],
    continuations: Sequence[Ids],
    *,
    prefix: Prefix | None = None,
    batch_size: int = 16,
) -> list[Tensor]:
    """Log-probabilities of given continuations, each token's under all before it.

    Args:
        model: From `prepare`.
        prompts: Ids of each, at least one.
        continuations: One for each prompt, at least one id. To compare many continuations of one
            prompt, repeat the prompt: it is computed once.
        prefix: As in `sordino.client.generate.stream`.
        batch_size: Sequences that are computed together.

    Returns:
        For each prompt ``float32[len(continuation)]``, natural logarithms.

    Raises:
        DataError: One is empty or holds an id that isn't in the vocabulary, or they differ in
            number.
        ModelError: A prompt and its continuation are longer than what the model was made for, or
            the prefix is another model's.
        ConfigError: `batch_size` is below 1.
    """
    if len(prompts) != len(continuations):
        raise DataError(
            expected("continuations", len(continuations), f"as many as prompts, {len(prompts)}")
        )
    if batch_size < 1:
        raise ConfigError(expected("batch_size", batch_size, ">= 1"))
    check_prompts(model, prompts)
    check_prompts(model, continuations, what="continuations")
    whole = [(*p, *c) for p, c in zip(prompts, continuations, strict=True)]
    check_prompts(model, whole, what="prompt and continuation")
    shared, out = shared_prefix(model, prompts, prefix), []
    for at in range(0, len(whole), batch_size):
        rows = whole[at : at + batch_size]
        firsts = [len(p) for p in prompts[at : at + batch_size]]
        out += _score_batch(model, rows, firsts, shared)
    return out


def _score_batch(
    model: GenerationModel, rows: list[tuple[int, ...]], firsts: list[int], shared: Prefix | None
) -> list[Tensor]:
    """Score each row from its `firsts`-th token on."""
    cache = begin(model, len(rows), max(map(len, rows)), shared)
    found: list[list[Tensor]] = [[] for _ in rows]
    for s, x in feed(model, [ids[:-1] for ids in rows], cache, shared):
        skip = max(0, firsts[s.row] - 1 - s.start)  # a token's logits are those of the next one
        targets = rows[s.row][s.start + skip + 1 : s.stop + 1]
        if targets:
            found[s.row].append(_log_probs(model, x[skip:], torch.tensor(targets)))
    return [torch.cat(parts) for parts in found]


def _log_probs(model: GenerationModel, x: Tensor, targets: Tensor) -> Tensor:
    tiles = zip(x.split(_HEAD_ROWS), targets.split(_HEAD_ROWS), strict=True)
    return torch.cat([log_probs_of(model.logits(rows), ids) for rows, ids in tiles])


def log_probs_of(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of one id a row, ``float32[rows]``, without normalising the others."""
    return logits.gather(1, ids[:, None]).squeeze(1) - logits.logsumexp(-1)

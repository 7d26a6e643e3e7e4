"""Write text with a quantized base and an adapter: many prompts at once, over a cache.

    model = prepare(base.decoder).with_adapter(adapter.tensors, scale=adapter.scale)
    done = generate(model, prompts, max_new_tokens=64, stop_ids=[tokenizer.eos_token_id])
    for token in stream(model, [prompt], max_new_tokens=64): ...
    log_probs = score(model, prompts, continuations)

Prompts are whole sequences of ids. What they begin with in common, such as a system prompt, is
computed once; a `Prefix` carries it over from one call to the next. A row's result doesn't depend
on which others it is computed with, but for rounding: nothing is padded, and each prompt has random
numbers of its own.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sordino.client.generation.forward import forward_one_each
from sordino.client.generation.model import GenerationModel, prepare
from sordino.client.generation.prompts import (
    Ids,
    Prefix,
    begin,
    check_prompts,
    feed,
    prefill,
    shared_prefix,
)
from sordino.client.generation.results import Completion, Finish, Generation, Timing, Token
from sordino.client.generation.sampling import GREEDY, Sampling, choose
from sordino.client.generation.scoring import log_probs_of, score
from sordino.core.errors import ConfigError, expected

__all__ = [
    "GREEDY",
    "Completion",
    "Generation",
    "GenerationModel",
    "Prefix",
    "Sampling",
    "Timing",
    "Token",
    "generate",
    "prefill",
    "prepare",
    "score",
    "stream",
]


def generate(
    model: GenerationModel,
    prompts: Sequence[Ids],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stop_ids: Collection[int] = (),
    prefix: Prefix | None = None,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
) -> Generation:
    """Write on from every prompt. Arguments and errors are those of `stream`."""
    began = time.perf_counter()
    first = began
    tokens: list[list[Token]] = [[] for _ in prompts]
    for token in stream(
        model, prompts, max_new_tokens=max_new_tokens, sampling=sampling, stop_ids=stop_ids,
        prefix=prefix, batch_size=batch_size, generator=generator,
    ):  # fmt: skip
        if first == began:
            first = time.perf_counter()
        tokens[token.prompt].append(token)
    ended = time.perf_counter()
    return Generation(
        completions=tuple(_completion(own) for own in tokens),
        timing=Timing(
            first_token_s=first - began,
            total_s=ended - began,
            new_tokens=sum(len(own) for own in tokens),
        ),
    )


def stream(
    model: GenerationModel,
    prompts: Sequence[Ids],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stop_ids: Collection[int] = (),
    prefix: Prefix | None = None,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
) -> Iterator[Token]:
    """Write on from every prompt, and hand each token out as soon as it is known.

    Args:
        model: From `prepare`.
        prompts: Ids of each, at least one; they may differ in length.
        max_new_tokens: For each prompt.
        sampling: Greedy by default.
        stop_ids: The first of these ends a completion, and is its last token.
        prefix: What earlier calls computed of how the prompts begin. As much of it as fits is used.
        batch_size: Prompts that are computed together. It changes no result.
        generator: What chance comes from, where `sampling` needs it; each prompt takes its
            `max_new_tokens` numbers from it in turn. None: seeded by the operating system.

    Yields:
        Tokens, all of one step before the next; batches of prompts one after another.

    Raises:
        DataError: A prompt is empty, or holds an id that isn't in the vocabulary.
        ModelError: A prompt and its completion are longer than what the model was made for, or the
            prefix is another model's.
        ConfigError: A number is impossible.
    """
    for field, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(expected(field, value, ">= 1"))
    check_prompts(model, prompts, max_new_tokens)
    how = _How(max_new_tokens, sampling, frozenset(stop_ids))
    uniforms = _uniforms(len(prompts), how, generator)
    return _stream(model, prompts, how, shared_prefix(model, prompts, prefix), batch_size, uniforms)


@dataclass(frozen=True)
class _How:
    """What `stream` was asked for, for every prompt alike."""

    max_new_tokens: int
    sampling: Sampling
    stop_ids: frozenset[int]

    def finish(self, token: int, step: int) -> Finish | None:
        """Why a token would be a completion's last."""
        if token in self.stop_ids:
            return "stop"
        return "length" if step + 1 == self.max_new_tokens else None


@torch.inference_mode()
def _stream(
    model: GenerationModel,
    prompts: Sequence[Ids],
    how: _How,
    shared: Prefix | None,
    batch_size: int,
    uniforms: Tensor | None,
) -> Iterator[Token]:
    for start in range(0, len(prompts), batch_size):
        own = slice(start, start + batch_size)
        chance = None if uniforms is None else uniforms[own]
        for token in _write(model, prompts[own], how, shared, chance):
            yield replace(token, prompt=start + token.prompt)


def _write(
    model: GenerationModel,
    prompts: Sequence[Ids],
    how: _How,
    shared: Prefix | None,
    uniforms: Tensor | None,
) -> Iterator[Token]:
    """Write on from one batch of prompts."""
    cache = begin(model, len(prompts), max(map(len, prompts)) + how.max_new_tokens, shared)
    fed = feed(model, prompts, cache, shared)
    logits = model.logits(torch.stack([x[-1] for s, x in fed if s.stop == len(prompts[s.row])]))
    rows = list(range(len(prompts)))  # the prompts of the cache's rows
    going = set(rows)
    for step in range(how.max_new_tokens):
        chosen = choose(logits, how.sampling, None if uniforms is None else uniforms[rows, step])
        ids: list[int] = chosen.tolist()
        for row, token, log_prob in zip(
            rows, ids, log_probs_of(logits, chosen).tolist(), strict=True
        ):
            if row in going:
                finish = how.finish(token, step)
                yield Token(prompt=row, id=token, log_prob=log_prob, finish=finish)
                going -= {row} if finish else set()
        if not going:
            return
        if 2 * len(going) <= len(rows):  # copying the cache costs about as much as a step
            kept = [i for i, row in enumerate(rows) if row in going]
            cache.keep(torch.tensor(kept))
            rows, ids = [rows[i] for i in kept], [ids[i] for i in kept]
        positions = tuple(len(prompts[row]) + step for row in rows)
        logits = model.logits(forward_one_each(model, torch.tensor(ids), positions, cache))


def _uniforms(prompts: int, how: _How, generator: torch.Generator | None) -> Tensor | None:
    """``float64[prompts, tokens]``, drawn prompt by prompt; None if nothing is left to chance."""
    if how.sampling.temperature == 0 or not prompts:
        return None
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    size = how.max_new_tokens
    rows = [torch.rand(size, dtype=torch.float64, generator=generator) for _ in range(prompts)]
    return torch.stack(rows)


def _completion(tokens: Sequence[Token]) -> Completion:
    return Completion(
        ids=tuple(token.id for token in tokens),
        log_probs=tuple(token.log_prob for token in tokens),
        finish=tokens[-1].finish or "length",
    )

"""Text that a model is made to write, and how likely it finds guesses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sordino.client.generate import GenerationModel, generate, score
from sordino.client.generation.prompts import begin, check_prompts, feed, shared_prefix

Ids = Sequence[int]


@dataclass(frozen=True)
class Suffix:
    """How a record's own continuation of its prefix fares.

    Attributes:
        matched: How many of its tokens greedy decoding writes before the first other one.
        length: How many it has.
        log_prob: Of the whole suffix, by sampling at temperature 1 without cuts.
        completion: What greedy decoding wrote.
    """

    matched: int
    length: int
    log_prob: float
    completion: tuple[int, ...]

    @property
    def extracted(self) -> bool:
        """Greedy decoding wrote all of it."""
        return self.matched == self.length


def complete_suffixes(
    model: GenerationModel,
    prefixes: Sequence[Ids],
    suffixes: Sequence[Ids],
    *,
    batch_size: int = 16,
) -> list[Suffix]:
    """Let the model go on from each prefix, and hold it against the true suffix.

    Args:
        model: From `prepare`, with the adapter to be judged.
        prefixes: Ids of each, at least one.
        suffixes: What followed, at least one id each.
        batch_size: Sequences that are computed together.

    Raises:
        DataError: One is empty, or holds an id that isn't in the vocabulary.
        ModelError: One is too long for the model.
    """
    if not suffixes:
        return []
    longest = max(map(len, suffixes))
    written = generate(model, prefixes, max_new_tokens=longest, batch_size=batch_size)
    likely = score(model, prefixes, suffixes, batch_size=batch_size)
    found = []
    for done, log_probs, truth in zip(written.completions, likely, suffixes, strict=True):
        same = [a == b for a, b in zip(done.ids, truth, strict=False)]
        matched = same.index(False) if False in same else len(same)
        total = float(log_probs.double().sum())
        found.append(Suffix(matched, len(truth), total, tuple(done.ids[: len(truth)])))
    return found


@torch.inference_mode()
def rank_candidates(
    model: GenerationModel, prompt: Ids, candidates: Sequence[Ids]
) -> NDArray[np.float64]:
    """Log-probability of each candidate after one prompt, ``float64[candidates]``.

    What candidates begin with in common is computed once: a thousand codes of three digits are a
    hundred short rows.

    Args:
        model: From `prepare`.
        prompt: Ids, at least one.
        candidates: At least one id each. Those of one length compare as they are.

    Raises:
        DataError: One is empty, or holds an id that isn't in the vocabulary.
        ModelError: The prompt and a candidate are longer than what the model was made for.
    """
    given = [tuple(c) for c in candidates]
    check_prompts(model, [prompt])
    check_prompts(model, given, what="candidates")
    parents = sorted({c[:-1] for c in given})
    rows = [(*prompt, *parent) for parent in parents]
    check_prompts(model, rows, 1, what="prompt and candidate")
    children: dict[tuple[int, ...], set[int]] = {}
    for path in given:
        for depth, token in enumerate(path):
            children.setdefault(path[:depth], set()).add(token)
    known: dict[tuple[int, ...], float] = {}
    shared = shared_prefix(model, [prompt, *rows], None)  # no more than the prompt: see below
    cache = begin(model, len(rows), max(map(len, rows)), shared)
    for segment, x in feed(model, rows, cache, shared):
        # Of the segment's tokens, those from the prompt's last one on say what a candidate begins
        # with or goes on with.
        first = max(0, len(prompt) - 1 - segment.start)
        for at in range(first, segment.count):
            path = parents[segment.row][: segment.start + at + 1 - len(prompt)]
            wanted = sorted(children.pop(path, ()))
            if wanted:
                found = model.logits(x[at : at + 1])[0].double().log_softmax(-1)[wanted]
                known |= {(*path, i): v for i, v in zip(wanted, found.tolist(), strict=True)}
    return np.array([sum(known[c[: i + 1]] for i in range(len(c))) for c in given])

"""Which token comes next: the likeliest, or one drawn from a distribution that is cut to size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sordino.core.errors import ConfigError, expected

_LIKELY = 256  # a nucleus is nearly always among so few; sorting a whole vocabulary costs 100 times


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen; the defaults are greedy.

    The order is that of transformers: temperature, then top-k, then top-p of what is left.

    Attributes:
        temperature: What logits are divided by; 0: take the likeliest token, the first of equals.
        top_k: Keep so many of the likeliest; 0: all.
        top_p: Of these keep the fewest likeliest whose probabilities reach this; 1: all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what can't be.

        Raises:
            ConfigError: Names the field.
        """
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ConfigError(expected("temperature", self.temperature, ">= 0"))
        if self.top_k < 0:
            raise ConfigError(expected("top_k", self.top_k, ">= 0"))
        if not 0 < self.top_p <= 1:
            raise ConfigError(expected("top_p", self.top_p, "in (0, 1]"))


GREEDY = Sampling()


def choose(logits: Tensor, sampling: Sampling, uniforms: Tensor | None = None) -> Tensor:
    """Choose a token for each row.

    Args:
        logits: ``float32[rows, vocabulary]``.
        sampling: How.
        uniforms: ``float64[rows]`` in [0, 1), one a row: what chance decides. Not used if greedy.

    Returns:
        ``int64[rows]``.
    """
    if sampling.temperature == 0 or uniforms is None:
        return logits.argmax(-1)
    weights, ids = kept(logits, sampling)
    sums = weights.cumsum(-1)
    at = torch.searchsorted(sums, (uniforms[:, None] * sums[:, -1:]), right=True)
    # A uniform just below 1 can round up to the whole sum: then it is the last with a weight.
    last = (sums < sums[:, -1:]).sum(-1, keepdim=True)
    at = torch.minimum(at, last)
    return (at if ids is None else ids.gather(1, at)).squeeze(1)


def kept(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """The distribution that a token is drawn from.

    Returns:
        Weights ``float64[rows, candidates]``, not normed to 1, and the candidates' ids, the
        likeliest first; None: all tokens as they are numbered.
    """
    scaled = logits.double() / sampling.temperature
    vocabulary = scaled.shape[1]
    most = min(sampling.top_k or vocabulary, vocabulary)
    if sampling.top_p == 1:
        if most == vocabulary:
            return (scaled - scaled.amax(-1, keepdim=True)).exp(), None
        values, ids = scaled.topk(most)
        return (values - values[:, :1]).exp(), ids
    return _nucleus(scaled, most, sampling.top_p)


def _nucleus(scaled: Tensor, most: int, top_p: float) -> tuple[Tensor, Tensor]:
    few = min(_LIKELY, most)
    values, ids = scaled.topk(few)
    highest = values[:, :1]
    weights = (values - highest).exp()
    if few == most:
        total = weights.sum(-1, keepdim=True)
    else:
        # Without top-k the total is over the vocabulary; with a large one it takes the larger cut.
        everything = scaled if most == scaled.shape[1] else scaled.topk(most).values
        total = (everything - highest).exp().sum(-1, keepdim=True)
        if bool((weights.sum(-1, keepdim=True) < top_p * total).any()):
            values, ids = scaled.topk(most)
            weights = (values - highest).exp()
    before = weights.cumsum(-1) - weights
    return weights.masked_fill(before >= top_p * total, 0.0), ids

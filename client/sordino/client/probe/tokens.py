"""Per-token log-probabilities of whole records, and where each stands among its alternatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sordino.client.batches import Tokens, make_batch
from sordino.client.lora import LoraAdapter
from sordino.client.model.decoder import Decoder, frozen_linears
from sordino.client.model.loss import logit_tiles
from sordino.client.model.matrices import Matrix


@dataclass(frozen=True)
class TokenScores:
    """One record's counted tokens, each under all before it.

    Attributes:
        log_probs: ``float32[tokens]``, natural logarithms.
        means: The expected log-probability of a token drawn from the model there.
        spreads: That log-probability's standard deviation.
        ranks: How many tokens of the vocabulary are likelier.
    """

    log_probs: NDArray[np.float32]
    means: NDArray[np.float32]
    spreads: NDArray[np.float32]
    ranks: NDArray[np.int32]

    @property
    def loss(self) -> float:
        """Mean loss a token, in nats."""
        return float(-self.log_probs.mean(dtype=np.float64))


@torch.no_grad()
def token_scores(
    decoder: Decoder,
    adapter: LoraAdapter | None,
    records: Sequence[Tokens],
    *,
    micro_batch: int = 16,
) -> list[TokenScores]:
    """Score every counted token of each record. The scores are exact, and so private.

    Args:
        decoder: The frozen base.
        adapter: Over it; None: the base alone.
        records: Each with at least one counted token.
        micro_batch: Records that go through the model at once, those of like length together. It
            changes no result but for rounding.
    """
    found: list[TokenScores | None] = [None] * len(records)
    linears = frozen_linears if adapter is None else adapter.linears
    order = sorted(range(len(records)), key=lambda i: len(records[i].ids))
    for at in range(0, len(order), micro_batch):
        chosen = order[at : at + micro_batch]
        batch = make_batch([records[i] for i in chosen])
        hidden = decoder.hidden(batch.ids, batch.packing, linears=linears)
        columns = _score(hidden[batch.rows], decoder.head, batch.targets)
        counts = torch.bincount(batch.owners, minlength=len(chosen)).tolist()
        split = [column.split(counts) for column in columns]
        for i, parts in zip(chosen, zip(*split, strict=True), strict=True):
            found[i] = TokenScores(*(part.numpy() for part in parts))
    return [scores for scores in found if scores is not None]


def _score(hidden: Tensor, head: Matrix, targets: Tensor) -> tuple[Tensor, ...]:
    """Log-probability, mean, spread and rank of each row's target, the vocabulary walked once.

    The moments are taken about the target's own logit, and the weights relative to the largest
    logit so far: what was gathered is scaled down when a larger one comes.
    """
    gold = (hidden * head.gather(targets, hidden.dtype)).sum(1, keepdim=True)
    largest = torch.full_like(gold, -torch.inf)
    total, first, second = (torch.zeros_like(gold, dtype=torch.float64) for _ in range(3))
    above = torch.zeros(len(targets), dtype=torch.int32)
    for _, _, logits in logit_tiles(hidden, head):
        shrink, largest = largest, torch.maximum(largest, logits.amax(1, keepdim=True))
        weights = (logits - largest).exp_()
        apart = logits.sub_(gold)
        # The target's own logit comes out of another product here: a last digit must not count.
        above += (apart > 1e-4).sum(1, dtype=torch.int32)
        scale = (shrink - largest).exp_()
        total = total * scale + weights.sum(1, keepdim=True)
        first = first * scale + (weights.mul_(apart)).sum(1, keepdim=True)
        second = second * scale + (weights.mul_(apart)).sum(1, keepdim=True)
    normalizer = total.log() + (largest - gold)
    mean = first / total
    spread = (second / total - mean.square()).clamp_min(0).sqrt()
    rows = ((-normalizer).float(), (mean - normalizer).float(), spread.float())
    return (*(row.squeeze(1) for row in rows), above)

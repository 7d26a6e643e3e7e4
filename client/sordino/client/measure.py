"""What a paid metric looks at: one exact, private value a record. A plan alone lets it out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sordino.client.batches import Tokens, make_batch
from sordino.client.lora import LoraAdapter
from sordino.client.model.decoder import Decoder
from sordino.client.model.loss import logit_tiles
from sordino.client.model.matrices import Matrix
from sordino.client.train import evaluate
from sordino.core.errors import PlanError, expected


def record_values(
    metric: str,
    decoder: Decoder,
    adapter: LoraAdapter,
    records: Sequence[Tokens],
    *,
    micro_batch: int = 16,
) -> NDArray[np.float64]:
    """A metric of each record, ``float64[records]``: private, exact, unclipped.

    Each value depends on its own record alone, as it must for one record to move a clipped sum by
    no more than the clip.

    Args:
        metric: `loss`: the mean loss of the record's counted tokens, in nats; `accuracy`: the part
            of them that the model's first choice is right about.
        decoder: The frozen base.
        adapter: What is measured.
        records: The records.
        micro_batch: Records that go through the model at once.

    Raises:
        PlanError: No such metric.
    """
    if metric == "loss":
        sums = evaluate(decoder, adapter, records, micro_batch=micro_batch)
        return np.asarray(sums[:, 0] / sums[:, 1])
    if metric != "accuracy":
        raise PlanError(expected("metric", metric, "loss or accuracy"))
    values = np.empty(len(records))
    for at in range(0, len(records), micro_batch):
        values[at : at + micro_batch] = _accuracies(
            decoder, adapter, records[at : at + micro_batch]
        )
    return values


def _accuracies(
    decoder: Decoder, adapter: LoraAdapter, records: Sequence[Tokens]
) -> NDArray[np.float64]:
    batch = make_batch(records)
    with torch.no_grad():
        hidden = decoder.hidden(batch.ids, batch.packing, linears=adapter.linears)
        right = first_choices(hidden[batch.rows], decoder.head) == batch.targets
    owners = batch.owners.numpy()
    hits = np.bincount(owners, weights=right.numpy(), minlength=batch.records)
    return np.asarray(hits / np.bincount(owners, minlength=batch.records))


def first_choices(hidden: Tensor, head: Matrix) -> Tensor:
    """The token with the largest logit of each row, ``int64[rows]``, a tile of the head at a time.

    Args:
        hidden: ``[rows, hidden]``.
        head: The output matrix, ``[vocabulary, hidden]``.
    """
    best = hidden.new_full((hidden.shape[0],), -torch.inf)
    choice = torch.zeros(hidden.shape[0], dtype=torch.int64)
    for start, _, logits in logit_tiles(hidden, head):
        value, index = logits.max(dim=1)
        better = value > best
        best = torch.where(better, value, best)
        choice = torch.where(better, index + start, choice)
    return choice

"""Cross-entropy per record, without ever holding a batch × tokens × vocabulary buffer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sordino.client.model.matrices import Matrix
from sordino.client.model.scratch import scratch

LOGITS_BYTES = 8 * 2**20  # of one tile of logits
WEIGHT_BYTES = 8 * 2**20  # of the vocabulary rows that are made dense for it


class RecordCrossEntropy(Function):
    """Sum of weighted token losses for each record; the gradient is taken in the forward.

    The vocabulary is walked once, a tile at a time: the softmax is kept relative to the largest
    logit so far, and what was gathered is scaled down when a larger one comes (as Milakov and
    Gimelshein 2018 do for the normalizer, and attention kernels for the mixture). A tile of the
    head is thus made dense once for both of its products, and what is kept for the backward is
    one ``[tokens, hidden]`` tensor.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Matrix,
        targets: Tensor,
        owners: Tensor,
        weights: Tensor,
        records: int,
    ) -> Tensor:
        gold = head.gather(targets, hidden.dtype)
        gradient = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        largest = hidden.new_full((hidden.shape[0], 1), -torch.inf)
        total = torch.zeros_like(largest)
        for _, weight, logits in logit_tiles(hidden, head):
            shrink, largest = largest, torch.maximum(largest, logits.amax(1, keepdim=True))
            shrink.sub_(largest).exp_()
            logits.sub_(largest).exp_()
            total.mul_(shrink).add_(logits.sum(1, keepdim=True))
            if gradient is not None:
                gradient.mul_(shrink).addmm_(logits, weight)
        losses = hidden.new_zeros(records)
        of_gold = (hidden * gold).sum(1)
        normalizers = total.log().add_(largest).squeeze(1)
        losses.index_add_(0, owners, normalizers.sub_(of_gold).mul_(weights))
        if gradient is not None:
            weighted = weights[:, None]
            gradient.mul_(weighted / total).addcmul_(gold, weighted, value=-1)
            ctx.save_for_backward(gradient, owners)
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        gradient, owners = ctx.saved_tensors
        return gradient * grad[owners, None], None, None, None, None, None


def record_losses(
    hidden: Tensor, head: Matrix, targets: Tensor, owners: Tensor, records: int
) -> Tensor:
    """Mean token loss of each record.

    The mean is over that record's own tokens: a mean over the batch's would couple records, and
    one neighbour would move the clipped sum by more than the clip norm.

    Args:
        hidden: ``[predictions, hidden]``, the rows that predict a counted token.
        head: The output matrix, ``[vocabulary, hidden]``.
        targets: ``int64[predictions]``.
        owners: ``int64[predictions]``, the record of each row.
        records: Number of records.

    Returns:
        ``[records]``, differentiable in `hidden`.
    """
    counts = torch.bincount(owners, minlength=records)
    weights = (1.0 / counts.to(hidden.dtype))[owners]
    losses: Tensor = RecordCrossEntropy.apply(hidden, head, targets, owners, weights, records)  # type: ignore[no-untyped-call]
    return losses


def record_loss_sums(
    hidden: Tensor, head: Matrix, targets: Tensor, owners: Tensor, records: int
) -> Tensor:
    """Sum of token losses of each record, without a gradient: for evaluation."""
    with torch.no_grad():
        ones = torch.ones(targets.shape[0], dtype=hidden.dtype)
        sums: Tensor = RecordCrossEntropy.apply(hidden, head, targets, owners, ones, records)  # type: ignore[no-untyped-call]
    return sums


def logit_tiles(hidden: Tensor, head: Matrix) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Walk the vocabulary a tile at a time, so that all logits never stand side by side.

    Args:
        hidden: ``[rows, hidden]``.
        head: The output matrix, ``[vocabulary, hidden]``.

    Yields:
        Where a tile begins, its rows of the head, and its logits, ``[rows, tile]``; the last two
        are valid until the next is asked for, and may be written into.
    """
    rows, width = hidden.shape
    fits = min(LOGITS_BYTES // max(rows, 1), WEIGHT_BYTES // width) // hidden.element_size()
    size = max(fits, 1)
    for start in range(0, head.rows, size):
        stop = min(start + size, head.rows)
        buffer = scratch("weight", (stop - start, width), hidden.dtype)
        weight = head.tile(start, stop, hidden.dtype, buffer)
        logits = scratch("logits", (rows, stop - start), hidden.dtype)
        yield start, weight, torch.mm(hidden, weight.t(), out=logits)

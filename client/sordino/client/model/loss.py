"""Cross-entropy per record, without ever holding a batch × tokens × vocabulary buffer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sordino.client.model.matrices import Matrix

LOGITS_BYTES = 64 * 2**20  # of one chunk of logits
HEAD_TILE = 8192  # vocabulary rows that are made dense at once


class RecordCrossEntropy(Function):
    """Sum of weighted token losses for each record; the gradient is taken in the forward.

    The logits of a chunk of tokens are turned in place into their own gradient and multiplied back
    through the head at once, so what is kept for the backward is one ``[tokens, hidden]`` tensor.
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
        losses = hidden.new_zeros(records)
        wants_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wants_gradient else None
        for start, stop in _chunks(hidden.shape[0], head.rows, hidden.element_size()):
            logits = _logits(hidden[start:stop], head)
            gold = targets[start:stop, None]
            normalizer = torch.logsumexp(logits, dim=1, keepdim=True)
            token_losses = (normalizer - logits.gather(1, gold)).squeeze(1)
            token_losses.mul_(weights[start:stop])
            losses.index_add_(0, owners[start:stop], token_losses)
            if gradient is not None:
                logits.sub_(normalizer).exp_()
                logits.scatter_add_(1, gold, torch.full_like(normalizer, -1))
                logits.mul_(weights[start:stop, None])
                _back_through_head(logits, head, gradient[start:stop])
        if gradient is not None:
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


def _chunks(tokens: int, vocabulary: int, element_size: int) -> list[tuple[int, int]]:
    size = max(1, LOGITS_BYTES // (vocabulary * element_size))
    return [(at, min(at + size, tokens)) for at in range(0, tokens, size)]


def _tiles(head: Matrix) -> list[tuple[int, int]]:
    return [(at, min(at + HEAD_TILE, head.rows)) for at in range(0, head.rows, HEAD_TILE)]


def _logits(hidden: Tensor, head: Matrix) -> Tensor:
    logits = hidden.new_empty((hidden.shape[0], head.rows))
    for start, stop in _tiles(head):
        logits[:, start:stop] = hidden @ head.tile(start, stop, hidden.dtype).t()
    return logits


def _back_through_head(logits: Tensor, head: Matrix, out: Tensor) -> None:
    out.zero_()
    for start, stop in _tiles(head):
        out.addmm_(logits[:, start:stop], head.tile(start, stop, out.dtype))

"""Loss per token and perplexity, for each user or any other group of records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sordino.client.data.records import Record
from sordino.client.evaluation.subject import Subject
from sordino.client.lora import LoraAdapter
from sordino.client.train import evaluate
from sordino.core.stats import perplexity

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class GroupFigures:
    """How well a group's records are predicted.

    Attributes:
        group: A user's name, or `ALL`.
        records: Those that have a token to predict.
        left_out: Those that have none, or can't be written as tokens.
        tokens: Predicted.
        loss: Nats a token; None where no record is left.
        perplexity: e to the loss.
    """

    group: str
    records: int
    left_out: int
    tokens: int
    loss: float | None
    perplexity: float | None


def group_figures(
    subject: Subject, groups: Mapping[str, Sequence[Record]], max_tokens: int
) -> list[GroupFigures]:
    """Figures of each group, and of `ALL` of them together, first.

    A group's loss is the sum over its tokens by their number, so that a long record counts as it
    does when it is read.
    """
    lora = subject.lora()
    rows = [_group(subject, lora, name, groups[name], max_tokens) for name in sorted(groups)]
    loss = sum(row.loss * row.tokens for row in rows if row.loss is not None)
    total = _figures(
        ALL,
        sum(row.records for row in rows),
        sum(row.left_out for row in rows),
        sum(row.tokens for row in rows),
        loss,
    )
    return [total, *rows]


def _group(
    subject: Subject,
    lora: LoraAdapter | None,
    name: str,
    records: Sequence[Record],
    max_tokens: int,
) -> GroupFigures:
    encoded = subject.tokenizer.encode_records(records, max_tokens)
    sums = evaluate(subject.decoder, lora, encoded.records)
    loss, tokens = (float(column) for column in np.sum(sums, axis=0))
    return _figures(name, len(encoded.records), len(encoded.dropped), int(tokens), loss)


def _figures(name: str, records: int, left_out: int, tokens: int, loss: float) -> GroupFigures:
    mean = loss / tokens if tokens else None
    return GroupFigures(
        group=name,
        records=records,
        left_out=left_out,
        tokens=tokens,
        loss=mean,
        perplexity=None if mean is None else perplexity(mean),
    )

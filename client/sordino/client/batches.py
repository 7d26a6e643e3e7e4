"""Tokenized records into packed inputs: which rows predict which tokens of which record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sordino.client.model.packing import Packing


class Tokens(Protocol):
    """A tokenized record: its ids, and which of them the loss counts."""

    @property
    def ids(self) -> NDArray[np.int32]:
        """``int32[tokens]``."""
        ...

    @property
    def targets_mask(self) -> NDArray[np.bool_]:
        """``bool[tokens]``; True where predicting this token counts. The first can't be."""
        ...


@dataclass(frozen=True)
class View:
    """One way of seeing a record: each row reads a token and may have to predict the next.

    Attributes:
        inputs: ``int32[rows]``, what is read.
        targets: ``int32[rows]``, what comes next.
        counted: ``bool[rows]``, whether the loss counts it; somewhere True.
    """

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]
    counted: NDArray[np.bool_]


@dataclass(frozen=True)
class Viewed:
    """A record as one or more views of it; its loss is the mean of theirs.

    They are averaged before the clip, so however many there are it is one record, which moves the
    clipped sum by at most C: De et al. 2022, section 3.2 ("augmentation multiplicity").
    """

    views: tuple[View, ...]


Example = Tokens | Viewed


def views_of(record: Example) -> tuple[View, ...]:
    """A record's views: itself, unless it was given several."""
    if isinstance(record, Viewed):
        return record.views
    # The last token predicts nothing, and nothing predicts the first.
    return (View(record.ids[:-1], record.ids[1:], record.targets_mask[1:]),)


def token_count(record: Example) -> int:
    """Tokens of a record that go through the model, over all its views."""
    return sum(len(view.inputs) for view in views_of(record))


@dataclass(frozen=True)
class Batch:
    """Records packed for one forward, the views of each one after another.

    Attributes:
        ids: ``int64[tokens]``, what is read.
        packing: Where each view lies.
        views: Number of views of each record.
        rows: ``int64[predictions]``, the rows whose prediction counts.
        targets: ``int64[predictions]``, what they should predict.
        owners: ``int64[predictions]``, the view of each.
    """

    ids: Tensor
    packing: Packing
    views: tuple[int, ...]
    rows: Tensor
    targets: Tensor
    owners: Tensor

    @property
    def records(self) -> int:
        """Number of records."""
        return len(self.views)

    @property
    def sequences(self) -> int:
        """Number of views of all records."""
        return len(self.packing.lengths)

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """Start and stop row of each record, all its views within."""
        starts = np.cumsum([0, *self.views])
        rows = self.packing.bounds
        return [(rows[a][0], rows[b - 1][1]) for a, b in pairwise(starts.tolist())]

    def record_means(self, losses: Tensor) -> Tensor:
        """The mean over each record's views of ``[sequences]``, ``[records]``."""
        counts = torch.tensor(self.views)
        owners = torch.repeat_interleave(torch.arange(self.records), counts)
        sums = losses.new_zeros(self.records).index_add(0, owners, losses)
        return sums / counts.to(losses.dtype)


def make_batch(records: Sequence[Example]) -> Batch:
    """Pack records; each view must have at least one counted token."""
    several = [views_of(record) for record in records]
    views = [view for some in several for view in some]
    starts = np.cumsum([0, *(len(view.inputs) for view in views)])
    counted = [np.flatnonzero(view.counted) for view in views]
    return Batch(
        ids=_join([view.inputs for view in views]),
        packing=Packing(tuple(len(view.inputs) for view in views)),
        views=tuple(len(some) for some in several),
        rows=_join([rows + at for rows, at in zip(counted, starts[:-1], strict=True)]),
        targets=_join([view.targets[rows] for view, rows in zip(views, counted, strict=True)]),
        owners=_join([np.full(len(rows), owner) for owner, rows in enumerate(counted)]),
    )


def micro_batches(records: Sequence[Example], size: int, tokens: int = 0) -> list[list[Example]]:
    """Split a batch into physical ones, records of like length together.

    Args:
        records: The batch.
        size: The most views at once.
        tokens: The most tokens at once; 0: any number. A record with more views or tokens goes
            by itself: its gradient is made whole.
    """
    parts: list[list[Example]] = []
    views = held = 0
    for record in sorted(records, key=token_count):
        views += len(views_of(record))
        held += token_count(record)
        if not parts or views > size or (tokens and held > tokens):
            parts.append([])
            views, held = len(views_of(record)), token_count(record)
        parts[-1].append(record)
    return parts


def _join(parts: Sequence[NDArray[np.int32] | NDArray[np.intp]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))

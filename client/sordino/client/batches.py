"""Tokenized records into packed inputs: which rows predict which tokens of which record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
class Batch:
    """Records packed for one forward.

    Attributes:
        ids: ``int64[tokens]``; each record without its last token, which predicts nothing.
        packing: Where each record lies.
        rows: ``int64[predictions]``, the rows whose prediction counts.
        targets: ``int64[predictions]``, what they should predict.
        owners: ``int64[predictions]``, the record of each.
    """

    ids: Tensor
    packing: Packing
    rows: Tensor
    targets: Tensor
    owners: Tensor

    @property
    def records(self) -> int:
        """Number of records."""
        return len(self.packing.lengths)


def make_batch(records: Sequence[Tokens]) -> Batch:
    """Pack records; each must have at least one counted token."""
    ids, rows, targets, owners, lengths = [], [], [], [], []
    at = 0
    for owner, record in enumerate(records):
        counted = np.flatnonzero(record.targets_mask[1:])
        length = len(record.ids) - 1
        ids.append(record.ids[:-1])
        rows.append(counted + at)
        targets.append(record.ids[1:][counted])
        owners.append(np.full(len(counted), owner))
        lengths.append(length)
        at += length
    return Batch(
        ids=_join(ids),
        packing=Packing(tuple(lengths)),
        rows=_join(rows),
        targets=_join(targets),
        owners=_join(owners),
    )


def micro_batches(records: Sequence[Tokens], size: int) -> list[list[Tokens]]:
    """Split a batch into physical ones of at most `size`, records of like length together."""
    ordered = sorted(records, key=lambda r: len(r.ids))
    return [list(ordered[at : at + size]) for at in range(0, len(ordered), size)]


def _join(parts: Sequence[NDArray[np.int32] | NDArray[np.intp]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))

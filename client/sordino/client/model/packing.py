"""Records laid one after another, without padding.

The tokens of several records lie in one ``[tokens, features]`` tensor, and `Packing` says where
each begins. Records meet only inside attention, which is per record, so every row's gradient
belongs to one record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where each record lies in a packed tensor.

    Attributes:
        lengths: Tokens of each record, in order; none is zero.
    """

    lengths: tuple[int, ...]

    @cached_property
    def bounds(self) -> list[tuple[int, int]]:
        """Start and stop row of each record."""
        stops, at = [], 0
        for length in self.lengths:
            stops.append((at, at + length))
            at += length
        return stops

    @property
    def longest(self) -> int:
        """Tokens of the longest record."""
        return max(self.lengths, default=0)

    @cached_property
    def positions(self) -> Tensor:
        """Position of each row within its record, ``int64[tokens]``."""
        return torch.cat([torch.arange(n) for n in self.lengths])


def pack(records: Sequence[Tensor]) -> tuple[Tensor, Packing]:
    """Join 1-D id tensors into one; every record must have at least one token."""
    return torch.cat(list(records)), Packing(tuple(int(r.numel()) for r in records))

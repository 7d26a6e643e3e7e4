"""Buffers that are used over and over within a step.

A fresh tensor of some megabytes is mapped from the operating system and given back each time, and
every page of it faults. A dense weight or a tile of logits lives for one product only, so one
buffer of each kind serves all of them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Slot = Literal["weight", "codes", "logits"]


class _Held(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[tuple[Slot, torch.dtype], Tensor] = {}


_held = _Held()


def scratch(slot: Slot, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A contiguous tensor of undefined content, valid until the slot is asked for again.

    Each thread has its own. A buffer grows to the largest shape that was asked for and stays.
    """
    size = math.prod(shape)
    held = _held.buffers.get((slot, dtype))
    if held is None or held.numel() < size:
        _held.buffers.pop((slot, dtype), None)  # before the larger one is made
        held = _held.buffers[slot, dtype] = torch.empty(size, dtype=dtype)
    return held[:size].view(*shape)


def drop_scratch() -> None:
    """Give this thread's buffers back."""
    _held.buffers.clear()

"""Buffers that are used over and over within a step.

A fresh tensor of some megabytes is mapped from the operating system and given back each time, and
every page of it faults. A dense weight or a tile of logits lives for one product only, so one
buffer of each kind serves all of them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

Slot = Literal["weight", "codes", "logits"]
Kept = Literal["batch", "layer"]  # a micro-batch there and back; one layer that is run again
SLAB_BYTES: Final = 8 * 2**20
_ALIGNED: Final = 64


@dataclass
class _Taking:
    what: Kept
    slab: int = 0  # the one in use
    start: int = 0  # bytes of it that are taken


class _Held(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[tuple[Slot, torch.dtype], Tensor] = {}
        self.slabs: dict[Kept, list[Tensor]] = {"batch": [], "layer": []}
        self.taking: _Taking | None = None


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


@contextmanager
def keeping(what: Kept) -> Iterator[None]:
    """Let `kept` take from this thread's slabs of a kind while the block runs.

    What it gave is valid until the thread's next block of that kind, which begins again at the
    first slab.
    """
    before, _held.taking = _held.taking, _Taking(what)
    try:
        yield
    finally:
        _held.taking = before


def kept(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A contiguous tensor of undefined content for what outlives the function that makes it.

    Within `keeping` they lie side by side in slabs, which are used again and again. From the
    general allocator each would settle in the hole that a dense weight has just left; the next
    dense weight then needs new memory, and a process comes to hold several times what is in use.
    """
    taking = _held.taking
    if taking is None:
        return torch.empty(*shape, dtype=dtype)
    slabs = _held.slabs[taking.what]
    size = -(-math.prod(shape) * dtype.itemsize // _ALIGNED) * _ALIGNED
    while taking.slab < len(slabs) and slabs[taking.slab].numel() < taking.start + size:
        taking.slab, taking.start = taking.slab + 1, 0
    if taking.slab == len(slabs):
        slabs.append(torch.empty(max(size, SLAB_BYTES), dtype=torch.uint8))
    # A tensor of its own over the slab's memory: autograd would have a view answer for its base.
    storage, tensor = slabs[taking.slab].untyped_storage(), torch.empty(0, dtype=dtype)
    tensor.set_(storage, taking.start // dtype.itemsize, tuple(shape))  # type: ignore[call-overload]
    taking.start += size
    return tensor


def drop_scratch() -> None:
    """Give this thread's buffers back."""
    _held.buffers.clear()
    for slabs in _held.slabs.values():
        slabs.clear()

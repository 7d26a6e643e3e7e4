"""Rotary position embedding: angles of each row, and the turn of each head."""

from __future__ import annotations

import torch
from torch import Tensor

Angles = tuple[Tensor, Tensor]


def rotary_angles(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> Angles:
    """Cosines and sines for `rotate`, each ``[tokens, 1, len(frequencies)]``."""
    angles = torch.outer(positions.double(), frequencies).unsqueeze(1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn heads, ``[tokens, heads, head_dim]``, in place; with ``-sin`` it turns back.

    The angles turn the first of a head's values, twice as many as there are angles; the others
    pass.
    """
    half = cos.shape[-1]
    low, high = x[..., :half], x[..., half : 2 * half]
    before = low.clone()
    low.mul_(cos).addcmul_(high, sin, value=-1)
    high.mul_(cos).addcmul_(before, sin)
    return x

"""Rotary position embeddings: which frequencies a model turns its queries and keys with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sordino.core.errors import ModelError

ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True, kw_only=True)
class Rope:
    """The angles of one kind of layer.

    Attributes:
        theta: Base of the frequencies.
        dims: How many of a head's first values are turned; even.
        divisors: What each frequency is divided by, ``dims / 2`` of them; none: by nothing.
    """

    theta: float
    dims: int
    divisors: tuple[float, ...] = ()

    def frequencies(self) -> Tensor:
        """Angle per position, ``float64[dims / 2]``, rounded as float32 files and kernels have it.

        >>> Rope(theta=10000.0, dims=4, divisors=(1.0, 2.0)).frequencies().tolist()
        [1.0, 0.004999999888241291]
        """
        exponents = torch.arange(0, self.dims, 2, dtype=torch.float64) / self.dims
        plain = (1.0 / self.theta**exponents).to(torch.float32)
        if self.divisors:
            plain = plain / torch.tensor(self.divisors, dtype=torch.float32)
        return plain.to(torch.float64)


def read_rope(table: Mapping[str, Any], *, theta: float, head_dim: int) -> Rope:
    """Read a rotary embedding from ``rope_parameters``, or ``rope_scaling`` of older files.

    Args:
        table: May name ``rope_type``, ``rope_theta``, ``partial_rotary_factor`` and what the type
            needs.
        theta: The base where the table has none.
        head_dim: Width of a head.

    Raises:
        ModelError: The type isn't supported, or lacks a parameter.
    """
    kind = table.get("rope_type") or table.get("type") or "default"
    dims = int(head_dim * float(table.get("partial_rotary_factor") or 1.0))
    plain = Rope(theta=float(table.get("rope_theta") or theta), dims=dims)
    try:
        if kind == "linear":
            divisors = (float(table["factor"]),) * (dims // 2)
        elif kind == "llama3":
            divisors = _llama3(plain, table)
        else:
            divisors = ()
    except KeyError as error:
        raise ModelError(f"rope_type {kind!r} needs {error.args[0]} in config.json") from error
    if kind not in ROPE_TYPES:
        raise ModelError(f"rope_type {kind!r} is not supported: {', '.join(ROPE_TYPES)} are")
    return Rope(theta=plain.theta, dims=dims, divisors=divisors)


def _llama3(plain: Rope, table: Mapping[str, Any]) -> tuple[float, ...]:
    """Long waves are slowed down, short ones stay, and between the two it goes smoothly."""
    factor, positions = float(table["factor"]), float(table["original_max_position_embeddings"])
    low, high = float(table["low_freq_factor"]), float(table["high_freq_factor"])
    divisors = []
    for frequency in plain.frequencies().tolist():
        waves = positions * frequency / (2 * math.pi)
        smooth = min(max((waves - low) / (high - low), 0.0), 1.0)
        divisors.append(1.0 / ((1.0 - smooth) / factor + smooth))
    return tuple(divisors)

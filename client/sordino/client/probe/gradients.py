"""Gradients of single records, and how an update lies along them: the coordinator's attack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.client.batches import Tokens
from sordino.client.lora import LoraAdapter
from sordino.client.model.decoder import Decoder
from sordino.client.train import backward


def record_gradients(
    decoder: Decoder,
    tensors: Mapping[str, NDArray[np.float32]],
    trained: Sequence[str],
    records: Sequence[Tokens],
    *,
    scale: float,
    micro_batch: int = 8,
) -> NDArray[np.float32]:
    """Each record's gradient of its mean token loss, by the engine that trains.

    Args:
        decoder: The frozen base.
        tensors: The whole adapter, by PEFT name.
        trained: Names of the tensors that train in the round.
        records: Each with at least one counted token.
        scale: ``alpha / rank``.
        micro_batch: Records that go through the model at once.

    Returns:
        ``float32[records, parameters]``, the trained tensors one after another as `flat` lays them.
    """
    adapter = LoraAdapter(tensors, scale=scale, trained=trained)
    rows: list[NDArray[np.float32]] = []
    for at in range(0, len(records), micro_batch):
        for parameter in adapter.parameters.values():
            parameter.grad_sample = None  # type: ignore[attr-defined]
        backward(decoder, adapter, records[at : at + micro_batch])
        samples: dict[str, Any] = {n: p.grad_sample for n, p in adapter.parameters.items()}  # type: ignore[attr-defined]
        parts = [samples[name].flatten(1).numpy() for name in sorted(samples)]
        rows.append(np.concatenate(parts, axis=1))
    if not rows:
        size = sum(p.numel() for p in adapter.parameters.values())
        return np.empty((0, size), np.float32)
    return np.concatenate(rows)


def flat(
    tensors: Mapping[str, NDArray[np.float32]], names: Iterable[str] | None = None
) -> NDArray[np.float32]:
    """Some tensors as one row, in the order of their names.

    >>> flat({"b": np.ones((1, 2), np.float32), "a": np.zeros(1, np.float32)}).tolist()
    [0.0, 1.0, 1.0]
    """
    chosen = sorted(tensors if names is None else names)
    return np.concatenate([np.ravel(tensors[name]) for name in chosen])


def alignment(
    update: NDArray[np.floating[Any]],
    gradients: NDArray[np.floating[Any]],
    *,
    clip_norm: float | None = None,
    ridge: float = 0.3,
) -> NDArray[np.float64]:
    """How far an update went down each record's own gradient: high where the record took part.

    The inner products of the update with the gradients, less what the gradients have in common:
    every text moves the model alike, and that says nothing of which were there. Ridge regression of
    the update on the gradients takes it out. A large ridge leaves the plain inner products, a small
    one tells records apart that are much alike, and turns noise up where they are.

    Args:
        update: ``[parameters]``, the change that the coordinator saw.
        gradients: ``[records, parameters]``, at the adapter that the round began with.
        clip_norm: What the mechanism clips each to; None: nothing is clipped.
        ridge: Over the mean of the gradients' squared norms.

    Returns:
        ``float64[records]``. A record whose gradient is zero scores zero.
    """
    rows = np.asarray(gradients, dtype=np.float64)
    if not len(rows):
        return np.zeros(0)
    if clip_norm is not None:
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows * np.minimum(1.0, clip_norm / np.maximum(lengths, 1e-30))
    products = rows @ rows.T
    size = float(np.trace(products)) / len(rows)
    if size <= 0:
        return np.zeros(len(rows))
    down = -(rows @ np.asarray(update, dtype=np.float64))
    return np.asarray(np.linalg.solve(products + ridge * size * np.eye(len(rows)), down))

"""Which tokens an update's row space can have come from: inversion of the first layer's gradient.

The gradient of A of a linear is Bᵀ times a sum of outer products whose right factors are the
linear's inputs. In the first layer those are the tokens' own embeddings after the norm: each token
of the batch lies in the gradient's row space, and the whole vocabulary can be tried
(Petrov et al. 2024, for whole gradients). An adapter's rank caps what the row space can hold: with
as many distinct tokens as its rank nothing is told apart.

Where A is frozen (`ffa`), the gradient of B is δ times (A x)ᵀ: the same check can be made of A x,
in `rank` dimensions. Position embeddings that are added make an input more than its token: such a
family is not tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sordino.client.model.decoder import Decoder
from sordino.client.model.elementwise import elementwise
from sordino.core.errors import ModelError

_ROWS = 4096


@dataclass(frozen=True)
class Span:
    """What the row space of one round's update says.

    Attributes:
        rank: Its dimension, by singular values above `tolerance` of the largest.
        most: The largest that it could have been: beyond it, no token is told apart.
        residuals: ``float64[vocabulary]``: the part of each token's input that lies outside,
            0 to 1.
    """

    rank: int
    most: int
    residuals: NDArray[np.float64]

    @property
    def saturated(self) -> bool:
        """The row space is full: every token of the batch and others fit or not by chance."""
        return self.rank >= self.most


@torch.no_grad()
def embedded_vocabulary(decoder: Decoder) -> NDArray[np.float32]:
    """What the first layer's attention reads for each token, ``float32[vocabulary, hidden]``.

    Raises:
        ModelError: The family adds learned positions to its embeddings.
    """
    arch = decoder.architecture
    if arch.parts.positions:
        raise ModelError(
            "this family adds positions to its embeddings: a token has no input of its own"
        )
    name = arch.parts.norms.get("before_attention")
    parts = []
    for start in range(0, arch.vocabulary, _ROWS):
        ids = torch.arange(start, min(start + _ROWS, arch.vocabulary))
        x = decoder.matrices[arch.parts.embedding].gather(ids, torch.float32)
        if arch.embedding_scale != 1.0:
            x = x * arch.embedding_scale
        if name is not None:
            norm = decoder._norm(f"{arch.family.layers}.0.{name}", torch.float32)
            x = elementwise(norm, x)
        parts.append(x.numpy())
    return np.concatenate(parts)


def token_span(
    update: Mapping[str, NDArray[np.float32]],
    start: Mapping[str, NDArray[np.float32]],
    names: Sequence[str],
    inputs: NDArray[np.float32],
    *,
    tolerance: float = 1e-4,
) -> Span:
    """Try every token against the row space of an update of the first layer's tensors.

    Args:
        update: The change of each trained tensor.
        start: The adapter before the round; its A, where A is frozen.
        names: PEFT names of the trained tensors to use: all A, or exactly one B. Linears that
            share their input can be taken together, which only A allows.
        inputs: From `embedded_vocabulary`.
        tolerance: Singular values below this part of the largest count as zero.

    Raises:
        ModelError: There is nothing to look at, or As and Bs are mixed.
    """
    from_a = [name for name in names if ".lora_A." in name]
    if not names or (from_a and len(from_a) < len(names)) or (not from_a and len(names) > 1):
        raise ModelError(f"expected the As of linears of one input, or one B, got {list(names)}")
    if from_a:
        rows, seen = np.concatenate([update[name] for name in names]), inputs
    else:
        rows = update[names[0]]
        seen = inputs @ start[names[0].replace(".lora_B.", ".lora_A.")].T
    _, sizes, right = np.linalg.svd(rows.astype(np.float64), full_matrices=False)
    most = min(rows.shape)
    rank = int((sizes > tolerance * sizes[0]).sum()) if sizes[0] > 0 else 0
    basis = right[:rank]
    wide = seen.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1)
    inside = np.square(wide @ basis.T).sum(1)
    outside = np.sqrt(np.maximum(np.square(lengths) - inside, 0.0))
    return Span(
        rank, most, np.divide(outside, lengths, out=np.ones_like(lengths), where=lengths > 0)
    )

"""What the first layer reads for each token: what an update's row space is tried with.

The linear algebra is `sordino.privacy.audit.inversion`'s.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from sordino.client.model.decoder import Decoder
from sordino.client.model.elementwise import elementwise
from sordino.core.errors import ModelError

_ROWS = 4096


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

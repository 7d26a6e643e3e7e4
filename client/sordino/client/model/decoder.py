"""A llama-family decoder over frozen quantized matrices.

The decoder holds no trained parameter. Each linear goes through a function that the caller hands
in, so that one mapped base serves any number of adapters, and changing the client is changing an
argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from sordino.client.model.architecture import Architecture
from sordino.client.model.functions import (
    GatedSilu,
    Packing,
    RmsNorm,
    Rotate,
    causal_attention,
    rotary_angles,
)
from sordino.client.model.matrices import Matrix

# (name such as "layers.0.self_attn.q_proj", its frozen matrix, input) -> output
Linear = Callable[[str, Matrix, Tensor], Tensor]


class FrozenLinear(Function):
    """``x @ W.T`` with W made dense for the forward and again for the backward; saves nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Matrix) -> Tensor:
        ctx.matrix = matrix
        return x @ matrix.dense(x.dtype).t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad @ ctx.matrix.dense(grad.dtype), None


def frozen_linear(name: str, matrix: Matrix, x: Tensor) -> Tensor:
    """Apply the base alone: the `Linear` of a decoder without an adapter."""
    del name
    y: Tensor = FrozenLinear.apply(x, matrix)  # type: ignore[no-untyped-call]
    return y


@dataclass(frozen=True)
class Decoder:
    """The frozen base.

    Attributes:
        architecture: Sizes and constants.
        matrices: The linears, by names such as ``layers.0.mlp.up_proj``, and ``embed_tokens`` and,
            where it isn't tied, ``lm_head``.
        norms: The norm weights, by names such as ``layers.0.input_layernorm``, and ``norm``.
    """

    architecture: Architecture
    matrices: Mapping[str, Matrix]
    norms: Mapping[str, Tensor]

    @property
    def head(self) -> Matrix:
        """The output matrix, ``[vocabulary, hidden]``."""
        return self.matrices["embed_tokens" if self.architecture.tied else "lm_head"]

    def hidden(
        self,
        ids: Tensor,
        packing: Packing,
        *,
        linear: Linear = frozen_linear,
        recompute: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Run the decoder up to the head.

        Args:
            ids: ``int64[tokens]``, the records' tokens one after another.
            packing: Where each record lies.
            linear: Applies one linear; an adapter brings its own.
            recompute: Keep only each layer's input and run the layer again in the backward.
            dtype: Precision of the computation.

        Returns:
            ``[tokens, hidden]``, after the last norm.
        """
        arch = self.architecture
        angles = rotary_angles(packing.positions, arch.head_dim, arch.rope_theta, dtype)
        x = self.matrices["embed_tokens"].gather(ids, dtype)
        for index in range(arch.layers):
            args = (x, index, packing, angles, linear)
            if recompute and torch.is_grad_enabled():
                # The reentrant kind needs an input that requires a gradient to run at all.
                x.requires_grad_(True)
                x = checkpoint(self._layer, *args, use_reentrant=True, preserve_rng_state=False)
            else:
                x = self._layer(*args)
        return self._norm("norm", x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return ``[tokens, vocabulary]``; for a few tokens only, since it is not chunked."""
        return hidden @ self.head.dense(hidden.dtype).t()

    def _norm(self, name: str, x: Tensor) -> Tensor:
        y: Tensor = RmsNorm.apply(x, self.norms[name].to(x.dtype), self.architecture.norm_eps)  # type: ignore[no-untyped-call]
        return y

    def _layer(
        self, x: Tensor, index: int, packing: Packing, angles: tuple[Tensor, Tensor], linear: Linear
    ) -> Tensor:
        prefix = f"layers.{index}"

        def apply(part: str, value: Tensor) -> Tensor:
            name = f"{prefix}.{part}"
            return linear(name, self.matrices[name], value)

        normed = self._norm(f"{prefix}.input_layernorm", x)
        x = x + self._attention(normed, packing, angles, apply)
        normed = self._norm(f"{prefix}.post_attention_layernorm", x)
        gated = GatedSilu.apply(apply("mlp.gate_proj", normed), apply("mlp.up_proj", normed))  # type: ignore[no-untyped-call]
        return x + apply("mlp.down_proj", gated)

    def _attention(
        self,
        x: Tensor,
        packing: Packing,
        angles: tuple[Tensor, Tensor],
        apply: Callable[[str, Tensor], Tensor],
    ) -> Tensor:
        arch = self.architecture
        shape = (x.shape[0], -1, arch.head_dim)
        q = Rotate.apply(apply("self_attn.q_proj", x).view(shape), *angles)  # type: ignore[no-untyped-call]
        k = Rotate.apply(apply("self_attn.k_proj", x).view(shape), *angles)  # type: ignore[no-untyped-call]
        v = apply("self_attn.v_proj", x).view(shape)
        return apply("self_attn.o_proj", causal_attention(q, k, v, packing))

"""A decoder over frozen quantized matrices: one path for all families.

The decoder holds no trained parameter. Each linear goes through a function that the caller hands
in, so that one mapped base serves any number of adapters, and changing the client is changing an
argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from sordino.client.model.architecture import Architecture
from sordino.client.model.functions import (
    Packing,
    RmsNorm,
    Rotate,
    activate,
    causal_attention,
    rotary_angles,
)
from sordino.client.model.matrices import Matrix
from sordino.client.model.parts import NormRole
from sordino.client.model.shapes import HEAD, linear_name
from sordino.core.errors import ModelError
from sordino.core.families import Role

Angles = tuple[Tensor, Tensor]
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
        architecture: Sizes, constants and parts.
        matrices: The linears, by names such as ``layers.0.mlp.up_proj``, and the embedding, the
            learned positions and, where it isn't tied, ``lm_head``.
        vectors: The norms' gains, by names such as ``layers.0.input_layernorm``, and the biases of
            norms and linears, by names that end in ``.bias``.
    """

    architecture: Architecture
    matrices: Mapping[str, Matrix]
    vectors: Mapping[str, Tensor]

    @property
    def head(self) -> Matrix:
        """The output matrix, ``[vocabulary, hidden]``."""
        arch = self.architecture
        return self.matrices[arch.parts.embedding if arch.tied else HEAD]

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

        Raises:
            ModelError: A record is longer than the learned positions.
        """
        arch = self.architecture
        ropes = {span.rope for span in arch.spans if span.rope}
        angles = {r: rotary_angles(packing.positions, r.frequencies(), dtype) for r in ropes}
        x = self._embed(ids, packing, dtype)
        for index, span in enumerate(arch.spans):
            args = (x, index, packing, angles[span.rope] if span.rope else None, linear)
            if recompute and torch.is_grad_enabled():
                # The reentrant kind needs an input that requires a gradient to run at all.
                x.requires_grad_(True)
                x = checkpoint(self._layer, *args, use_reentrant=True, preserve_rng_state=False)
            else:
                x = self._layer(*args)
        return self._norm(arch.parts.last_norm, x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return ``[tokens, vocabulary]``; for a few tokens only, since it is not chunked."""
        return hidden @ self.head.dense(hidden.dtype).t()

    def _embed(self, ids: Tensor, packing: Packing, dtype: torch.dtype) -> Tensor:
        arch = self.architecture
        x = self.matrices[arch.parts.embedding].gather(ids, dtype)
        if arch.embedding_scale != 1.0:
            x = x * arch.embedding_scale
        if arch.parts.positions:
            if packing.longest > arch.positions:
                raise ModelError(
                    f"a record has {packing.longest} tokens, the model has {arch.positions} "
                    "positions: lower data.max_tokens"
                )
            x = x + self.matrices[arch.parts.positions].gather(packing.positions, dtype)
        return x

    def _norm(self, name: str, x: Tensor) -> Tensor:
        """RMSNorm as here defined, or torch's LayerNorm: it too saves x and two numbers a row."""
        gain, eps = self.vectors[name].to(x.dtype), self.architecture.norm_eps
        if self.architecture.parts.norm == "layer":
            return F.layer_norm(x, gain.shape, gain, self.vectors[f"{name}.bias"].to(x.dtype), eps)
        y: Tensor = RmsNorm.apply(x, gain, eps)  # type: ignore[no-untyped-call]
        return y

    def _layer(
        self, x: Tensor, index: int, packing: Packing, angles: Angles | None, linear: Linear
    ) -> Tensor:
        block = _Block(self, index, linear)
        mixed = self._attention(block, block.norm("before_attention", x), packing, angles)
        mixed = block.norm("after_attention", mixed)
        if self.architecture.parts.parallel:
            return x + mixed + self._mlp(block, block.norm("before_mlp", x))
        x = x + mixed
        inner = self._mlp(block, block.norm("before_mlp", x))
        return x + block.norm("after_mlp", inner)

    def _mlp(self, block: _Block, x: Tensor) -> Tensor:
        arch = self.architecture
        gate = block.apply("gate", x) if "gate" in arch.family.linears else None
        return block.apply("down", activate(arch.parts.activation, block.apply("up", x), gate))

    def _attention(
        self, block: _Block, x: Tensor, packing: Packing, angles: Angles | None
    ) -> Tensor:
        arch = self.architecture
        q, k, v = self._heads(block, x)
        q, k = block.norm("query", q), block.norm("key", k)
        if angles:
            q = Rotate.apply(q, *angles)  # type: ignore[no-untyped-call]
            k = Rotate.apply(k, *angles)  # type: ignore[no-untyped-call]
        window = arch.spans[block.index].window
        mixed = causal_attention(q, k, v, packing, scale=arch.attention_scale, window=window)
        return block.apply("o", mixed)

    def _heads(self, block: _Block, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, each ``[tokens, its heads, head_dim]``."""
        arch = self.architecture
        rows, size = x.shape[0], arch.head_dim
        if arch.parts.joined is None:
            return tuple(block.apply(role, x).view(rows, -1, size) for role in ("q", "k", "v"))
        joined = block.apply("qkv", x)
        if arch.parts.joined == "heads":
            return joined.view(rows, arch.heads, 3, size).unbind(2)
        wide, narrow = arch.heads * size, arch.kv_heads * size
        parts = joined.split([wide, narrow, narrow], dim=1)
        return tuple(part.unflatten(1, (-1, size)) for part in parts)


@dataclass(frozen=True)
class _Block:
    """The parts of one layer, by what they do."""

    decoder: Decoder
    index: int
    linear: Linear

    def apply(self, role: Role, x: Tensor) -> Tensor:
        """Apply a linear and its bias, if it has one."""
        arch = self.decoder.architecture
        name = linear_name(arch, self.index, role)
        y = self.linear(name, self.decoder.matrices[name], x)
        if role in arch.parts.biases:
            y = y.add_(self.decoder.vectors[f"{name}.bias"].to(y.dtype))
        return y

    def norm(self, role: NormRole, x: Tensor) -> Tensor:
        """Apply a norm where the family has it; else pass x on."""
        arch = self.decoder.architecture
        name = arch.parts.norms.get(role)
        if name is None:
            return x
        return self.decoder._norm(f"{arch.family.layers}.{self.index}.{name}", x)

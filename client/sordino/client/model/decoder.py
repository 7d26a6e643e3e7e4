"""A decoder over frozen quantized matrices: one path for all families.

The decoder holds no trained parameter. Each linear goes through a function that the caller hands
in, so that one mapped base serves any number of adapters, and changing the client is changing an
argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sordino.client.model.architecture import Architecture
from sordino.client.model.attention import causal_attention
from sordino.client.model.elementwise import (
    Activated,
    Elementwise,
    Gated,
    LayerNorm,
    RmsNorm,
    Same,
    elementwise,
)
from sordino.client.model.linears import linears
from sordino.client.model.matrices import Matrix
from sordino.client.model.packing import Packing
from sordino.client.model.parts import NormRole
from sordino.client.model.rotary import Angles, rotary_angles
from sordino.client.model.scratch import keeping, kept
from sordino.client.model.shapes import HEAD, linear_name
from sordino.core.errors import ModelError
from sordino.core.families import Role

# (names such as "layers.0.self_attn.q_proj", their frozen matrices, what the inputs go through
# first, the inputs) -> one output a name
Linears = Callable[..., tuple[Tensor, ...]]


def frozen_linears(
    names: Sequence[str], matrices: Sequence[Matrix], before: Elementwise, *inputs: Tensor
) -> tuple[Tensor, ...]:
    """Apply the base alone: the `Linears` of a decoder without an adapter."""
    return linears(before, inputs, matrices, [None] * len(names))


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
        linears: Linears = frozen_linears,
        recompute: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Run the decoder up to the head.

        Args:
            ids: ``int64[tokens]``, the records' tokens one after another.
            packing: Where each record lies.
            linears: Applies linears of one input; an adapter brings its own.
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
            args = (x, index, packing, angles[span.rope] if span.rope else None, linears)
            if recompute and torch.is_grad_enabled():
                # The reentrant kind needs an input that requires a gradient to run at all.
                x.requires_grad_(True)
                x = checkpoint(self._rerun, *args, use_reentrant=True, preserve_rng_state=False)
            else:
                x = self._layer(*args)
        return elementwise(self._norm(arch.parts.last_norm, dtype), x)

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

    def _norm(self, name: str, dtype: torch.dtype) -> Elementwise:
        gain, eps = self.vectors[name].to(dtype), self.architecture.norm_eps
        if self.architecture.parts.norm == "layer":
            return LayerNorm(gain, self.vectors[f"{name}.bias"].to(dtype), eps)
        return RmsNorm(gain, eps)

    def _rerun(self, *args: Any) -> Tensor:
        """A layer that is run twice: without a gradient only its output lasts."""
        with keeping("layer"):
            x = self._layer(*args)
        return x if torch.is_grad_enabled() else kept(x.shape, x.dtype).copy_(x)

    def _layer(
        self, x: Tensor, index: int, packing: Packing, angles: Angles | None, linears: Linears
    ) -> Tensor:
        block = _Block(self, index, linears)
        mixed = block.normed("after_attention", self._attention(block, x, packing, angles))
        # In place where it can be: nobody keeps a linear's output.
        if self.architecture.parts.parallel:
            return mixed.add_(x).add_(self._mlp(block, x))
        x = mixed.add_(x)
        return block.normed("after_mlp", self._mlp(block, x)).add_(x)

    def _mlp(self, block: _Block, x: Tensor) -> Tensor:
        arch = self.architecture
        norm, name = block.norm("before_mlp", x.dtype), arch.parts.activation
        if "gate" not in arch.family.linears:
            (up,) = block.apply(("up",), norm, x)
            return block.apply(("down",), Activated(name), up)[0]
        gate, up = block.apply(("gate", "up"), norm, x)
        return block.apply(("down",), Gated(name), gate, up)[0]

    def _attention(
        self, block: _Block, x: Tensor, packing: Packing, angles: Angles | None
    ) -> Tensor:
        arch = self.architecture
        q, k, v = self._heads(block, x)
        mixed = causal_attention(
            block.normed("query", q),
            block.normed("key", k),
            v,
            packing,
            angles=angles,
            scale=arch.attention_scale,
            window=arch.spans[block.index].window,
        )
        return block.apply(("o",), Same(), mixed)[0]

    def _heads(self, block: _Block, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, each ``[tokens, its heads, head_dim]``."""
        arch = self.architecture
        rows, size = x.shape[0], arch.head_dim
        norm = block.norm("before_attention", x.dtype)
        if arch.parts.joined is None:
            return tuple(y.view(rows, -1, size) for y in block.apply(("q", "k", "v"), norm, x))
        (joined,) = block.apply(("qkv",), norm, x)
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
    linears: Linears

    def apply(
        self, roles: Sequence[Role], before: Elementwise, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        """Apply linears of one input, each with its bias, if it has one."""
        arch = self.decoder.architecture
        names = [linear_name(arch, self.index, role) for role in roles]
        matrices = [self.decoder.matrices[name] for name in names]
        outs = self.linears(names, matrices, before, *inputs)
        for role, name, y in zip(roles, names, outs, strict=True):
            if role in arch.parts.biases:
                y.add_(self.decoder.vectors[f"{name}.bias"].to(y.dtype))
        return outs

    def norm(self, role: NormRole, dtype: torch.dtype) -> Elementwise:
        """The norm where the family has it; else the identity."""
        arch = self.decoder.architecture
        name = arch.parts.norms.get(role)
        if name is None:
            return Same()
        return self.decoder._norm(f"{arch.family.layers}.{self.index}.{name}", dtype)

    def normed(self, role: NormRole, x: Tensor) -> Tensor:
        """Apply a norm by itself where the family has it; else pass x on."""
        if role not in self.decoder.architecture.parts.norms:
            return x
        return elementwise(self.norm(role, x.dtype), x)

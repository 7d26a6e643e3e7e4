"""A base made ready to write: packed once, with or without an adapter over it.

What a decoder computes is data in `Architecture` and `Parts`; here it is resolved, once, into a
list of layers that hold their own products, norms and biases, so that no name is looked up while
tokens are written. Products that share an input are one product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sordino.client.model.architecture import Architecture
from sordino.client.model.decoder import Decoder
from sordino.client.model.packed import BYTES, Form, Product, Weights, choose_form, pack_product
from sordino.client.model.parts import NormRole
from sordino.client.model.ropes import Rope
from sordino.client.model.shapes import block_matrices, linear_name
from sordino.core.adapters import tensor_names
from sordino.core.errors import ModelError
from sordino.core.families import Role

AdapterTensors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One product, its bias, and what an adapter adds.

    Attributes:
        product: Of one or several linears that share their input.
        names: Those linears' names, such as ``layers.0.mlp.gate_proj``.
        rows: How many outputs each has.
        order: Row of the linears, laid one after another, that each output is; None: as they lie.
        bias: ``[rows]``, in the order of the outputs.
        low: ``Aᵀ`` as ``[columns, ranks]`` and ``s Bᵀ`` as ``[ranks, rows]``: the linears' As one
            beside the other, and their Bs along a diagonal.
    """

    product: Product
    names: tuple[str, ...]
    rows: tuple[int, ...]
    order: Tensor | None = None
    bias: Tensor | None = None
    low: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to ``float32[tokens, columns]``."""
        y = self.product(x)
        if self.order is not None:
            y = y.index_select(1, self.order)
        if self.low is not None:
            y.addmm_(x @ self.low[0], self.low[1])
        return y if self.bias is None else y.add_(self.bias)


@dataclass(frozen=True)
class Norm:
    """A norm over the last dimension: LayerNorm where there is a bias, else RMSNorm."""

    gain: Tensor
    bias: Tensor | None
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Apply."""
        if self.bias is not None:
            return F.layer_norm(x, self.gain.shape, self.gain, self.bias, self.eps)
        return F.rms_norm(x, self.gain.shape, self.gain, self.eps)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One block.

    Attributes:
        qkv: Queries, keys and values, each with all its heads, one after another.
        o: What the attention is written back with.
        up: The MLP's way up; the gate, where there is one, before it.
        down: The MLP's way down.
        norms: Those that the family has.
        rope: How queries and keys are turned.
        window: How many tokens back it looks, itself included.
    """

    qkv: Linear
    o: Linear
    up: Linear
    down: Linear
    norms: Mapping[NormRole, Norm]
    rope: Rope | None
    window: int | None

    def norm(self, role: NormRole, x: Tensor) -> Tensor:
        """Apply a norm where the family has it; else pass x on."""
        return self.norms[role](x) if role in self.norms else x


@dataclass(frozen=True, kw_only=True, eq=False)
class GenerationModel:
    """A base that is ready to write. Make it with `prepare`, and drop it when done.

    Attributes:
        decoder: The base that it was made of.
        layers: In order.
        last_norm: Before the head.
        head: To the logits.
        form: How the weights are packed.
        nbytes: What the packed copy takes, beside the mapped file.
    """

    decoder: Decoder
    layers: tuple[Layer, ...]
    last_norm: Norm
    head: Product
    form: Form
    nbytes: int

    @property
    def architecture(self) -> Architecture:
        """Sizes, constants and parts."""
        return self.decoder.architecture

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Rows of the embedding for ``int64[tokens]``, with positions where they are learned."""
        arch, matrices = self.architecture, self.decoder.matrices
        x = matrices[arch.parts.embedding].gather(ids)
        if arch.embedding_scale != 1.0:
            x = x * arch.embedding_scale
        if arch.parts.positions:
            x = x + matrices[arch.parts.positions].gather(positions)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """From the last layer's output, ``[tokens, hidden]``, to ``[tokens, vocabulary]``."""
        return self.head(self.last_norm(x))

    def with_adapter(self, tensors: AdapterTensors, *, scale: float) -> GenerationModel:
        """The same base with an adapter over it; nothing is packed again.

        The adapter isn't merged into the weights: packed weights have 11 bits, and most of an
        adapter lies below the last of them.

        Args:
            tensors: Every tensor of the adapter, by PEFT name. An earlier adapter is replaced.
            scale: ``alpha / rank``.

        Raises:
            ModelError: A tensor doesn't belong to this model, or has another shape.
        """
        left = dict(tensors)
        base = self.architecture.family.base

        def adapt(linear: Linear) -> Linear:
            return replace(linear, low=_low_rank(linear, base, left, scale))

        layers = tuple(
            replace(
                layer,
                qkv=adapt(layer.qkv),
                o=adapt(layer.o),
                up=adapt(layer.up),
                down=adapt(layer.down),
            )
            for layer in self.layers
        )
        if left:
            raise ModelError(
                f"adapter tensor {min(left)} belongs to no linear of this model: was it trained on "
                "another base?"
            )
        return replace(self, layers=layers)


def prepare(
    decoder: Decoder, *, weights: Weights = "auto", memory_mb: float | None = None
) -> GenerationModel:
    """Pack a base for writing.

    Args:
        decoder: The open base.
        weights: ``half``: float16 weights, activations and sums in float32, the fastest.
            ``full``: float32 weights. ``streamed``: no copy; each layer is made dense again for
            each token. ``auto``: the fastest that this machine has and `memory_mb` allows; the
            result's `form` says which.
        memory_mb: What the packed copy may take, in units of 10⁶ bytes; None: any amount.

    Raises:
        ConfigError: The form asked for doesn't fit.
        ModelError: This build of torch can't do what was asked for.
    """
    arch, head = decoder.architecture, decoder.head
    linears = [decoder.matrices[name] for name in block_matrices(arch)]
    values = sum(matrix.rows * matrix.columns for matrix in [*linears, head])
    form = choose_form(values, weights, memory_mb)
    layers = tuple(_layer(decoder, index, form) for index in range(arch.layers))
    return GenerationModel(
        decoder=decoder,
        layers=layers,
        last_norm=_norm(decoder, arch.parts.last_norm),
        head=pack_product([head], form),
        form=form,
        nbytes=values * BYTES[form],
    )


def _layer(decoder: Decoder, index: int, form: Form) -> Layer:
    arch = decoder.architecture
    prefix, span = f"{arch.family.layers}.{index}", arch.spans[index]
    joined = arch.parts.joined is not None
    gated = "gate" in arch.family.linears
    by_heads = _whole_from_heads(arch) if arch.parts.joined == "heads" else None
    return Layer(
        qkv=_linear(decoder, index, ("qkv",) if joined else ("q", "k", "v"), form, by_heads),
        o=_linear(decoder, index, ("o",), form),
        up=_linear(decoder, index, ("gate", "up") if gated else ("up",), form),
        down=_linear(decoder, index, ("down",), form),
        norms={role: _norm(decoder, f"{prefix}.{n}") for role, n in arch.parts.norms.items()},
        rope=span.rope,
        window=span.window,
    )


def _linear(
    decoder: Decoder,
    index: int,
    roles: tuple[Role, ...],
    form: Form,
    order: Tensor | None = None,
) -> Linear:
    arch = decoder.architecture
    names = tuple(linear_name(arch, index, role) for role in roles)
    matrices = [decoder.matrices[name] for name in names]
    rows = tuple(matrix.rows for matrix in matrices)
    bias = None
    if any(role in arch.parts.biases for role in roles):
        none = {name: torch.zeros(n) for name, n in zip(names, rows, strict=True)}
        bias = torch.cat([decoder.vectors.get(f"{n}.bias", none[n]) for n in names])
        bias = bias if order is None else bias[order]
    return Linear(
        product=pack_product(matrices, form), names=names, rows=rows, order=order, bias=bias
    )


def _norm(decoder: Decoder, name: str) -> Norm:
    bias = decoder.vectors.get(f"{name}.bias")
    return Norm(decoder.vectors[name], bias, decoder.architecture.norm_eps)


def _whole_from_heads(arch: Architecture) -> Tensor:
    """Where the rows of q, k and v lie in a linear that has a head of each in turn."""
    rows = torch.arange(arch.heads * 3 * arch.head_dim)
    return rows.view(arch.heads, 3, arch.head_dim).transpose(0, 1).flatten()


def _low_rank(
    linear: Linear, base: str, left: dict[str, NDArray[np.float32]], scale: float
) -> tuple[Tensor, Tensor] | None:
    """Join the adapters of a product's linears, and take them out of `left`."""
    found, at = [], 0
    for name, rows in zip(linear.names, linear.rows, strict=True):
        name_a, name_b = tensor_names(f"{base}.{name}")
        if name_a in left and name_b in left:
            a, b = (torch.from_numpy(np.array(left.pop(n))).float() for n in (name_a, name_b))
            if b.shape != (rows, a.shape[0]):
                raise ModelError(
                    f"adapter tensor {name_b} has shape {tuple(b.shape)}, not ({rows}, "
                    f"{a.shape[0]}): was it trained on another base?"
                )
            found.append((at, a, b))
        at += rows
    if not found:
        return None
    wide = torch.zeros(sum(a.shape[0] for _, a, _ in found), at)
    rank = 0
    for start, a, b in found:
        wide[rank : rank + a.shape[0], start : start + b.shape[0]] = scale * b.t()
        rank += a.shape[0]
    if linear.order is not None:
        wide = wide[:, linear.order]
    return torch.cat([a for _, a, _ in found]).t().contiguous(), wide

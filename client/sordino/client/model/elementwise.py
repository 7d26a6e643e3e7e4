"""What stands between two linears of a block: norms and activations, and their gradients.

Each is a pure function of its inputs, cheap beside a linear. So none of their outputs is kept for
the backward: it keeps the inputs, most of which somebody holds anyway, and does the function again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from sordino.client.model.parts import Activation


class Elementwise(Protocol):
    """A function of rows: no row of its output depends on another row of its inputs."""

    def apply(self, *inputs: Tensor) -> Tensor:
        """The function. Its output may be an input itself, and is not to be written into."""
        ...

    def back(self, inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
        """The gradient of each input; `grad` may be overwritten."""
        ...


@dataclass(frozen=True)
class Same:
    """The identity."""

    def apply(self, *inputs: Tensor) -> Tensor:
        """Return the input."""
        (x,) = inputs
        return x

    def back(self, inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
        """Return the gradient."""
        del inputs
        return (grad,)


@dataclass(frozen=True, eq=False)
class RmsNorm:
    """``x / rms(x) * gain`` over the last dimension, with a frozen gain."""

    gain: Tensor
    eps: float

    def apply(self, *inputs: Tensor) -> Tensor:
        """Normalize x, ``[..., features]``."""
        (x,) = inputs
        return (x * self._scale(x)).mul_(self.gain)

    def back(self, inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
        """The gradient of x."""
        (x,) = inputs
        scale = self._scale(x)
        weighted = grad * self.gain
        along = (weighted * x).mean(-1, keepdim=True).mul_(scale.pow(3))
        return (weighted.mul_(scale).addcmul_(x, along, value=-1),)

    def _scale(self, x: Tensor) -> Tensor:
        squares: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        return squares.div_(x.shape[-1]).add_(self.eps).rsqrt_()


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """``(x - mean) / std * gain + bias`` over the last dimension, both frozen."""

    gain: Tensor
    bias: Tensor
    eps: float

    def apply(self, *inputs: Tensor) -> Tensor:
        """Normalize x, ``[..., features]``."""
        (x,) = inputs
        return F.layer_norm(x, self.gain.shape, self.gain, self.bias, self.eps)

    def back(self, inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
        """The gradient of x."""
        (x,) = inputs
        shape, wanted = self.gain.shape, [True, False, False]
        _, mean, deviation = torch.native_layer_norm(x, shape, self.gain, self.bias, self.eps)
        gradient, _, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, shape, mean, deviation, self.gain, self.bias, wanted
        )
        return (gradient,)


@dataclass(frozen=True)
class Activated:
    """The activation of an MLP without a gate."""

    name: Activation

    def apply(self, *inputs: Tensor) -> Tensor:
        """Activate up."""
        (up,) = inputs
        return _activate(self.name, up)

    def back(self, inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
        """The gradient of up."""
        (up,) = inputs
        return (_slope(self.name, up, grad),)


@dataclass(frozen=True)
class Gated:
    """``activation(gate) * up``."""

    name: Activation

    def apply(self, *inputs: Tensor) -> Tensor:
        """Activate the gate, the first input, and multiply by up, the second."""
        gate, up = inputs
        return _activate(self.name, gate).mul_(up)

    def back(self, inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
        """The gradients of gate and up."""
        gate, up = inputs
        of_up = _activate(self.name, gate).mul_(grad)
        return _slope(self.name, gate, grad.mul_(up)), of_up


def _activate(name: Activation, x: Tensor) -> Tensor:
    return F.silu(x) if name == "silu" else F.gelu(x, approximate=_APPROXIMATE[name])


def _slope(name: Activation, x: Tensor, grad: Tensor) -> Tensor:
    gradient: Tensor = (
        torch.ops.aten.silu_backward(grad, x)
        if name == "silu"
        else torch.ops.aten.gelu_backward(grad, x, approximate=_APPROXIMATE[name])
    )
    return gradient


_APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}


class _Differentiable(Function):
    @staticmethod
    def forward(ctx: Any, function: Elementwise, *inputs: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return function.apply(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, *ctx.function.back(ctx.saved_tensors, grad.clone())


def elementwise(function: Elementwise, *inputs: Tensor) -> Tensor:
    """Apply a function by itself, where no linear follows that could take it along."""
    y: Tensor = _Differentiable.apply(function, *inputs)  # type: ignore[no-untyped-call]
    return y

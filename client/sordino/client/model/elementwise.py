"""What stands between two linears of a block: norms and activations, and their gradients.

Each is a pure function of its inputs, cheap beside a linear. So none of their outputs is kept for
the backward: it keeps the inputs, most of which somebody holds anyway, and does the function again.
What the output and the gradient share is then computed once.
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

Shared = Sequence[Tensor]


class Elementwise(Protocol):
    """A function of rows: no row of its output depends on another row of its inputs."""

    def shared(self, *inputs: Tensor) -> Shared:
        """What the output and the gradients are made of."""
        ...

    def output(self, shared: Shared) -> Tensor:
        """The function's value. It may be an input itself, and is not to be written into."""
        ...

    def back(self, shared: Shared, grad: Tensor) -> tuple[Tensor, ...]:
        """The gradient of each input; `shared` and `grad` may be overwritten."""
        ...


@dataclass(frozen=True)
class Same:
    """The identity."""

    def shared(self, *inputs: Tensor) -> Shared:
        """The input."""
        return inputs

    def output(self, shared: Shared) -> Tensor:
        """The input."""
        return shared[0]

    def back(self, shared: Shared, grad: Tensor) -> tuple[Tensor, ...]:
        """The gradient as it is."""
        del shared
        return (grad,)


@dataclass(frozen=True, eq=False)
class RmsNorm:
    """``x / rms(x) * gain`` over the last dimension, with a frozen gain."""

    gain: Tensor
    eps: float

    def shared(self, *inputs: Tensor) -> Shared:
        """The input, ``[..., features]``, and one over the root mean square of each row."""
        (x,) = inputs
        squares: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        return x, squares.div_(x.shape[-1]).add_(self.eps).rsqrt_()

    def output(self, shared: Shared) -> Tensor:
        """The normalized input."""
        x, scale = shared
        return (x * scale).mul_(self.gain)

    def back(self, shared: Shared, grad: Tensor) -> tuple[Tensor, ...]:
        """The gradient of the input."""
        x, scale = shared
        weighted = grad * self.gain
        along = (weighted * x).mean(-1, keepdim=True).mul_(scale.pow(3))
        return (weighted.mul_(scale).addcmul_(x, along, value=-1),)


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """``(x - mean) / deviation * gain + bias`` over the last dimension, both frozen."""

    gain: Tensor
    bias: Tensor
    eps: float

    def shared(self, *inputs: Tensor) -> Shared:
        """The input, ``[..., features]``, the output, and each row's mean and 1 / deviation."""
        (x,) = inputs
        return x, *torch.native_layer_norm(x, self.gain.shape, self.gain, self.bias, self.eps)

    def output(self, shared: Shared) -> Tensor:
        """The normalized input."""
        return shared[1]

    def back(self, shared: Shared, grad: Tensor) -> tuple[Tensor, ...]:
        """The gradient of the input."""
        x, _, mean, deviation = shared
        wanted = [True, False, False]  # the gain and the bias are frozen
        gradient, _, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, self.gain.shape, mean, deviation, self.gain, self.bias, wanted
        )
        return (gradient,)


@dataclass(frozen=True)
class Activated:
    """The activation of an MLP without a gate."""

    name: Activation

    def shared(self, *inputs: Tensor) -> Shared:
        """The input."""
        return inputs

    def output(self, shared: Shared) -> Tensor:
        """The activated input."""
        (up,) = shared
        return activate(self.name, up)

    def back(self, shared: Shared, grad: Tensor) -> tuple[Tensor, ...]:
        """The gradient of the input."""
        (up,) = shared
        return (_slope(self.name, up, grad),)


@dataclass(frozen=True)
class Gated:
    """``activation(gate) * up``."""

    name: Activation

    def shared(self, *inputs: Tensor) -> Shared:
        """Gate, up, and the activated gate."""
        gate, up = inputs
        return gate, up, activate(self.name, gate)

    def output(self, shared: Shared) -> Tensor:
        """The product."""
        _, up, activated = shared
        return activated * up

    def back(self, shared: Shared, grad: Tensor) -> tuple[Tensor, ...]:
        """The gradients of gate and up."""
        gate, up, activated = shared
        of_up = activated.mul_(grad)
        return _slope(self.name, gate, grad.mul_(up)), of_up


def activate(name: Activation, x: Tensor) -> Tensor:
    """The activation itself."""
    return F.silu(x) if name == "silu" else F.gelu(x, approximate=_APPROXIMATE[name])


def _slope(name: Activation, x: Tensor, grad: Tensor) -> Tensor:
    gradient: Tensor = (
        torch.ops.aten.silu_backward(grad, x)
        if name == "silu"
        else torch.ops.aten.gelu_backward(grad, x, approximate=_APPROXIMATE[name])
    )
    return gradient


_APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}


class _Alone(Function):
    @staticmethod
    def forward(ctx: Any, function: Elementwise, *inputs: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return function.output(function.shared(*inputs))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        function = ctx.function
        return None, *function.back(function.shared(*ctx.saved_tensors), grad.clone())


def elementwise(function: Elementwise, *inputs: Tensor) -> Tensor:
    """Apply a function by itself, where no linear follows that could take it along."""
    y: Tensor = _Alone.apply(function, *inputs)  # type: ignore[no-untyped-call]
    return y

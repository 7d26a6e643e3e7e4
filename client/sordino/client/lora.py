"""LoRA over a frozen quantized linear, with one gradient a record instead of one a batch.

For ``y = x Wᵀ + s (x Aᵀ) Bᵀ`` the gradient of B is ``s gᵀ (x Aᵀ)`` and that of A is ``s (g B)ᵀ x``.
The tokens of one record are a contiguous run of rows, so its gradients are the same products over
that run: they cost what the summed ones cost, and *replace* them. They are written into
``p.grad_sample``, where Opacus' `DPOptimizer` looks for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import Function
from torch.nn import Parameter

from sordino.client.model.decoder import frozen_linear
from sordino.client.model.matrices import Matrix
from sordino.core.adapters import base_of, tensor_names


@dataclass
class Tape:
    """What the backward needs to know of the micro-batch that is under way.

    Attributes:
        bounds: Start and stop row of each record.
        per_record: Write ``grad_sample``, one gradient a record; else add to ``grad``.
    """

    bounds: list[tuple[int, int]] = field(default_factory=list)
    per_record: bool = True


@dataclass(frozen=True)
class Site:
    """One adapted linear.

    Attributes:
        a: ``[rank, columns]``; trained if it requires a gradient.
        b: ``[rows, rank]``; trained if it requires a gradient.
        scale: ``alpha / rank``.
        tape: Shared by all sites of an adapter.
    """

    a: Parameter
    b: Parameter
    scale: float
    tape: Tape


class LoraLinear(Function):
    """The adapted linear. Saves ``x Aᵀ``, and x itself only where A is trained."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, matrix: Matrix, site: Site) -> Tensor:
        low = x @ a.t()
        y = x @ matrix.dense(x.dtype).t()
        y.addmm_(low, b.t(), alpha=site.scale)
        ctx.save_for_backward(low, x if a.requires_grad else None)
        ctx.matrix, ctx.site = matrix, site
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        low, x = ctx.saved_tensors
        site: Site = ctx.site
        back = (grad @ site.b.detach()).mul_(site.scale)
        if site.b.requires_grad:
            _write(site.b, grad, low, site.scale, site.tape)
        if site.a.requires_grad:
            _write(site.a, back, x, 1.0, site.tape)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        through = grad @ ctx.matrix.dense(grad.dtype)
        return through.addmm_(back, site.a.detach()), None, None, None, None


def _write(parameter: Parameter, left: Tensor, right: Tensor, scale: float, tape: Tape) -> None:
    """Write ``scale * leftᵀ right`` into the parameter, for each record or summed."""
    if not tape.per_record:
        total = (left.t() @ right).mul_(scale)
        parameter.grad = total if parameter.grad is None else parameter.grad.add_(total)
        return
    samples = left.new_empty((len(tape.bounds), *parameter.shape))
    for sample, (start, stop) in zip(samples, tape.bounds, strict=True):
        torch.mm(left[start:stop].t(), right[start:stop], out=sample)
    # One optimizer step may see several micro-batches; each writes its own, and the optimizer
    # clips and clears between them.
    parameter.grad_sample = samples.mul_(scale)  # type: ignore[attr-defined]


class LoraAdapter:
    """An adapter as parameters, applied over any decoder.

    Attributes:
        tape: Set by the training loop before each backward.
        parameters: The trained ones, by PEFT name.
    """

    def __init__(
        self,
        tensors: Mapping[str, NDArray[np.float32]],
        *,
        scale: float,
        trained: Iterable[str] = (),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Copy an adapter's tensors.

        Args:
            tensors: Every tensor of the adapter, by PEFT name.
            scale: ``alpha / rank``.
            trained: Names of those that train; none for evaluation.
            dtype: Precision of the parameters; the base computes in the same.
        """
        self.tape = Tape()
        chosen = set(trained)
        self._base = base_of(tensors)
        self._scale = scale
        self._all = {
            name: Parameter(torch.from_numpy(np.array(value)).to(dtype), name in chosen)
            for name, value in tensors.items()
        }
        self._sites: dict[str, Site | None] = {}
        self.parameters = {n: p for n, p in self._all.items() if p.requires_grad}

    def linear(self, name: str, matrix: Matrix, x: Tensor) -> Tensor:
        """Apply one linear, adapted where the adapter has its tensors: a decoder's `Linear`."""
        site = self._site(name)
        if site is None:
            return frozen_linear(name, matrix, x)
        y: Tensor = LoraLinear.apply(x, site.a, site.b, matrix, site)  # type: ignore[no-untyped-call]
        return y

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Copy the current values out, by PEFT name."""
        return {name: p.detach().to(torch.float32).numpy().copy() for name, p in self._all.items()}

    def _site(self, name: str) -> Site | None:
        if name not in self._sites:
            name_a, name_b = tensor_names(f"{self._base}.{name}")
            self._sites[name] = (
                Site(self._all[name_a], self._all[name_b], self._scale, self.tape)
                if name_a in self._all
                else None
            )
        return self._sites[name]

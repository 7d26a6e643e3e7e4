"""The linears that share one input, over frozen quantized weights, with LoRA beside them.

For ``y = x Wᵀ + s (x Aᵀ) Bᵀ`` the gradient of B is ``s gᵀ (x Aᵀ)`` and that of A is ``s (g B)ᵀ x``.
The tokens of one record are a contiguous run of rows, so its gradients are the same products over
that run: they cost what the summed ones cost, and *replace* them. They are written into
``p.grad_sample``, where Opacus' `DPOptimizer` looks for them.

Queries, keys and values read the same normalized input, and so do gate and up: one node of the
graph holds them all, together with the norm before them. It keeps what the norm read, which the
residual stream holds anyway, and ``x Aᵀ``; a weight is dense for one product at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Parameter

from sordino.client.model.elementwise import Elementwise, Same
from sordino.client.model.matrices import Matrix
from sordino.client.model.scratch import scratch

TILE_VALUES = 2**20  # of a weight that are dense at once


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
    """The low-rank part of one adapted linear.

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


@dataclass(frozen=True)
class _Call:
    """Linears of one input, with the place of each site's columns among the low-rank ones."""

    before: Elementwise
    matrices: Sequence[Matrix]
    sites: Sequence[Site | None]
    inputs: int

    @property
    def adapted(self) -> list[tuple[int, slice, Site]]:
        """Each adapted linear: its number, its low-rank columns, its site."""
        found, at = [], 0
        for number, site in enumerate(self.sites):
            if site is not None:
                found.append((number, slice(at, at + site.a.shape[0]), site))
                at += site.a.shape[0]
        return found

    @property
    def trains_a(self) -> bool:
        """Whether any A is trained, so that the backward needs the linears' input."""
        return any(site.a.requires_grad for _, _, site in self.adapted)


class _Linears(Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> Any:
        inputs = tensors[: call.inputs]
        x = call.before.output(call.before.shared(*inputs))
        outs = [_times(x, matrix) for matrix in call.matrices]
        adapted, low = call.adapted, None
        if adapted:
            low = x @ torch.cat([site.a for _, _, site in adapted]).t()
            for number, columns, site in adapted:
                part = low[:, columns].mul_(site.scale)
                outs[number].addmm_(part, site.b.t())
        needed = call.trains_a or not isinstance(call.before, Same)
        ctx.save_for_backward(low, *(inputs if needed else ()))
        ctx.call = call
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        call: _Call = ctx.call
        low, *inputs = ctx.saved_tensors
        adapted, back = call.adapted, None
        if adapted:
            back = torch.empty_like(low)
            for number, columns, site in adapted:
                _write_b(site, grads[number], low[:, columns])
                # The product with a contiguous transpose is several times faster.
                torch.mm(grads[number], site.b.detach().t().contiguous().t(), out=back[:, columns])
                back[:, columns].mul_(site.scale)
        shared = call.before.shared(*inputs) if inputs else ()
        if back is not None and call.trains_a:
            _write_a(adapted, back, call.before.output(shared))
        unused = [None] * (2 * len(adapted))
        if not any(ctx.needs_input_grad[1 : 1 + call.inputs]):
            return None, *[None] * call.inputs, *unused
        through = _times_transposed(grads, call.matrices)
        if back is not None:
            through.addmm_(back, torch.cat([site.a.detach() for _, _, site in adapted]))
        return None, *call.before.back(shared, through), *unused


def linears(
    before: Elementwise,
    inputs: Sequence[Tensor],
    matrices: Sequence[Matrix],
    sites: Sequence[Site | None],
) -> tuple[Tensor, ...]:
    """Apply linears to one input.

    Args:
        before: What the inputs go through first.
        inputs: Of `before`, each ``[tokens, ...]``.
        matrices: The frozen weights, each ``[rows, columns]``.
        sites: The low-rank part of each, or None.

    Returns:
        One ``[tokens, rows]`` a matrix.
    """
    call = _Call(before, matrices, sites, len(inputs))
    trained = [p for _, _, site in call.adapted for p in (site.a, site.b)]
    outs: tuple[Tensor, ...] = _Linears.apply(call, *inputs, *trained)  # type: ignore[no-untyped-call]
    return outs


def _times(x: Tensor, matrix: Matrix) -> Tensor:
    y = x.new_empty((x.shape[0], matrix.rows))
    for start, stop, weight in _dense_tiles(matrix, x.dtype):
        torch.mm(x, weight.t(), out=y[:, start:stop])
    return y


def _times_transposed(grads: Sequence[Tensor], matrices: Sequence[Matrix]) -> Tensor:
    total: Tensor | None = None
    for grad, matrix in zip(grads, matrices, strict=True):
        for start, stop, weight in _dense_tiles(matrix, grad.dtype):
            part = grad[:, start:stop]
            total = part @ weight if total is None else total.addmm_(part, weight)
    if total is None:
        raise ValueError("linears without a matrix")
    return total


def _dense_tiles(matrix: Matrix, dtype: torch.dtype) -> Iterator[tuple[int, int, Tensor]]:
    """Runs of rows, each dense until the next is asked for."""
    size = max(1, TILE_VALUES // matrix.columns)
    for start in range(0, matrix.rows, size):
        stop = min(start + size, matrix.rows)
        out = scratch("weight", (stop - start, matrix.columns), dtype)
        yield start, stop, matrix.tile(start, stop, dtype, out)


def _write_b(site: Site, grad: Tensor, low: Tensor) -> None:
    """Write ``gradᵀ low``; the transposed product, a wide one, is several times faster."""
    if not site.b.requires_grad:
        return
    if not site.tape.per_record:
        _add(site.b, (low.t() @ grad).t())
        return
    bounds = site.tape.bounds
    samples = grad.new_empty((len(bounds), low.shape[1], grad.shape[1]))
    for sample, (start, stop) in zip(samples, bounds, strict=True):
        torch.mm(low[start:stop].t(), grad[start:stop], out=sample)
    # One optimizer step may see several micro-batches; each writes its own, and the optimizer
    # clips and clears between them.
    site.b.grad_sample = samples.transpose(1, 2)  # type: ignore[attr-defined]


def _write_a(adapted: Sequence[tuple[int, slice, Site]], back: Tensor, x: Tensor) -> None:
    """Write ``backᵀ x`` of all linears at once, each record's as one product."""
    trained = [(columns, site) for _, columns, site in adapted if site.a.requires_grad]
    tape = trained[0][1].tape
    if not tape.per_record:
        for columns, site in trained:
            _add(site.a, back[:, columns].t() @ x)
        return
    samples = x.new_empty((len(tape.bounds), back.shape[1], x.shape[1]))
    for sample, (start, stop) in zip(samples, tape.bounds, strict=True):
        torch.mm(back[start:stop].t(), x[start:stop], out=sample)
    for columns, site in trained:
        site.a.grad_sample = samples[:, columns]  # type: ignore[attr-defined]


def _add(parameter: Parameter, gradient: Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

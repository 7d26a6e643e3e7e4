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
from functools import cached_property
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Parameter

from sordino.client.model.elementwise import Elementwise, Same
from sordino.client.model.matrices import BlockMatrix, Matrix
from sordino.client.model.scratch import kept, scratch

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

    @cached_property
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
        outs = _times(x, call.matrices)
        adapted, low = call.adapted, None
        if adapted:
            a = torch.cat([site.a for _, _, site in adapted])
            low = torch.mm(x, a.t(), out=kept((x.shape[0], a.shape[0]), x.dtype))
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


def _times(x: Tensor, matrices: Sequence[Matrix]) -> list[Tensor]:
    """``x Wᵀ`` for each matrix."""
    in_pairs = _worth_pairing(x, matrices)
    paired = _pair(x) if in_pairs else x
    outs = []
    for matrix in matrices:
        y = kept((x.shape[0], matrix.rows), x.dtype)
        left = paired if in_pairs and _has_pairs(matrix) else x
        for start, stop, weight in _dense_tiles(matrix, x.dtype, in_pairs):
            torch.mm(left, weight.t(), out=y[:, start:stop])
        outs.append(y)
    return outs


def _times_transposed(grads: Sequence[Tensor], matrices: Sequence[Matrix]) -> Tensor:
    """The sum of ``g W`` over the matrices."""
    in_pairs = _worth_pairing(grads[0], matrices)
    totals: dict[bool, Tensor] = {}
    for grad, matrix in zip(grads, matrices, strict=True):
        paired = in_pairs and _has_pairs(matrix)
        for start, stop, weight in _dense_tiles(matrix, grad.dtype, in_pairs):
            part = grad[:, start:stop]
            if paired in totals:
                totals[paired].addmm_(part, weight)
            else:
                totals[paired] = part @ weight
    if True not in totals:
        return totals[False]
    total = _unpair(totals[True])
    return total.add_(totals[False]) if False in totals else total


def _has_pairs(matrix: Matrix) -> TypeGuard[BlockMatrix]:
    return isinstance(matrix, BlockMatrix) and matrix.pairs


def _worth_pairing(x: Tensor, matrices: Sequence[Matrix]) -> bool:
    """Whether weights in pairs save more than pairing the few rows of x, there and back, costs.

    A value of x costs about half as much again as a weight's value saves; the size of the input
    and the weights alone decide, so that it is the same everywhere.
    """
    rows = sum(matrix.rows for matrix in matrices if _has_pairs(matrix))
    return x.dtype == torch.float32 and 3 * x.shape[0] < 2 * rows


def _pair(x: Tensor) -> Tensor:
    """Put the halves of each 32 columns in turn, as `BlockFormat.paired` does."""
    halves = x.reshape(-1, 2, 16)
    return torch.view_as_real(torch.complex(halves[:, 0], halves[:, 1])).view(x.shape)


def _unpair(x: Tensor) -> Tensor:
    pairs = x.view(-1, 16, 2)
    halves = x.new_empty((pairs.shape[0], 2, 16))
    halves[:, 0].copy_(pairs[..., 0])
    halves[:, 1].copy_(pairs[..., 1])
    return halves.view(x.shape)


def _dense_tiles(
    matrix: Matrix, dtype: torch.dtype, in_pairs: bool = False
) -> Iterator[tuple[int, int, Tensor]]:
    """Runs of rows, each dense until the next is asked for; in pairs where there is such a way."""
    size = max(1, TILE_VALUES // matrix.columns)
    for start in range(0, matrix.rows, size):
        stop = min(start + size, matrix.rows)
        if in_pairs and _has_pairs(matrix):
            yield start, stop, matrix.paired(start, stop)
        else:
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
    samples = kept((len(bounds), low.shape[1], grad.shape[1]), grad.dtype)
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
    samples = kept((len(tape.bounds), back.shape[1], x.shape[1]), x.dtype)
    for sample, (start, stop) in zip(samples, tape.bounds, strict=True):
        torch.mm(back[start:stop].t(), x[start:stop], out=sample)
    for columns, site in trained:
        site.a.grad_sample = samples[:, columns]  # type: ignore[attr-defined]


def _add(parameter: Parameter, gradient: Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

"""Which tokens a record had, from the row space of a LoRA update: linear algebra on arrays.

The gradient of A is Σ (Bᵀg)xᵀ over the tokens: its rows are combinations of the inputs x. In the
first layer of a model whose positions are rotations, x is a function of the token alone, so every
token of the vocabulary can be tried: those that were there lie in the row space (DAGER, Petrov et
al. 2024, https://arxiv.org/abs/2405.15586, section 4; there for full gradients).

A step's update of A has at most r rows that differ, so its row space tells single tokens apart only
while there are fewer distinct ones than r. With 128 tokens and r = 8 the check has no power, and
finding nothing means nothing. With B = 0 the gradient of A is zero.

Where A is frozen (`ffa`) only B's update is seen, Σ g(Ax)ᵀ. Its rows are combinations of Ax: r
numbers for each token instead of all of x. Whoever knows A tries every token's Ax the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import ArrayLike

from sordino.core.errors import AuditError, expected
from sordino.privacy.audit.checks import Floats, column, inside, one_of, whole
from sordino.privacy.audit.ranking import auc

TOLERANCE: Final = 1e-3
"""How far, in parts of its length, a vector may be outside the row space: float32 loses 1e-6."""

_FLOAT32: Final = 1e-6
SEEN: Final = {
    "A": "rows that combine the inputs themselves",
    "B": "rows that combine A·x, as many numbers a token as the adapter's rank",
}


@dataclass(frozen=True, kw_only=True)
class SpanCheck:
    """How far each vector is from the update's row space.

    Attributes:
        singular_values: Of the update, falling.
        rank: How many of them are above what rounding and noise give.
        residuals: Share of each vector's length outside the span of the first `rank` directions;
            1 for a zero vector.
    """

    singular_values: Floats
    rank: int
    residuals: Floats


def span_check(update: ArrayLike, vectors: ArrayLike, *, noise: float = 0.0) -> SpanCheck:
    """Hold vectors against the row space of an update.

    Args:
        update: Shape ``(rows, d)``: the update of A; or of B, whose rows are as long as A's rank.
        vectors: Shape ``(tokens, d)``: each token's input; for B, its product with A.
        noise: Standard deviation of the noise in each of the update's values.

    Raises:
        AuditError: Shapes that don't fit, or a value that isn't finite.
    """
    matrix, rows = (np.asarray(given, dtype=np.float64) for given in (update, vectors))
    if matrix.ndim != 2 or rows.ndim != 2 or matrix.shape[1] != rows.shape[1]:
        raise AuditError(expected("update and vectors", (matrix.shape, rows.shape), "(., d) each"))
    if not (np.isfinite(matrix).all() and np.isfinite(rows).all()):
        raise AuditError("expected update and vectors finite, got NaN or infinity")
    inside("noise", noise, 0.0, math.inf, closed=True)
    _, values, directions = np.linalg.svd(matrix, full_matrices=False)
    rank = numerical_rank(values, matrix.shape, noise)
    basis = directions[:rank]
    lengths = np.linalg.norm(rows, axis=1)
    # Squares cancel where little is left, so the rest itself is measured.
    rest = np.linalg.norm(rows - (rows @ basis.T) @ basis, axis=1)
    residuals = np.divide(rest, lengths, out=np.ones_like(rest), where=lengths > 0)
    return SpanCheck(singular_values=values, rank=rank, residuals=np.minimum(residuals, 1.0))


def numerical_rank(singular_values: ArrayLike, shape: tuple[int, int], noise: float = 0.0) -> int:
    """How many singular values are above rounding, and above the largest that noise has.

    A Gaussian matrix's largest is about σ(√rows + √columns), and beyond that by 4σ once in 10,000
    (Davidson and Szarek 2001, theorem II.13).
    """
    values = column("singular_values", singular_values)
    rounding = float(values[0]) * max(shape) * _FLOAT32
    of_noise = noise * (math.sqrt(shape[0]) + math.sqrt(shape[1]) + 4.3) if noise else 0.0
    return int((values > max(rounding, of_noise)).sum())


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """A span check of the vocabulary against one update.

    Attributes:
        what: Which update, in words.
        matrix: Which matrix was updated: "A", or "B" where A is frozen.
        adapter_rank: r.
        rows: Rows of the update.
        columns: Its columns.
        noise: Standard deviation of the noise in each value; 0: none.
        distinct: How many distinct tokens the update was made from.
        singular_values: Of the update.
        present: Residuals of the tokens that it was made from.
        absent: Residuals of tokens that it wasn't made from: all others, or a random sample.
        tolerance: Below which residual a token is taken to be there.
    """

    kind: ClassVar[str] = "inversion"

    what: str
    matrix: str
    adapter_rank: int
    rows: int
    columns: int
    noise: float
    distinct: int
    singular_values: tuple[float, ...]
    present: tuple[float, ...]
    absent: tuple[float, ...]
    tolerance: float = TOLERANCE

    def __post_init__(self) -> None:
        one_of("matrix", self.matrix, SEEN)
        for name in ("adapter_rank", "rows", "columns", "distinct"):
            whole(name, getattr(self, name), 1)
        inside("noise", self.noise, 0.0, math.inf, closed=True)
        inside("tolerance", self.tolerance, 0.0, 1.0)
        column("present", self.present, least=2)
        column("absent", self.absent, least=2)

    def figures(self) -> dict[str, Any]:
        """Tokens found and falsely found, and whether the check could have found any."""
        shape = (self.rows, self.columns)
        rank = numerical_rank(self.singular_values, shape, self.noise)
        told = auc([-r for r in self.present], [-r for r in self.absent])
        found = sum(r <= self.tolerance for r in self.present)
        false = sum(r <= self.tolerance for r in self.absent)
        missing = self._no_power(rank)
        return {
            "rank": rank,
            "exposes": SEEN[self.matrix],
            "auc": told.estimate,
            "found": found,
            "of": len(self.present),
            "false": false,
            "of_absent": len(self.absent),
            "power": not missing,
            "verdict": f"no power: {missing}"
            if missing
            else f"{found} of {len(self.present)} tokens found, {false} falsely",
        }

    def _no_power(self, rank: int) -> str:
        if rank == 0:
            return "the update is zero, or all noise"
        if self.distinct >= self.adapter_rank:
            return f"{self.distinct} distinct tokens, and the adapter's rank is {self.adapter_rank}"
        if rank >= self.columns:
            return "the row space is all there is: every token lies in it"
        return ""

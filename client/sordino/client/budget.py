"""How many tokens go through the model at once, and what is computed twice, within a memory budget.

A step's memory is its activations, and they grow with the tokens that are under way together. The
records of one logical batch may go through in any number of physical ones: that changes the time
and, but for rounding, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from sordino.client.model.architecture import Architecture
from sordino.client.model.linears import TILE_VALUES
from sordino.client.model.loss import LOGITS_BYTES, WEIGHT_BYTES
from sordino.client.model.scratch import SLAB_BYTES
from sordino.core.config import PerformanceConfig

MB = 10**6
FLOAT = 4
UNCOUNTED = 6  # percent: 2 to 4 were measured
SUM = 8  # bytes a value of the clipped sum takes
DRAWS = 3  # copies of the sum while it is released: put together, noised, and what lies between


@dataclass(frozen=True)
class StepCost:
    """What a step takes over the open model, in bytes.

    Attributes:
        kept: For each token, until the micro-batch is over, with every layer's activations kept.
        kept_inputs: The same where each layer keeps its input alone and is run again.
        one_layer: For each token, what a layer that is run again keeps meanwhile.
        passing: For each token, what is held while one layer is at work.
        record: Gradients of one record.
        fixed: The clipped sum, and the tiles of weights and logits.
        release: While the noise is added; no activation is left then.
    """

    kept: int
    kept_inputs: int
    one_layer: int
    passing: int
    record: int
    fixed: int
    release: int

    def peak(self, tokens: int, records: int, *, recompute: bool) -> int:
        """The most that is held at once with so many tokens, of so many records, under way."""
        kept = self.kept_inputs + self.one_layer if recompute else self.kept
        slabs = SLAB_BYTES * (2 if recompute else 1)  # each kind's last one is half used, or less
        counted = self.fixed + slabs + (kept + self.passing) * tokens + self.record * records
        return counted * (100 + UNCOUNTED) // 100


@dataclass(frozen=True)
class StepSize:
    """What was chosen.

    Attributes:
        tokens: The most tokens at once, but for a record that has more; 0: no limit.
        recompute: Run each layer again in the backward.
        peak: Expected bytes over the open model; 0 where nothing was asked.
        fits: Whether that is within the budget.
    """

    tokens: int
    recompute: bool
    peak: int = 0
    fits: bool = True

    def __str__(self) -> str:
        again = "each layer computed twice" if self.recompute else "nothing computed twice"
        over = "" if self.fits else ", more than performance.memory_mb allows: shorten the records"
        return f"{self.tokens} tokens at once, {again}, about {self.peak // MB} MB{over}"


def step_cost(arch: Architecture, rank: int, trained: int) -> StepCost:
    """Count what the engine's own functions keep.

    Args:
        arch: The base.
        rank: Of the adapter.
        trained: Trained values.
    """
    kept = _kept(arch, rank)
    ends = 6 * arch.hidden  # embedding, last norm, and the loss' gradient
    passing = 4 * arch.mlp + 6 * arch.hidden
    return StepCost(
        kept=FLOAT * (arch.layers * kept + ends),
        kept_inputs=FLOAT * (arch.layers * arch.hidden + ends),
        one_layer=FLOAT * kept,
        passing=FLOAT * passing,
        record=FLOAT * trained,
        fixed=SUM * trained + LOGITS_BYTES + WEIGHT_BYTES + 3 * FLOAT * TILE_VALUES // 2,
        release=DRAWS * SUM * trained,
    )


def step_size(cost: StepCost, longest: int, performance: PerformanceConfig) -> StepSize:
    """Choose the fastest way that stays within the budget: as much at once as fits.

    Args:
        cost: Of the model and adapter.
        longest: Tokens of the longest record, over all its views.
        performance: Its `memory_mb`; 0: nothing is chosen, and `checkpoint` holds. Its
            `micro_batch`: the most records at once.
    """
    if not performance.memory_mb:
        return StepSize(0, performance.checkpoint)
    budget = performance.memory_mb * MB
    longest = max(longest, 1)
    for recompute in [True] if performance.checkpoint else [False, True]:
        for together in range(performance.micro_batch, 0, -1):
            peak = max(cost.peak(together * longest, together, recompute=recompute), cost.release)
            if peak <= budget:
                return StepSize(together * longest, recompute, peak)
    return StepSize(longest, True, max(cost.peak(longest, 1, recompute=True), cost.release), False)


def _kept(arch: Architecture, rank: int) -> int:
    """Values that a layer keeps for each token."""
    widths, parts, linears = arch.widths, arch.parts, arch.family.linears
    query, key, hidden = widths["query"], widths["key"], widths["hidden"]
    heads = widths["joined"] if parts.joined else query + 2 * key  # turned in place
    streams = 1 if parts.parallel else 2
    norms = sum(
        {"query": query, "key": key, "after_attention": hidden, "after_mlp": hidden}.get(role, 0)
        for role in parts.norms
    )
    inner = arch.mlp * (2 if "gate" in linears else 1)
    return streams * hidden + heads + query + norms + inner + rank * len(linears) + arch.heads

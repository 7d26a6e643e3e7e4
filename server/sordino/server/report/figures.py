"""From per-record losses to the utility figures of a report."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from sordino.core.stats import paired_bootstrap, perplexity
from sordino.server.report.schema import UtilityFigures


def measured_gain(
    loss_before: ArrayLike,
    loss_after: ArrayLike,
    tokens: ArrayLike,
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
) -> UtilityFigures:
    """Utility on held-out records: loss per token before and after, and the gain's interval.

    Args:
        loss_before: Summed loss of each held-out record under the base, in nats.
        loss_after: The same records' summed losses under the adapter that is judged. For the
            baseline without federation, each client's records under that client's own adapter.
        tokens: How many tokens each record's loss counts.
        rng: Where the bootstrap's resamples come from.
        resamples: How many of them.

    Raises:
        DataError: Shapes differ, there is no record, or a loss is not finite.
    """
    interval = paired_bootstrap(loss_before, loss_after, tokens, rng=rng, resamples=resamples)
    total = float(np.sum(tokens))
    after = float(np.sum(loss_after)) / total
    return UtilityFigures(
        loss_before=float(np.sum(loss_before)) / total,
        loss_after=after,
        interval=interval,
        perplexity_after=perplexity(after),
        tokens=int(total),
    )

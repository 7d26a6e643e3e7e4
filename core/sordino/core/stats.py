"""Figures with an interval and a method: the paired bootstrap over records; careful rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sordino.core.errors import DataError, expected

_CHUNK_ELEMENTS = 1 << 18  # drawn indices held at once: 2 MB, whatever the number of records


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate, and where the truth lies by a named method at a named level."""

    estimate: float
    low: float
    high: float
    method: str
    level: float
    resamples: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    loss_before: ArrayLike,
    loss_after: ArrayLike,
    tokens: ArrayLike,
    *,
    rng: np.random.Generator,
    level: float = 0.95,
    resamples: int = 2000,
) -> Interval:
    """Estimate how far the loss per token falls, with a percentile interval over records.

    Both losses are of the same records, so a resample draws whole records and keeps each one's two
    losses together: what is common to both cancels (Efron and Tibshirani 1993, chapters 8 and 13).
    The statistic is a ratio of sums, Σ(before - after) / Σ tokens; a mean of the records' own means
    would let a short record weigh as much as a long one.

    Args:
        loss_before: Summed loss of each record before training, in nats, shape ``(records,)``.
        loss_after: The same records' summed losses after training.
        tokens: How many tokens each record's loss counts, all > 0.
        rng: Where the resamples come from.
        level: Share of intervals that should hold the truth.
        resamples: How many resamples to draw.

    Returns:
        The gain in nats per token; positive means that the loss fell.

    Raises:
        DataError: Shapes differ, there is no record, or a value is not finite.

    >>> paired_bootstrap([4.0, 6.0], [3.0, 5.0], [1, 1], rng=np.random.default_rng(0)).estimate
    1.0
    """
    difference, counts = _checked(loss_before, loss_after, tokens)
    if not 0 < level < 1:
        raise DataError(expected("level", level, "in (0, 1)"))
    if resamples < 1:
        raise DataError(expected("resamples", resamples, ">= 1"))
    ratios = _resampled_ratios(difference, counts, rng, resamples)
    tail = (1 - level) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Interval(
        estimate=float(difference.sum() / counts.sum()),
        low=float(low),
        high=float(high),
        method="paired bootstrap over records, percentile",
        level=level,
        resamples=resamples,
    )


def perplexity(loss_per_token: float) -> float:
    """Perplexity of a loss in nats per token; infinite where it is beyond a float.

    >>> perplexity(0.0)
    1.0
    """
    return math.exp(loss_per_token) if loss_per_token < math.log(1.7e308) else math.inf


def round_up(value: float, decimals: int) -> float:
    """Round towards +∞ on the decimal digits that a reader would see: an upper bound stays one.

    >>> round_up(7.991, 2), round_up(8.0, 2)
    (8.0, 8.0)
    """
    return _rounded(value, decimals, ROUND_CEILING)


def round_down(value: float, decimals: int) -> float:
    """Round towards -∞, for the lower end of an interval.

    >>> round_down(-0.0001, 3)
    -0.001
    """
    return _rounded(value, decimals, ROUND_FLOOR)


def ceil_digits(value: float, digits: int = 3) -> str:
    """As many significant digits, rounded towards +∞: an upper bound that spans decades stays one.

    >>> ceil_digits(0.017101), ceil_digits(7.19e-13), ceil_digits(0.0)
    ('0.0172', '7.19e-13', '0')
    """
    exact = Decimal(float(value))
    return f"{float(Context(prec=digits, rounding=ROUND_CEILING).plus(exact)):.{digits}g}"


def _rounded(value: float, decimals: int, direction: str) -> float:
    if not math.isfinite(value) or abs(value) >= 1e15:  # no decimals left to round
        return value
    # repr is the shortest decimal that is this float: 0.1 stays 0.1 and isn't pushed up to 0.11.
    return float(Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-decimals), direction))


def _checked(
    loss_before: ArrayLike, loss_after: ArrayLike, tokens: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    before, after, counts = (
        np.asarray(values, dtype=np.float64) for values in (loss_before, loss_after, tokens)
    )
    if not (before.ndim == 1 and before.shape == after.shape == counts.shape and before.size):
        shapes = (before.shape, after.shape, counts.shape)
        raise DataError(expected("losses and tokens", shapes, "of one shape (records,), not empty"))
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise DataError("expected every record's loss finite, got NaN or infinity")
    if not (np.isfinite(counts).all() and (counts > 0).all()):
        raise DataError(
            "expected every record to count at least one token: leave out empty records"
        )
    return before - after, counts


def _resampled_ratios(
    difference: NDArray[np.float64],
    counts: NDArray[np.float64],
    rng: np.random.Generator,
    resamples: int,
) -> NDArray[np.float64]:
    records = difference.size
    rows = max(1, _CHUNK_ELEMENTS // records)
    ratios = np.empty(resamples)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        drawn = rng.integers(records, size=(stop - start, records))
        ratios[start:stop] = difference[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return ratios

"""Several views of one record, to be averaged before it is clipped.

A further view of a text is the record with some of its beginning left out and some of what is read
replaced, while what is to be predicted stays. A view is made of its own record and of coins, and of
nothing else: words taken from another record (the client's word frequencies, say) would let that
record move the sum twice, and the clip norm would no longer bound what one record does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sordino.client.batches import Example, Tokens, View, Viewed, views_of
from sordino.core.config import TrainConfig

Words = Callable[[int], NDArray[np.uint64]]
"""Gives n words of 64 fair bits."""


def with_views(records: Sequence[Tokens], train: TrainConfig, words: Words) -> list[Example]:
    """Give each record its views: itself, then `train.views` - 1 that are altered.

    Args:
        records: The records of one batch.
        train: How many views, and how far they are altered.
        words: The round's own randomness, so that a retry of a seeded round makes the same views.
    """
    if train.views == 1:
        return list(records)
    return [Viewed(_views(record, train, words)) for record in records]


def _views(record: Tokens, train: TrainConfig, words: Words) -> tuple[View, ...]:
    (whole,) = views_of(record)
    further = (
        dropped(cut(whole, train.view_cut, words), train.view_dropout, words)
        for _ in range(train.views - 1)
    )
    return (whole, *further)


def cut(view: View, part: float, words: Words) -> View:
    """Leave out the tokens after the first, as many as a coin says.

    The first token stays: it is often a begin token, on which much of the attention rests. Its own
    prediction no longer counts, since what followed it is gone.

    Args:
        view: With at least one counted row.
        part: At most this part of the rows goes; the last counted one always stays.
        words: Fair bits.
    """
    last = int(np.flatnonzero(view.counted)[-1])
    most = min(math.floor(part * len(view.inputs)), last - 1)
    gone = int(_uniform(1, words)[0] * (most + 1)) if most > 0 else 0
    if gone == 0:
        return view
    rows = np.concatenate([[0], np.arange(gone + 1, len(view.inputs))])
    counted = view.counted[rows]
    counted[0] = False
    return View(view.inputs[rows], view.targets[rows], counted)


def dropped(view: View, part: float, words: Words) -> View:
    """Replace each input but the first, with probability `part`, by one of the view's own tokens.

    Args:
        view: A view.
        part: The probability.
        words: Fair bits.
    """
    if part == 0:
        return view
    size = len(view.inputs)
    chosen = _uniform(size, words) < part
    chosen[0] = False
    others = view.inputs[(_uniform(size, words) * size).astype(np.intp)]
    return View(np.where(chosen, others, view.inputs), view.targets, view.counted)


def _uniform(size: int, words: Words) -> NDArray[np.float64]:
    """In [0, 1), from the upper 53 bits of each word."""
    return (words(size) >> np.uint64(11)).astype(np.float64) * 2.0**-53

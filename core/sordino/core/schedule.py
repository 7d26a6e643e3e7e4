"""The local optimizer's learning rate at each step of a run.

It follows from the plan's numbers of rounds and steps alone, which are public: a device knows how
far the run has come without being told, and the coordinator knows how far an honest update can go.
"""

from __future__ import annotations

import math

from sordino.core.config import TrainConfig


def learning_rate(train: TrainConfig, *, step: int, total: int) -> float:
    """The learning rate of one local step, > 0.

    The first ``warmup`` part of the run's steps rises linearly to `train.learning_rate`. From there
    the rate stays (``constant``), or falls towards 0 along a line or half a cosine, which would be
    reached by the step after the last.

    Args:
        train: The local optimizer.
        step: The step of the run, from 0, counted through all rounds.
        total: Steps in the run.
    """
    rising = math.floor(train.warmup * total)
    if step < rising:
        return train.learning_rate * ((step + 1) / rising)
    left = (total - step) / (total - rising)  # 1 at the first full step, > 0 at the last
    if train.schedule == "linear":
        return train.learning_rate * left
    if train.schedule == "cosine":
        return train.learning_rate * ((1 - math.cos(math.pi * left)) / 2)
    return train.learning_rate


def learning_rates(
    train: TrainConfig, *, round_number: int, rounds: int, steps: int
) -> tuple[float, ...]:
    """The learning rate of each local step of a round.

    Args:
        train: The local optimizer.
        round_number: The round, from 1.
        rounds: The plan's number of rounds.
        steps: The plan's steps in each round.

    >>> linear = TrainConfig(learning_rate=8.0, schedule="linear", warmup=0.4)
    >>> learning_rates(linear, round_number=1, rounds=2, steps=3)
    (4.0, 8.0, 8.0)
    >>> learning_rates(linear, round_number=2, rounds=2, steps=3)
    (6.0, 4.0, 2.0)
    """
    start = (round_number - 1) * steps
    return tuple(
        learning_rate(train, step=step, total=rounds * steps)
        for step in range(start, start + steps)
    )

"""Scores of committed canaries, by adversary and round. No coin is looked at here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sordino.client.data.tokens import TokenRecord
from sordino.client.lora import LoraAdapter
from sordino.client.probe import alignment, flat, record_gradients, token_scores
from sordino.privacy.canaries import Canary
from sordino.privacy.plan import CentralPlan, Plan
from sordino.sim.audit.target import Target

Scores = NDArray[np.float64]
Tick = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Sight:
    """One adversary's view up to one round.

    Attributes:
        adversary: ``coordinator``, ``peer`` or ``user``.
        round: The last round that it has seen.
        scores: ``float64[canaries]``, higher the more a canary seems to be in.
    """

    adversary: str
    round: int
    scores: Scores


def sights(
    target: Target, canaries: Sequence[Canary], tick: Tick, variant: str | None = None
) -> list[Sight]:
    """Score every canary for each adversary that sees a run, after each round.

    The coordinator has every update of its client and adds up, over the rounds, how far each went
    down the canary's gradient (under central trust it is trusted, and isn't an adversary). A peer
    has the global adapters: how much likelier the newest makes the canary than the base does. A
    user has the last one alone, and sees nothing but its answers.
    """
    variant = variant or target.main
    rounds = target.rounds(variant)
    encoded = target.corpus.encode([canary.text for canary in canaries])
    found: list[Sight] = []
    if not isinstance(target.plan(variant), CentralPlan):
        total = np.zeros(len(canaries))
        for number in range(1, rounds + 1):
            total = total + _aligned(target, variant, number, canaries, encoded)
            found.append(Sight(adversary="coordinator", round=number, scores=total))
            tick()
    before = _losses(target, None, encoded)
    for number in range(1, rounds + 1):
        after = _losses(target, (variant, number), encoded)
        found.append(Sight(adversary="peer", round=number, scores=before - after))
        tick()
    found.append(Sight(adversary="user", round=rounds, scores=found[-1].scores))
    return found


def _aligned(
    target: Target,
    variant: str,
    number: int,
    canaries: Sequence[Canary],
    encoded: Sequence[TokenRecord],
) -> Scores:
    """Each canary against the update of the client that it may have joined."""
    scores = np.zeros(len(canaries))
    start, trained = target.tensors(variant, number - 1), target.trained(number)
    plan = target.plan(variant)
    clip_norm = plan.clip_norm if isinstance(plan, Plan) else None
    for index, user in enumerate(target.corpus.users):
        own = [i for i, canary in enumerate(canaries) if canary.client == user]
        update = target.update(variant, number, index) if own else None
        if update is None:
            continue
        gradients = record_gradients(
            target.base.decoder, start, trained, [encoded[i] for i in own], scale=target.scale
        )
        scores[own] = alignment(flat(update), gradients, clip_norm=clip_norm)
    return scores


def _losses(
    target: Target, adapter: tuple[str, int] | None, encoded: Sequence[TokenRecord]
) -> Scores:
    over = LoraAdapter(target.tensors(*adapter), scale=target.scale) if adapter else None
    return np.array([s.loss for s in token_scores(target.base.decoder, over, encoded)])

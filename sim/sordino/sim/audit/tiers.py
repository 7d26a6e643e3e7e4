"""How much an audit does, and what it will take."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, Literal

from sordino.client.probe import record_gradients, token_scores
from sordino.core.errors import AuditError, expected
from sordino.privacy.canaries import Canary
from sordino.sim.audit.target import Target

TierName = Literal["quick", "full"]


@dataclass(frozen=True, kw_only=True)
class Tier:
    """How much of each part.

    Attributes:
        name: What a user asks for.
        texts: Members and others, of each at most so many.
        full: Also the attacks that need further passes over them.
        prompts: System prompts that are attacked, where the model can follow one; 0: none.
        what: In words.
    """

    name: str
    texts: int
    full: bool
    prompts: int
    what: str


TIERS: Final = {
    "demo": Tier(name="demo", texts=150, full=False, prompts=0, what="exposure and membership"),
    "quick": Tier(
        name="quick", texts=300, full=False, prompts=0, what="all but the attacks on prompts"
    ),
    "full": Tier(name="full", texts=2000, full=True, prompts=24, what="everything"),
}


def tier_of(name: str) -> Tier:
    """The tier of a name.

    Raises:
        AuditError: There is none.
    """
    if name not in TIERS:
        raise AuditError(expected("tier", name, f"one of {', '.join(TIERS)}"))
    return TIERS[name]


def estimated_seconds(target: Target, tier: Tier, canaries: list[Canary]) -> float:
    """About how long the parts will take, from a few records timed here and now.

    Prompts aren't in it: they are timed by their own first answers.
    """
    texts = target.corpus.texts("train", target.corpus.users[:1])[:8]
    records = target.corpus.encode(texts)
    if not records:
        return 0.0
    token_scores(target.base.decoder, None, records)  # the first pass pays for opening the file
    started = time.perf_counter()
    token_scores(target.base.decoder, None, records)
    each = (time.perf_counter() - started) / len(records)
    started = time.perf_counter()
    start = target.tensors(target.main, 0)
    record_gradients(target.base.decoder, start, target.trained(1), records[:4], scale=target.scale)
    gradient = (time.perf_counter() - started) / len(records[:4])
    variants, rounds = len(target.variants), target.rounds(target.main)
    held = len(target.corpus.texts("train"))
    passes = 2 * min(tier.texts, held) * (2 + tier.full) * variants
    secrets = sum(canary.purpose == "exposure" for canary in canaries)
    bound = len(canaries) - secrets
    return (
        each * (passes + variants * bound * (rounds + 1) + 20 * secrets * variants)
        + gradient * variants * bound * rounds
    )

"""From sealed scores and opened coins to measures: bounds on ε, exposure, extraction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.privacy.audit import Entry, OneRun, measured
from sordino.privacy.canaries import Canary
from sordino.privacy.claims import Claim
from sordino.privacy.plan import NoPrivacyPlan
from sordino.sim.audit.parts.secrets import exposure, extraction
from sordino.sim.audit.planting import Planted
from sordino.sim.audit.target import Target

SWAPPED = "coins tossed anew"


def bound_entries(
    target: Target,
    variant: str,
    label: str,
    known: Planted,
    scores: Mapping[str, Mapping[str, Any]],
    coins: NDArray[np.bool_],
    claim: Claim | None,
) -> list[Entry]:
    """A lower bound for each adversary after each round, and the control: other coins.

    Every look at a variant's canaries is one of a family, and pays for all of them. An earlier
    round is held against the whole run's claim, which covers it.
    """
    canaries = known.canaries
    places = [i for i, canary in enumerate(canaries) if canary.purpose == "bound"]
    seen = scores[variant].get("sights", [])
    if not places or not seen:
        return []
    own, last = coins[places], target.rounds(variant)
    about = _about(target, variant, claim)

    def one(sight: Mapping[str, Any], own_coins: NDArray[np.bool_]) -> OneRun:
        number = int(sight["round"])
        return OneRun(
            adversary=str(sight["adversary"]),
            scope="the whole run" if number == last else f"round {number}",
            scores=tuple(sight["scores"]),
            coins=tuple(own_coins.tolist()),
            canaries=tuple(places),
            rules=known.published.rules,
            family=len(seen),
            **about,
        )

    anew = target.corpus.rng("swapped").random(len(own)) < 0.5
    return [
        *(measured(label, one(sight, own)) for sight in seen),
        *(measured(label, one(s, anew), SWAPPED) for s in seen if int(s["round"]) == last),
    ]


def _about(target: Target, variant: str, claim: Claim | None) -> dict[str, Any]:
    """What a bound is of, and the claim that it is held against, if there is one of that unit.

    A canary is a record. Under central trust the claim is for a user: a record that is added to one
    who takes part all the same may move the sum by twice as much, so no bound is held against it.
    """
    plan = target.plan(variant)
    delta = target.config.privacy.delta if isinstance(plan, NoPrivacyPlan) else plan.delta
    of = {"unit": "record", "delta": delta}
    if claim is None or isinstance(plan, NoPrivacyPlan) or plan.unit != "record":
        return of
    return {**of, "claimed_epsilon": claim.epsilon, "curve": claim.delta_curve}


def secret_entries(
    label: str, canaries: Sequence[Canary], scores: Mapping[str, Any], coins: NDArray[np.bool_]
) -> list[Entry]:
    """Exposure of the codes, and extraction of all canaries; those that stayed out are the null."""
    found: list[Entry] = []
    places = [i for i, canary in enumerate(canaries) if canary.purpose == "exposure"]
    if places:
        secrets = [canaries[i] for i in places]
        measure = exposure(scores["ranks"], secrets, coins[places].tolist())
        found.append(measured(label, measure))
    if coins.any():
        rows = [tuple(row) for row in scores["suffixes"]]
        found.append(measured(label, extraction(rows, coins.tolist())))
    return found

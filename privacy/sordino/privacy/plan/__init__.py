"""The plan: the one thing that couples sampler, clip, noise, divisor and the accounted event.

A plan is public, has one canonical encoding, and is named by that encoding's SHA-256: the hash that
a task carries is exactly what the ledger charges. The only way to sample, clip and draw noise is a
`RoundMechanism`, and the only way to get one is `open_round` with the ledger's proof that this
plan's round is durably charged. So nothing is drawn that wasn't charged, and nothing is charged as
something else than what is drawn. An unfinished round stays charged.

    plan = private_plan(config, run_id="r1", rounds=3, local_steps=10)
    charge = ledger.charge(plan, 1, dataset_id)              # on disk from here on
    mechanism = open_round(plan, charge, system_source())
    for _ in range(mechanism.steps):
        batch = mechanism.sample(len(records))               # may be empty: still a step
        factors = mechanism.clip_factors(norms_of(batch))    # whole, or micro-batch by micro-batch
        gradient = (clipped_sum + mechanism.noise(size)) / mechanism.divisor
"""

from sordino.privacy.plan.figures import events_by_client, events_of, guarantee, spent
from sordino.privacy.plan.plans import (
    AnyPlan,
    NoPrivacyPlan,
    Plan,
    decode_plan,
    plan_without_privacy,
    private_plan,
)
from sordino.privacy.plan.rounds import (
    Mechanism,
    NoPrivacyMechanism,
    RoundMechanism,
    open_round,
    open_round_without_privacy,
)

__all__ = [
    "AnyPlan",
    "Mechanism",
    "NoPrivacyMechanism",
    "NoPrivacyPlan",
    "Plan",
    "RoundMechanism",
    "decode_plan",
    "events_by_client",
    "events_of",
    "guarantee",
    "open_round",
    "open_round_without_privacy",
    "plan_without_privacy",
    "private_plan",
    "spent",
]

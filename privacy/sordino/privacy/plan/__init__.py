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
        gradient = mechanism.release(clipped_sum) / mechanism.divisor
"""

from sordino.privacy.plan.adaptive import ClipMemory
from sordino.privacy.plan.central import CentralPlan
from sordino.privacy.plan.decode import (
    AnyPlan,
    decode_charged_plan,
    decode_metric_plan,
    decode_plan,
)
from sordino.privacy.plan.figures import (
    events_by_client,
    events_of,
    guarantee,
    spent,
)
from sordino.privacy.plan.forecast import Forecast, first_refused_round, forecast, forecasts
from sordino.privacy.plan.limits import (
    ChargedPlan,
    binding_caps,
    counted,
    filter_of,
    policy_limit,
    request_of,
)
from sordino.privacy.plan.making import (
    central_plan,
    metric_plan,
    plan_of_run,
    plan_without_privacy,
    private_plan,
)
from sordino.privacy.plan.metrics import MetricMechanism, MetricPlan, open_metric
from sordino.privacy.plan.plans import AdaptiveClip, NoPrivacyPlan, Plan
from sordino.privacy.plan.rounds import (
    Mechanism,
    NoPrivacyMechanism,
    RoundMechanism,
    open_round,
    open_round_without_privacy,
)
from sordino.privacy.plan.sums import CentralSum, UserMechanism, open_update, sample_users
from sordino.privacy.plan.support import Support, support
from sordino.privacy.plan.verification import describe, verify_ledger

__all__ = [
    "AdaptiveClip",
    "AnyPlan",
    "CentralPlan",
    "CentralSum",
    "ChargedPlan",
    "ClipMemory",
    "Forecast",
    "Mechanism",
    "MetricMechanism",
    "MetricPlan",
    "NoPrivacyMechanism",
    "NoPrivacyPlan",
    "Plan",
    "RoundMechanism",
    "Support",
    "UserMechanism",
    "binding_caps",
    "central_plan",
    "counted",
    "decode_charged_plan",
    "decode_metric_plan",
    "decode_plan",
    "describe",
    "events_by_client",
    "events_of",
    "filter_of",
    "first_refused_round",
    "forecast",
    "forecasts",
    "guarantee",
    "metric_plan",
    "open_metric",
    "open_round",
    "open_round_without_privacy",
    "open_update",
    "plan_of_run",
    "plan_without_privacy",
    "policy_limit",
    "private_plan",
    "request_of",
    "sample_users",
    "spent",
    "support",
    "verify_ledger",
]

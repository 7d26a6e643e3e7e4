"""The policy of a simulated device's owner: allows the run's own plan, and nothing beyond it.

It is signed and checked as on a real device, with a key that is made for the run and thrown away.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from sordino.core.families import GROUPS
from sordino.core.stats import round_up
from sordino.privacy.accounting import Event
from sordino.privacy.plan import (
    AnyPlan,
    CentralPlan,
    MetricPlan,
    NoPrivacyPlan,
    Plan,
    filter_of,
    request_of,
)
from sordino.privacy.policy import Cap, Policy, make_owner_key, policy_toml, sign_policy
from sordino.sim.folder import RunFolder


def simulated_policy(
    plan: AnyPlan, run: RunFolder, metric: MetricPlan | None = None
) -> dict[str, str]:
    """Write and sign the policy that a plan needs, once for a run, and say where it is.

    Args:
        plan: The variant's plan; without privacy there is nothing to allow.
        run: The run's folder.
        metric: The plan of the metric that the variant buys, if it does.

    Returns:
        Keys for a node's configuration.
    """
    if isinstance(plan, NoPrivacyPlan):
        return {}
    path = run.root / "state" / f"policy-{plan.sha256[:16]}.toml"
    public = path.with_suffix(".key.pub")
    if not public.exists():
        path.write_text(policy_toml(policy_for(plan, metric)), encoding="utf-8")
        with tempfile.TemporaryDirectory() as made:
            key = Path(made) / "owner.key"
            make_owner_key(key)
            public.write_text(sign_policy(path, key), encoding="ascii")
    return {"policy": str(path), "policy-key": public.read_text(encoding="ascii")}


def policy_for(plan: Plan | CentralPlan, metric: MetricPlan | None = None) -> Policy:
    """What exactly this plan, and the metric beside it, need."""
    asked = request_of(plan)
    cap = Cap(epsilon=1.0, delta=plan.delta, unit=plan.unit)
    events: list[Event] = [plan.round_event()] * plan.rounds
    bought: dict[str, Any] = {}
    if metric is not None:
        events += [metric.round_event()] * metric.rounds
        bought = {"metrics": (metric.metric,), "min_metric_noise": metric.noise_multiplier}
    epsilon = round_up(filter_of(cap).spent(events), 2)
    return Policy(
        **bought,
        trust=(plan.trust,),
        min_noise_multiplier=plan.noise_multiplier,
        max_clip_norm=plan.clip_norm,
        max_sampling_rate=asked.sampling_rate or 1.0,
        max_steps_per_round=plan.steps_per_round,
        max_rounds=plan.rounds,
        max_delta=plan.delta,
        min_cohort=asked.cohort or 1,
        max_population=asked.population or 1,
        amplification=asked.amplified,
        max_rank=4096,
        targets=GROUPS,
        caps=(replace(cap, epsilon=max(epsilon, 0.01)),),
    )

"""The policy of a simulated device's owner: allows the run's own plan, and nothing beyond it.

It is signed and checked as on a real device, with a key that is made for the run and thrown away.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from sordino.core.families import GROUPS
from sordino.core.stats import round_up
from sordino.privacy.accounting import Event
from sordino.privacy.plan import AnyPlan, MetricPlan, Plan, filter_of
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
    if not isinstance(plan, Plan):
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


def policy_for(plan: Plan, metric: MetricPlan | None = None) -> Policy:
    """What exactly this plan, and the metric beside it, need."""
    cap = Cap(epsilon=1.0, delta=plan.delta)
    events: list[Event] = [plan.round_event()] * plan.rounds
    bought: dict[str, Any] = {}
    if metric is not None:
        events += [metric.round_event()] * metric.rounds
        bought = {"metrics": (metric.metric,), "min_metric_noise": metric.noise_multiplier}
    epsilon = round_up(filter_of(cap).spent(events), 2)
    return Policy(
        **bought,
        min_noise_multiplier=plan.noise_multiplier,
        max_clip_norm=plan.clip_norm,
        max_sampling_rate=plan.sampling_rate,
        max_steps_per_round=plan.steps_per_round,
        max_rounds=plan.rounds,
        max_delta=plan.delta,
        max_rank=4096,
        targets=GROUPS,
        caps=(Cap(epsilon=max(epsilon, 0.01), delta=plan.delta),),
    )

"""How a run's plan is made from its configuration: the noise is solved for, over the whole run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sordino.core.config import FederationConfig, MetricsConfig, PrivacyConfig
from sordino.core.errors import PlanError, expected
from sordino.privacy import accounting
from sordino.privacy.accounting import Event
from sordino.privacy.plan.central import CentralPlan
from sordino.privacy.plan.decode import AnyPlan
from sordino.privacy.plan.metrics import MetricPlan
from sordino.privacy.plan.plans import AdaptiveClip, NoPrivacyPlan, Plan


def plan_of_run(
    config: PrivacyConfig,
    federation: FederationConfig,
    *,
    run_id: str,
    rounds: int,
    local_steps: int,
    metric: MetricPlan | None = None,
) -> AnyPlan:
    """Make the plan of a run under the trust that its configuration declares.

    Args:
        config: Decides the trust, and all else that the guarantee is made of.
        federation: For central trust: how many users there are, and how they are sampled.
        run_id: The run's name.
        rounds: How many.
        local_steps: Steps of each round.
        metric: What else the run buys, from `metric_plan`; with local trust alone.

    Raises:
        PlanError: A value is impossible, or the accountants contradict.
    """
    if config.trust == "local":
        return private_plan(
            config, run_id=run_id, rounds=rounds, local_steps=local_steps, metric=metric
        )
    if metric is not None:
        required = f"None with {config.trust} trust"
        todo = "its noise is added on the device and its unit is the record"
        raise PlanError(expected("metric", metric.metric, required, todo))
    if config.trust == "central":
        return central_plan(
            config,
            run_id=run_id,
            rounds=rounds,
            local_steps=local_steps,
            population=federation.population,
            user_rate=federation.user_rate,
        )
    return plan_without_privacy(config, run_id=run_id, rounds=rounds, local_steps=local_steps)


def private_plan(
    config: PrivacyConfig,
    *,
    run_id: str,
    rounds: int,
    local_steps: int,
    metric: MetricPlan | None = None,
) -> Plan:
    """Make the plan of a run, solving for the noise unless the configuration gives it.

    With `noise_multiplier` unset, the PLD ε of the whole run, the looks at its metric included, is
    at most `config.epsilon`.

    Args:
        config: Trust must be `local`.
        run_id: The run's name.
        rounds: How many.
        local_steps: Steps of each round.
        metric: What else the run buys, from `metric_plan`.

    Raises:
        PlanError: The trust isn't `local`, a value is impossible, or the accountants contradict.
    """
    if config.trust != "local":
        raise PlanError(expected("privacy.trust", config.trust, "to be local for a private plan"))
    beside = [] if metric is None else [metric.total_event()]
    noise_multiplier = _noise(
        config, sampling_rate=config.sampling_rate, steps=rounds * local_steps, beside=beside
    )
    adaptive = _adaptive(config, noise_multiplier) if config.clip == "adaptive" else None
    plan = Plan(
        run_id=run_id,
        rounds=rounds,
        steps_per_round=local_steps,
        sampling_rate=config.sampling_rate,
        noise_multiplier=noise_multiplier,
        clip_norm=config.clip_norm * (config.clip_range if adaptive else 1.0),
        divisor=config.expected_batch,
        delta=config.delta,
        adaptive=adaptive,
    )
    check_accountants(plan, beside)
    return plan


def metric_plan(
    config: MetricsConfig, privacy: PrivacyConfig, *, run_id: str, rounds: int
) -> MetricPlan | None:
    """Make the plan of a run's metric; None where none is bought.

    With `noise_multiplier` unset, the PLD ε of all its looks by themselves is at most the
    configured share of `privacy.epsilon`. Its run is `<run_id>:<metric>`: charges of one run.

    Raises:
        PlanError: A value is impossible.
    """
    if config.metric == "none":
        return None
    looks = rounds // config.every
    sigma = config.noise_multiplier
    if sigma is None:
        sigma = accounting.calibrate_noise(
            epsilon=config.epsilon_share * privacy.epsilon,
            delta=privacy.delta,
            sampling_rate=1.0,
            steps=looks,
        )
    return MetricPlan(
        run_id=f"{run_id}:{config.metric}",
        rounds=looks,
        metric=config.metric,
        purpose="metric",
        noise_multiplier=sigma,
        clip_norm=(config.highest - config.low) / 2,
        centre=(config.highest + config.low) / 2,
        divisor=config.expected_records,
        delta=privacy.delta,
    )


def central_plan(
    config: PrivacyConfig,
    *,
    run_id: str,
    rounds: int,
    local_steps: int,
    population: int,
    user_rate: float = 1.0,
) -> CentralPlan:
    """Make the plan of a run that protects users from everyone but the coordinator.

    With `noise_multiplier` unset, the PLD ε of the whole run for a user is at most
    `config.epsilon`.

    Args:
        config: Trust must be `central`; `clip_norm` bounds a user's whole update; `sampling_rate`
            and `expected_batch` are of the local batches, which the guarantee doesn't rest on.
        run_id: The run's name.
        rounds: How many sums will be released.
        local_steps: Local steps of a client in a round.
        population: How many users there are.
        user_rate: Below 1: the coordinator samples its users in secret, each by its own coin in
            every round, and the noise is solved for with that amplification.

    Raises:
        PlanError: Another trust, an impossible value, or the accountants contradict.
    """
    if config.trust != "central":
        raise PlanError(expected("privacy.trust", config.trust, "to be central for a central plan"))
    plan = CentralPlan(
        run_id=run_id,
        rounds=rounds,
        steps_per_round=local_steps,
        noise_multiplier=_noise(config, sampling_rate=user_rate, steps=rounds),
        clip_norm=config.clip_norm,
        delta=config.delta,
        population=population,
        cohort=max(round(user_rate * population), 1),
        sampling="none" if user_rate == 1 else "poisson",
        sampling_rate=user_rate,
        batch_rate=config.sampling_rate,
        batch_divisor=config.expected_batch,
    )
    check_accountants(plan)
    return plan


def plan_without_privacy(
    config: PrivacyConfig, *, run_id: str, rounds: int, local_steps: int
) -> NoPrivacyPlan:
    """The twin of `private_plan` on the same schedule, sampling rate and divisor."""
    return NoPrivacyPlan(
        run_id=run_id,
        rounds=rounds,
        steps_per_round=local_steps,
        sampling_rate=config.sampling_rate,
        divisor=config.expected_batch,
    )


def check_accountants(plan: Plan | CentralPlan, beside: Sequence[Event] = ()) -> None:
    """Refuse a plan about which, with what is announced beside it, PLD and RDP contradict."""
    events = [plan.total_event(), *beside]
    headline = accounting.epsilon_pld(events, plan.delta)
    check = accounting.epsilon_rdp(events, plan.delta)
    if not accounting.accountants_agree(headline, check):
        raise PlanError(
            f"RDP gives epsilon {check}, below PLD's {headline}: one accountant is wrong, so "
            "nothing can be promised; choose other privacy settings, and report this"
        )


def _noise(
    config: PrivacyConfig, *, sampling_rate: float, steps: int, beside: Sequence[Event] = ()
) -> float:
    if config.noise_multiplier is not None:
        return config.noise_multiplier
    return accounting.calibrate_noise(
        epsilon=config.epsilon,
        delta=config.delta,
        sampling_rate=sampling_rate,
        steps=steps,
        beside=beside,
    )


def _adaptive(config: PrivacyConfig, noise_multiplier: float) -> AdaptiveClip:
    """The count's noise such that the gradients' is `1 + clip_cost` times what is accounted."""
    left = 1 - (1 + config.clip_cost) ** -2
    return AdaptiveClip(
        start=config.clip_norm,
        smallest=config.clip_norm / config.clip_range,
        quantile=config.clip_quantile,
        rate=config.clip_rate,
        count_noise_multiplier=noise_multiplier / math.sqrt(left),
    )

"""How a run's plan is made from its configuration: the noise is solved for, over the whole run."""

from __future__ import annotations

from sordino.core.config import FederationConfig, PrivacyConfig
from sordino.core.errors import PlanError, expected
from sordino.privacy import accounting
from sordino.privacy.plan.central import CentralPlan
from sordino.privacy.plan.decode import AnyPlan
from sordino.privacy.plan.plans import NoPrivacyPlan, Plan


def plan_of_run(
    config: PrivacyConfig,
    federation: FederationConfig,
    *,
    run_id: str,
    rounds: int,
    local_steps: int,
) -> AnyPlan:
    """Make the plan of a run under the trust that its configuration declares.

    Raises:
        PlanError: A value is impossible, or the accountants contradict.
    """
    if config.trust == "central":
        return central_plan(
            config,
            run_id=run_id,
            rounds=rounds,
            local_steps=local_steps,
            population=federation.population,
            user_rate=federation.user_rate,
        )
    make = plan_without_privacy if config.trust == "none" else private_plan
    return make(config, run_id=run_id, rounds=rounds, local_steps=local_steps)


def private_plan(config: PrivacyConfig, *, run_id: str, rounds: int, local_steps: int) -> Plan:
    """Make the plan of a run, solving for the noise unless the configuration gives it.

    With `noise_multiplier` unset, the PLD ε of the whole run is at most `config.epsilon`.

    Raises:
        PlanError: The trust isn't `local`, a value is impossible, or the accountants contradict.
    """
    if config.trust != "local":
        raise PlanError(expected("privacy.trust", config.trust, "to be local for a private plan"))
    noise_multiplier = _noise(
        config, sampling_rate=config.sampling_rate, steps=rounds * local_steps
    )
    plan = Plan(
        run_id=run_id,
        rounds=rounds,
        steps_per_round=local_steps,
        sampling_rate=config.sampling_rate,
        noise_multiplier=noise_multiplier,
        clip_norm=config.clip_norm,
        divisor=config.expected_batch,
        delta=config.delta,
    )
    check_accountants(plan)
    return plan


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


def check_accountants(plan: Plan | CentralPlan) -> None:
    """Refuse a plan about which PLD and RDP contradict each other."""
    headline = accounting.epsilon_pld([plan.total_event()], plan.delta)
    check = accounting.epsilon_rdp([plan.total_event()], plan.delta)
    if not accounting.accountants_agree(headline, check):
        raise PlanError(
            f"RDP gives epsilon {check}, below PLD's {headline}: one accountant is wrong, so "
            "nothing can be promised; choose other privacy settings, and report this"
        )


def _noise(config: PrivacyConfig, *, sampling_rate: float, steps: int) -> float:
    if config.noise_multiplier is not None:
        return config.noise_multiplier
    return accounting.calibrate_noise(
        epsilon=config.epsilon, delta=config.delta, sampling_rate=sampling_rate, steps=steps
    )

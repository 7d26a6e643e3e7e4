"""A coordinator's request against a policy: it may tighten, never loosen.

Every refusal has a stable reason word that depends on the request, the policy and the device's
state of charge, never on the data. Comparisons are written so that a NaN is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from sordino.core.errors import PolicyRefusedError
from sordino.privacy.policy.rules import EVERY, Policy

REASONS: Final = (
    "policy-trust",
    "policy-noise",
    "policy-clip",
    "policy-sampling",
    "policy-steps",
    "policy-rounds",
    "policy-delta",
    "policy-cohort",
    "policy-population",
    "policy-base",
    "policy-adapter",
    "policy-metric",
    "policy-budget",
    "policy-not-now",
    "stale-round",
)
"""Every word that a refusal may have."""

Conditions = Mapping[str, bool]
"""What is known of the device now: `charging`, `idle`, `unmetered`; what isn't known is absent."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a coordinator asks, in the policy's own terms; None where a plan has no such thing."""

    trust: str
    noise_multiplier: float
    clip_norm: float
    delta: float
    steps_per_round: int
    rounds: int
    sampling_rate: float | None = None
    amplified: bool = False
    cohort: int | None = None
    population: int | None = None
    base_sha256: str | None = None
    rank: int | None = None
    targets: tuple[str, ...] = ()
    metric: str | None = None


def check_request(
    policy: Policy, request: Request, conditions: Callable[[], Conditions] = dict
) -> None:
    """Let a request pass, or refuse it; nothing is touched.

    Args:
        policy: The device's.
        request: What is asked.
        conditions: The device's hook: what is known of it now. Asked only if the policy cares.

    Raises:
        PolicyRefusedError: With one of `REASONS`, the first that applies.
    """
    _check_mechanism(policy, request)
    _check_cohort(policy, request)
    _check_model(policy, request)
    _check_now(policy, conditions)


def _check_mechanism(policy: Policy, request: Request) -> None:
    _allow(request.trust in policy.trust, "trust", f"trust {request.trust!r}")
    sigma = request.noise_multiplier
    if request.metric is None:
        least = policy.min_noise_multiplier
    else:
        _allow(request.metric in policy.metrics, "metric", f"the metric {request.metric!r}")
        least = policy.min_metric_noise
    _allow(least <= sigma < float("inf"), "noise", f"noise multiplier {sigma}, below {least}")
    clip = request.clip_norm
    # A metric's range is in its own units: nothing of what it costs depends on it.
    most = policy.max_clip_norm if request.metric is None else sys.float_info.max
    _allow(0 < clip <= most, "clip", f"clip norm {clip}")
    rate = request.sampling_rate
    ok = rate is None or 0 < rate <= policy.max_sampling_rate
    _allow(ok, "sampling", f"sampling rate {rate}")
    _allow(1 <= request.steps_per_round <= policy.max_steps_per_round, "steps", "so many steps")
    _allow(1 <= request.rounds <= policy.max_rounds, "rounds", "so many rounds")
    _allow(0 < request.delta <= policy.max_delta, "delta", f"delta {request.delta}")


def _check_cohort(policy: Policy, request: Request) -> None:
    amplified = request.amplified
    _allow(policy.amplification or not amplified, "sampling", "amplification by sampling users")
    cohort, population = request.cohort, request.population
    ok = cohort is None or cohort >= policy.min_cohort
    _allow(ok, "cohort", f"a cohort of {cohort}")
    ok = population is None or (cohort or 1) <= population <= policy.max_population
    _allow(ok, "population", f"a population of {population}")


def _check_model(policy: Policy, request: Request) -> None:
    base = request.base_sha256
    ok = base is None or EVERY in policy.base_models or base in policy.base_models
    _allow(ok, "base", "this base model")
    _allow(request.rank is None or 1 <= request.rank <= policy.max_rank, "adapter", "this rank")
    odd = sorted(set(request.targets) - set(policy.targets))
    _allow(not odd, "adapter", f"an adapter of {', '.join(odd)}")


def _check_now(policy: Policy, conditions: Callable[[], Conditions]) -> None:
    work = policy.work
    wanted = [name for name in ("charging", "idle", "unmetered") if getattr(work, name)]
    if not wanted:
        return
    now = conditions()
    missing = [name for name in wanted if now.get(name) is not True]
    _allow(not missing, "not-now", f"work while not known to be {', '.join(missing)}")


def _allow(ok: bool, word: str, what: str) -> None:
    if not ok:
        raise PolicyRefusedError(f"policy-{word}", f"the device's policy doesn't allow {what}")

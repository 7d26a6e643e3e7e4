"""Plans as public, frozen data: their values, their one encoding, and how a run's plan is made."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import asdict, dataclass, fields
from typing import ClassVar, Final, Literal, final

from sordino.core import canonical
from sordino.core.config import PrivacyConfig
from sordino.core.errors import PlanError, expected
from sordino.privacy import accounting
from sordino.privacy.accounting import PoissonSampledGaussian

VERSION: Final = 1
MOST_COUNT: Final = 1_000_000  # rounds, and steps of a round
_RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole run of DP-SGD on each client, noise on the device (`trust = "local"`), unit record.

    Each of the `rounds` times `steps_per_round` steps: Poisson batch, per-record clip to
    `clip_norm`, sum, Gaussian noise of standard deviation noise_multiplier * clip_norm, division by
    the public `divisor`. One record added or removed moves the clipped sum by at most `clip_norm`.
    It holds no seed and no ε.

    Raises:
        PlanError: A value is impossible.
    """

    kind: ClassVar[str] = "sordino.plan"

    run_id: str
    rounds: int
    steps_per_round: int
    sampling_rate: float
    noise_multiplier: float
    clip_norm: float
    divisor: float
    delta: float
    trust: Literal["local"] = "local"
    unit: Literal["record"] = "record"
    neighbouring: Literal["add-or-remove-one"] = "add-or-remove-one"
    sampling: Literal["poisson"] = "poisson"

    def __post_init__(self) -> None:
        _check_schedule(self)
        _positive(self, "noise_multiplier")
        _positive(self, "clip_norm")
        _positive(self, "delta", below=1.0)
        if not math.isfinite(self.noise_multiplier * self.clip_norm):
            raise PlanError(
                expected("noise_multiplier * clip_norm", math.inf, "finite", "lower one of them")
            )
        _fixed(self, trust="local", unit="record", neighbouring="add-or-remove-one")

    def canonical(self) -> bytes:
        """The plan's only encoding."""
        return _encode(self)

    @property
    def sha256(self) -> str:
        """The plan's name: SHA-256 of `canonical()`, hex."""
        return canonical.sha256_hex(self.canonical())

    def round_event(self) -> PoissonSampledGaussian:
        """What one round is charged as."""
        return self._event(self.steps_per_round)

    def total_event(self) -> PoissonSampledGaussian:
        """What the whole run is charged as."""
        return self._event(self.rounds * self.steps_per_round)

    def event_fields(self) -> dict[str, str | int | float]:
        """`round_event` as the ledger keeps it."""
        return accounting.event_fields(self.round_event())

    def _event(self, steps: int) -> PoissonSampledGaussian:
        return PoissonSampledGaussian(
            sampling_rate=self.sampling_rate, noise_multiplier=self.noise_multiplier, steps=steps
        )


@final
@dataclass(frozen=True, kw_only=True)
class NoPrivacyPlan:
    """The twin without clip, noise and guarantee: for baselines and bit-for-bit tests.

    A type of its own, so that nothing which wants a `Plan` can be handed one by mistake.
    """

    kind: ClassVar[str] = "sordino.plan-without-privacy"

    run_id: str
    rounds: int
    steps_per_round: int
    sampling_rate: float
    divisor: float
    trust: Literal["none"] = "none"
    sampling: Literal["poisson"] = "poisson"

    def __post_init__(self) -> None:
        _check_schedule(self)
        _fixed(self, trust="none")

    def canonical(self) -> bytes:
        """The plan's only encoding."""
        return _encode(self)

    @property
    def sha256(self) -> str:
        """The plan's name: SHA-256 of `canonical()`, hex."""
        return canonical.sha256_hex(self.canonical())


AnyPlan = Plan | NoPrivacyPlan


def decode_plan(data: bytes) -> AnyPlan:
    """Read a plan, accepting exactly the bytes that `canonical()` writes.

    Raises:
        PlanError: Other bytes, a key too many or too few, another version, an impossible value.
    """
    try:
        values = canonical.decode(data)
    except ValueError as error:
        raise PlanError(f"the plan's bytes can't be read: {error}") from error
    kinds: dict[str, type[Plan] | type[NoPrivacyPlan]] = {
        cls.kind: cls for cls in (Plan, NoPrivacyPlan)
    }
    kind, version = values.pop("kind", None), values.pop("version", None)
    if not isinstance(kind, str) or kind not in kinds:
        raise PlanError(expected("plan kind", kind, f"one of {', '.join(kinds)}"))
    if type(version) is not int or version != VERSION:
        raise PlanError(expected("plan version", version, f"to be {VERSION}"))
    known = {field.name for field in fields(kinds[kind])}
    if set(values) != known:
        odd = sorted(known.symmetric_difference(values))
        raise PlanError(f"the plan has missing or unknown keys: {', '.join(odd)}")
    plan = kinds[kind](**values)
    if plan.canonical() != data:  # for example 1 where 1.0 is meant
        raise PlanError("the plan's bytes are not in the canonical encoding")
    return plan


def private_plan(config: PrivacyConfig, *, run_id: str, rounds: int, local_steps: int) -> Plan:
    """Make the plan of a run, solving for the noise unless the configuration gives it.

    With `noise_multiplier` unset, the PLD ε of the whole run is at most `config.epsilon`.

    Raises:
        PlanError: The trust isn't `local`, a value is impossible, or the accountants contradict.
    """
    if config.trust != "local":
        raise PlanError(expected("privacy.trust", config.trust, "to be local for a private plan"))
    noise_multiplier = config.noise_multiplier
    if noise_multiplier is None:
        noise_multiplier = accounting.calibrate_noise(
            epsilon=config.epsilon,
            delta=config.delta,
            sampling_rate=config.sampling_rate,
            steps=rounds * local_steps,
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
    _check_accountants(plan)
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


def _check_accountants(plan: Plan) -> None:
    headline = accounting.epsilon_pld([plan.total_event()], plan.delta)
    check = accounting.epsilon_rdp([plan.total_event()], plan.delta)
    if not accounting.accountants_agree(headline, check):
        raise PlanError(
            f"RDP gives epsilon {check}, below PLD's {headline}: one accountant is wrong, so "
            "nothing can be promised; choose other privacy settings, and report this"
        )


def _encode(plan: AnyPlan) -> bytes:
    return canonical.encode({"kind": plan.kind, "version": VERSION, **asdict(plan)})


def _check_schedule(plan: AnyPlan) -> None:
    if not (isinstance(plan.run_id, str) and _RUN_ID.fullmatch(plan.run_id)):
        raise PlanError(
            expected("run_id", plan.run_id, "1-128 letters, digits or ._:- after a letter or digit")
        )
    for name in ("rounds", "steps_per_round"):
        value = getattr(plan, name)
        if type(value) is not int or not 1 <= value <= MOST_COUNT:
            raise PlanError(expected(name, value, f"a whole number in 1..{MOST_COUNT}"))
    _positive(plan, "sampling_rate", at_most=1.0)
    _positive(plan, "divisor")
    _fixed(plan, sampling="poisson")


def _positive(
    plan: AnyPlan, name: str, *, below: float = math.inf, at_most: float = math.inf
) -> None:
    value = getattr(plan, name)
    number = isinstance(value, float) or type(value) is int
    if not (number and 0 < value < below and value <= min(at_most, sys.float_info.max)):
        bound = "in (0, 1]" if at_most == 1 else "in (0, 1)" if below == 1 else "finite and > 0"
        raise PlanError(expected(name, value, bound))
    object.__setattr__(plan, name, float(value))  # 1 and 1.0 are one plan with one encoding


def _fixed(plan: AnyPlan, **values: str) -> None:
    for name, required in values.items():
        if getattr(plan, name) != required:
            raise PlanError(expected(name, getattr(plan, name), f"to be {required}"))

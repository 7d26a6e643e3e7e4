"""A device's policy as frozen data: what its owner allows, whatever a coordinator asks."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from sordino.core import canonical
from sordino.core.errors import ConfigError, PolicyError, expected
from sordino.core.families import GROUPS
from sordino.core.settings import build

KIND: Final = "sordino.policy"
VERSION: Final = 1
EVERY: Final = "*"
MOST_CAPS: Final = 64

_SHA256 = re.compile(r"[0-9a-f]{64}")


def _require(ok: bool, name: str, value: object, required: str) -> None:
    if not ok:
        raise PolicyError(expected(name, value, required))


@dataclass(frozen=True, kw_only=True)
class Cap:
    """A cap on the loss of one unit, held by a filter under plans that are chosen on the way.

    Attributes:
        epsilon: ε.
        delta: Its δ.
        unit: Whose loss: a record's in one dataset, or a user's on the whole device.
        dataset: Which dataset, by its stable name; `*`: each that no other cap of the unit names.
            A user's cap is always `*`.
        period_days: 0: over the dataset's life. Otherwise over any so many days: a limit of pace
            beside a cap for life, not a guarantee of its own.
        records_per_user: For the unit user: the most records that a user owns; 0: not bounded, and
            then nothing of the unit record is allowed beside this cap.
        orders: Rényi orders of the filter, fixed by the owner's signature; empty: the usual ones.
    """

    epsilon: float
    delta: float
    unit: Literal["record", "user"] = "record"
    dataset: str = EVERY
    period_days: int = 0
    records_per_user: int = 0
    orders: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        # 3 and 3.0 are one order, and one policy with one hash.
        object.__setattr__(self, "orders", tuple(map(float, self.orders)))
        _require(0 < self.epsilon < math.inf, "caps.epsilon", self.epsilon, "finite and > 0")
        _require(0 < self.delta < 1, "caps.delta", self.delta, "in (0, 1)")
        _require(bool(self.dataset), "caps.dataset", self.dataset, "not empty")
        _require(self.period_days >= 0, "caps.period_days", self.period_days, ">= 0")
        ok = self.records_per_user >= 0 and (self.unit == "user" or not self.records_per_user)
        _require(ok, "caps.records_per_user", self.records_per_user, ">= 0, of a cap on users")
        ok = self.unit == "record" or self.dataset == EVERY
        _require(ok, "caps.dataset", self.dataset, f"{EVERY} for the unit user: its charges add up")


@dataclass(frozen=True, kw_only=True)
class Work:
    """When the device works: each that is true must hold, and be known to hold."""

    charging: bool = False
    idle: bool = False
    unmetered: bool = False


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a device's owner allows. The defaults are the built-in policy of a device without one.

    Attributes:
        serial: Rises with each policy that the owner signs.
        trust: Trust models allowed.
        min_noise_multiplier: The smallest σ, and z under central trust.
        max_clip_norm: The largest C of a gradient, and of an update under central trust; what an
            adaptive clip norm may come to.
        max_sampling_rate: The largest q of a record.
        max_steps_per_round: Local steps.
        max_rounds: Rounds of one plan.
        max_delta: The largest δ that a plan may claim.
        min_cohort: The smallest planned cohort, where only the cohort's sum is protected.
        max_population: The largest population that a coordinator may claim.
        amplification: Whether a plan may count on its coordinator's secret sampling of users,
            which a device can't see.
        base_models: SHA-256 of the bases that may be trained; `*`: whichever the owner installed.
        max_rank: The largest rank of an adapter.
        targets: The linears that an adapter may have, or the groups `attention` and `mlp`.
        metrics: Metrics that may be bought: `loss`, `accuracy`.
        min_metric_noise: The smallest σ of a metric.
        caps: Lifetime caps and limits of pace. A unit without a cap for life is not trained for.
        work: When to work.
    """

    serial: int = 0
    trust: tuple[str, ...] = ("local",)
    min_noise_multiplier: float = 0.5
    max_clip_norm: float = 10.0
    max_sampling_rate: float = 0.25
    max_steps_per_round: int = 100
    max_rounds: int = 1000
    max_delta: float = 1e-5
    min_cohort: int = 20
    max_population: int = 10_000
    amplification: bool = False
    base_models: tuple[str, ...] = (EVERY,)
    max_rank: int = 64
    targets: tuple[str, ...] = GROUPS
    metrics: tuple[str, ...] = ()
    min_metric_noise: float = 4.0
    caps: tuple[Cap, ...] = (Cap(epsilon=12.0, delta=1e-5),)
    work: Work = field(default_factory=Work)

    def __post_init__(self) -> None:
        for name in ("min_noise_multiplier", "max_clip_norm", "min_metric_noise"):
            value = getattr(self, name)
            _require(0 < value < math.inf, name, value, "finite and > 0")
        rate = self.max_sampling_rate
        _require(0 < rate <= 1, "max_sampling_rate", rate, "in (0, 1]")
        _require(0 < self.max_delta < 1, "max_delta", self.max_delta, "in (0, 1)")
        counts = ("max_steps_per_round", "max_rounds", "min_cohort", "max_population", "max_rank")
        for name in counts:
            _require(getattr(self, name) >= 1, name, getattr(self, name), ">= 1")
        _require(self.serial >= 0, "serial", self.serial, ">= 0")
        odd = sorted(set(self.trust) - {"local", "central"})
        _require(not odd, "trust", self.trust, "of local, central")
        for base in self.base_models:
            ok = base == EVERY or _SHA256.fullmatch(base) is not None
            _require(ok, "base_models", base, f"64 lower-case hexadecimal digits, or {EVERY}")
        _require(len(self.caps) <= MOST_CAPS, "caps", len(self.caps), f"at most {MOST_CAPS}")

    @property
    def sha256(self) -> str:
        """The policy's name, which a ledger writes beside each charge."""
        return canonical.sha256_hex(
            canonical.encode({"kind": KIND, "version": VERSION, **_plain(asdict(self))})
        )

    def caps_for(self, unit: str, dataset: str) -> tuple[Cap, ...]:
        """The caps that bind a unit of a dataset: those that name it, or else those for every."""
        of_unit = [cap for cap in self.caps if cap.unit == unit]
        named = [cap for cap in of_unit if cap.dataset == dataset]
        return tuple(named or [cap for cap in of_unit if cap.dataset == EVERY])


def parse_policy(data: bytes) -> Policy:
    """Read a policy's TOML; what it leaves out is as in the built-in policy.

    Raises:
        PolicyError: Not TOML, an unknown key, or an impossible value.
    """
    try:
        table: dict[str, Any] = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PolicyError(f"the policy is not valid TOML: {error}") from error
    head = (table.pop("kind", None), table.pop("version", None))
    if head != (KIND, VERSION) or type(head[1]) is not int:
        raise PolicyError(expected("the policy", head, f"to say kind {KIND!r}, version {VERSION}"))
    try:
        return build(Policy, table)
    except ConfigError as error:
        raise PolicyError(f"the policy: {error}") from error


def policy_toml(policy: Policy) -> str:
    """A policy as the TOML that `parse_policy` reads; every value is written."""
    values = asdict(policy)
    caps, work = values.pop("caps"), values.pop("work")
    lines = [f'kind = "{KIND}"', f"version = {VERSION}", *_lines(values)]
    for cap in caps:
        lines += ["", "[[caps]]", *_lines(cap)]
    lines += ["", "[work]", *_lines(work)]
    if not caps:
        lines.insert(2, "caps = []")
    return "\n".join(lines) + "\n"


def _lines(values: dict[str, Any]) -> Iterable[str]:
    return [f"{key} = {_toml(value)}" for key, value in values.items()]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{quoted}"'
    if isinstance(value, tuple | list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return repr(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value

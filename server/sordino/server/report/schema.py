"""report.json as frozen dataclasses: the names, the order and the bounds of every figure.

A figure that isn't known, or isn't finite (an ε without bound), is None and `null` in JSON. What
only a simulation may know is named by a path in `RunReport.simulation_only`; a path names a field
and all that lies below it: ``$.clients[*].loss_before`` or ``$.utility``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from sordino.core.errors import ReportError, expected
from sordino.core.stats import Interval
from sordino.server.report.leakage import Leakage

SCHEMA_VERSION = 3

KNOWN_TO_A_SIMULATION = (
    "$.noise.clip_fraction",
    "$.noise.update_snr",
    "$.utility",
    "$.clients[*].records",
    "$.clients[*].clip_fraction",
    "$.clients[*].loss_before",
    "$.clients[*].loss_after",
    "$.rounds[*].loss",
    "$.leakage.attacks[*]",
)

PRIVATE_TO_A_COORDINATOR = (
    "$.run.clients",
    "$.cost",
    "$.clients[*]",
    "$.rounds[*].updates",
    "$.rounds[*].dropped",
    "$.rounds[*].bytes_up",
    "$.rounds[*].bytes_down",
    "$.rounds[*].wall_s",
)
"""Under central trust also who took part and how many, which is as private as an update."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def _require(ok: bool, where: str, value: object, required: str) -> None:
    if not ok:
        raise ReportError(expected(where, value, required))


def _check(section: Any, where: str, **bounds: tuple[float, float]) -> None:
    """Refuse a float that isn't finite, and a figure outside its bounds (both ends allowed)."""
    for item in fields(section):
        value = getattr(section, item.name)
        path = f"{where}.{item.name}"
        if isinstance(value, float):
            _require(math.isfinite(value), path, value, "finite, or None where there is no figure")
        low, high = bounds.get(item.name, (-math.inf, math.inf))
        if isinstance(value, int | float):
            required = f">= {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
            _require(low <= value <= high, path, value, required)


_COUNT = (0.0, math.inf)
_SHARE = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class RunModel:
    """The frozen base that the adapter was trained against."""

    name: str
    sha256: str
    quantization: str

    def __post_init__(self) -> None:
        _require(bool(self.name.strip()), "run.model.name", self.name, "not empty")
        ok = _SHA256.fullmatch(self.sha256) is not None
        _require(ok, "run.model.sha256", self.sha256, "64 lowercase hexadecimal digits")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Which run this was. `started_at` is ISO 8601 with its offset; `versions` is by package."""

    id: str
    model: RunModel
    data: str
    clients: int
    rounds: int
    seed: int
    started_at: str
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        _check(self, "run", clients=(1, math.inf), rounds=(1, math.inf), seed=_COUNT)


@dataclass(frozen=True, kw_only=True)
class Epsilon:
    """What was spent: `pld` is the headline, `rdp` its check; `target` is what was asked for."""

    pld: float | None
    rdp: float | None
    target: float | None = None

    def __post_init__(self) -> None:
        _check(self, "guarantee.epsilon", pld=_COUNT, rdp=_COUNT, target=_COUNT)


@dataclass(frozen=True, kw_only=True)
class SecondOpinion:
    """The same events through Opacus' own accountants."""

    opacus_prv: float | None = None
    opacus_rdp: float | None = None

    def __post_init__(self) -> None:
        _check(self, "guarantee.second_opinion", opacus_prv=_COUNT, opacus_rdp=_COUNT)


@dataclass(frozen=True, kw_only=True)
class OtherUnit:
    """What holds for the unit that the headline isn't about.

    `epsilon` is of the headline's neighbouring relation with this unit in place of the headline's:
    `reason` says how it was had, or why there is none.
    """

    unit: Literal["record", "user"]
    status: Literal["bounded", "not bounded"]
    reason: str
    epsilon: float | None = None
    delta: float | None = None

    def __post_init__(self) -> None:
        _check(self, "guarantee.other", epsilon=_COUNT, delta=_SHARE)
        given = self.epsilon is not None and self.delta is not None
        _require(bool(self.reason.strip()), "guarantee.other.reason", self.reason, "not empty")
        _require(
            given == (self.status == "bounded"),
            "guarantee.other",
            (self.status, self.epsilon, self.delta),
            "with epsilon and delta when bounded, and with neither when not",
        )


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """ε for the protected `unit`, with everything that it needs to mean something; the other unit.

    Under local trust the unit is the record, under central trust the user. Without privacy nothing
    is protected: the unit is that of the run's private twin, and ε is None.
    """

    trust: Literal["local", "central", "distributed", "none"]
    unit: Literal["record", "user"]
    epsilon: Epsilon
    delta: float | None
    neighbouring: str
    sampling: str
    composition: str
    accountant: str
    other: OtherUnit
    second_opinion: SecondOpinion = field(default_factory=SecondOpinion)

    def __post_init__(self) -> None:
        _check(self, "guarantee", delta=_SHARE)
        if self.epsilon.pld is not None:
            _require(bool(self.delta), "guarantee.delta", self.delta, "> 0 beside an ε")
        other = self.other.unit
        _require(other != self.unit, "guarantee.other.unit", other, f"other than {self.unit}")


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Where the noise came from, how strong it was, and what it did to the updates.

    `steps` counts the noised sums over the whole run: of one client's steps where the unit is the
    record, of the coordinator's releases where it is the user. `clip_fraction` is the share of what
    is clipped (sampled records, or users' updates) that was longer than C. `update_snr` is the norm
    of the clipped sum over the norm of the noise, the median over `steps`: below 1, a single noised
    sum is mostly noise.
    """

    source: str
    noise_multiplier: float | None
    clip_norm: float | None
    sampling_rate: float
    steps: int
    clip_fraction: float | None = None
    update_snr: float | None = None

    def __post_init__(self) -> None:
        _check(
            self,
            "noise",
            noise_multiplier=_COUNT,
            clip_norm=_COUNT,
            sampling_rate=_SHARE,
            steps=_COUNT,
            clip_fraction=_SHARE,
            update_snr=_COUNT,
        )


@dataclass(frozen=True, kw_only=True)
class UtilityFigures:
    """Held-out loss in nats per token; `interval` is of the gain, `loss_before - loss_after`."""

    loss_before: float
    loss_after: float
    interval: Interval
    perplexity_after: float
    tokens: int

    def __post_init__(self) -> None:
        _check(self, "utility", perplexity_after=_COUNT, tokens=(1, math.inf))
        unit = (math.nextafter(0, 1), math.nextafter(1, 0))
        _check(self.interval, "utility.interval", level=unit, resamples=(1, math.inf))
        low, high = self.interval.low, self.interval.high
        _require(low <= high, "utility.interval", (low, high), "with low <= high")


@dataclass(frozen=True, kw_only=True)
class Utility:
    """The private run beside its two baselines; None where one wasn't run."""

    private: UtilityFigures | None
    no_privacy: UtilityFigures | None
    no_federation: UtilityFigures | None


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Joules, and whether they were measured, estimated, or are unavailable."""

    joules: float | None
    source: Literal["measured", "estimated", "unavailable"]

    def __post_init__(self) -> None:
        _check(self, "cost.energy", joules=_COUNT)
        _require(
            (self.joules is None) == (self.source == "unavailable"),
            "cost.energy",
            (self.joules, self.source),
            "with joules, or unavailable",
        )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the private run took: all rounds and all clients; `peak_rss_mb` is of one process."""

    wall_s: float
    bytes_up: int
    bytes_down: int
    peak_rss_mb: float | None
    tokens_per_s: float | None
    energy: Energy

    def __post_init__(self) -> None:
        names = ("wall_s", "bytes_up", "bytes_down", "peak_rss_mb", "tokens_per_s")
        _check(self, "cost", **dict.fromkeys(names, _COUNT))


@dataclass(frozen=True, kw_only=True)
class ClientFigures:
    """One client at the end of the private run; losses are of its own held-out records."""

    client: str
    epsilon: float | None
    noise_multiplier: float | None
    records: int | None = None
    clip_fraction: float | None = None
    loss_before: float | None = None
    loss_after: float | None = None

    def __post_init__(self) -> None:
        _check(
            self,
            f"clients[{self.client}]",
            epsilon=_COUNT,
            noise_multiplier=_COUNT,
            records=_COUNT,
            clip_fraction=_SHARE,
        )


@dataclass(frozen=True, kw_only=True)
class RoundFigures:
    """One round; `epsilon` is spent by its end, `dropped` counts the updates that were refused.

    `released` is False for a round of central trust that was charged and then lost in a crash. How
    many `updates` went into a round that was charged before a crash isn't known.
    """

    round: int
    epsilon: float | None
    released: bool
    updates: int | None
    dropped: int
    loss: float | None
    bytes_up: int
    bytes_down: int
    wall_s: float
    peak_rss_mb: float | None

    def __post_init__(self) -> None:
        counts = (
            "epsilon",
            "updates",
            "dropped",
            "bytes_up",
            "bytes_down",
            "wall_s",
            "peak_rss_mb",
        )
        bounds = dict.fromkeys(counts, _COUNT)
        _check(self, f"rounds[{self.round}]", round=(1, math.inf), **bounds)


@dataclass(frozen=True, kw_only=True)
class MetricFigures:
    """One look at a metric that clients sold: the mean of their noised answers, and its price.

    Each record's value is clipped to [`low`, `high`]; `divisor` stands for a client's number of
    records, which is private: where a client has fewer, `value` leans towards the middle.
    `noise_std` is of the noise in `value`. `epsilon` is what the looks so far cost a record by
    themselves; the run's own ε holds them and the training.
    """

    metric: str
    round: int
    value: float | None
    noise_std: float | None
    answers: int
    low: float
    high: float
    divisor: float
    noise_multiplier: float
    epsilon: float | None
    delta: float
    unit: str
    neighbouring: str

    def __post_init__(self) -> None:
        names = ("noise_std", "answers", "divisor", "noise_multiplier", "epsilon")
        bounds = dict.fromkeys(names, _COUNT)
        _check(self, f"metrics[{self.round}]", round=(1, math.inf), delta=_SHARE, **bounds)
        _require(self.low < self.high, "metrics", (self.low, self.high), "with low < high")


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """All of report.json."""

    schema_version: int = SCHEMA_VERSION
    run: Run
    guarantee: Guarantee
    noise: Noise
    utility: Utility
    leakage: Leakage
    cost: Cost
    clients: tuple[ClientFigures, ...]
    rounds: tuple[RoundFigures, ...]
    metrics: tuple[MetricFigures, ...] = ()
    simulation_only: tuple[str, ...]

    def __post_init__(self) -> None:
        required = f"{SCHEMA_VERSION}, the version that this release reads"
        known = self.schema_version == SCHEMA_VERSION
        _require(known, "schema_version", self.schema_version, required)
        order = [figures.round for figures in self.rounds]
        _require(order == sorted(set(order)), "rounds", order, "in order, each once")
        names = [figures.client for figures in self.clients]
        _require(len(names) == len(set(names)), "clients", names, "each once")

    @property
    def judged(self) -> UtilityFigures | None:
        """The utility of the run itself: of the private one, or of a run that had no privacy."""
        return self.utility.private or self.utility.no_privacy

    def only_in_simulation(self, path: str) -> bool:
        """Whether the figure at `path` is one that only a simulation may know."""
        return any(
            path == marked or path.startswith((f"{marked}.", f"{marked}["))
            for marked in self.simulation_only
        )

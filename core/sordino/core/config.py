"""The settings of an experiment: one frozen dataclass a section, read from TOML.

`PrivacyConfig` decides the guarantee. `PerformanceConfig` decides speed and memory only: nothing in
it may change ε, and the two are separate types so that no function can take one for the other.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sordino.core.audit_config import AuditConfig
from sordino.core.defaults import with_defaults
from sordino.core.errors import ConfigError, expected
from sordino.core.population import DevicesConfig, PartitionConfig
from sordino.core.settings import build, set_by_path

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
METRICS = ("loss", "accuracy")  # what can be bought of a client
MOST_VIEWS = 16  # a coordinator asks for them, and a device pays


def _require(ok: bool, field_name: str, value: object, required: str, todo: str = "") -> None:
    if not ok:
        raise ConfigError(expected(field_name, value, required, todo))


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The frozen base: a shipped or fetched name, a GGUF file, or a Hugging Face folder."""

    name: str = "pocket"
    quantization: Literal["int8", "nf4"] = "int8"  # for a Hugging Face folder; a GGUF keeps its own


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Whose records are trained on, and which part of each user's is held out."""

    source: str = "shakespeare"  # or a JSONL/Parquet file, or a Hugging Face dataset folder
    user_column: str = "user"
    users: tuple[str, ...] = ()  # empty: the users with most records
    clients: int = 8
    share: float = 1.0  # the chance of each record to take part, decided by the record itself
    max_tokens: int = 64  # a longer record is cut
    held_out: float = 0.2  # the chance of each record to be held out, the same way

    def __post_init__(self) -> None:
        _require(self.clients >= 1, "data.clients", self.clients, ">= 1")
        _require(0 < self.share <= 1, "data.share", self.share, "in (0, 1]")
        _require(self.max_tokens >= 2, "data.max_tokens", self.max_tokens, ">= 2")
        _require(0 < self.held_out < 1, "data.held_out", self.held_out, "in (0, 1)")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The adapter. `ffa` freezes A at a public seed, so only B is trained and averaged: exact."""

    aggregation: Literal["ffa", "rolora", "fedit"] = "ffa"
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("attention", "mlp")  # groups, or names of linears
    init_seed: int = 0  # public: A is the same on every device

    def __post_init__(self) -> None:
        _require(self.rank >= 1, "lora.rank", self.rank, ">= 1")
        _require(self.alpha > 0, "lora.alpha", self.alpha, "> 0")
        _require(bool(self.targets), "lora.targets", self.targets, "not empty")
        _require(self.init_seed >= 0, "lora.init_seed", self.init_seed, ">= 0")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The local optimizer, and how a record is shown to the model.

    The optimizer works on the noised sum, and a record's views are averaged before it is clipped:
    but for `local_steps`, nothing here can change the guarantee.
    """

    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 1.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # over the whole run
    warmup: float = 0.0  # part of the run's steps in which the rate rises to its full height
    momentum: float = 0.0  # of sgd
    local_steps: int = 10
    views: int = 1  # of each record, averaged before the clip; 1: the record as it is
    view_dropout: float = 0.1  # part of a further view's inputs that are replaced
    view_cut: float = 0.0  # a further view loses up to this part of its beginning

    def __post_init__(self) -> None:
        _require(
            0 < self.learning_rate < math.inf,
            "train.learning_rate",
            self.learning_rate,
            "finite and > 0",
        )
        for name in ("warmup", "momentum", "view_dropout", "view_cut"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"train.{name}", value, "in [0, 1)")
        _require(self.local_steps >= 1, "train.local_steps", self.local_steps, ">= 1")
        _require(1 <= self.views <= MOST_VIEWS, "train.views", self.views, f"in 1..{MOST_VIEWS}")


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """The run without privacy: what it may do better than the private one. None: as `TrainConfig`.

    Settings that suit noise hold a run without noise back, and a baseline should be as good as it
    can be.
    """

    optimizer: Literal["sgd", "adam"] | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        rate = self.learning_rate
        ok = rate is None or 0 < rate < math.inf
        _require(ok, "baseline.learning_rate", rate, "finite and > 0")

    def applied_to(self, train: TrainConfig) -> TrainConfig:
        """The local optimizer of the run without privacy."""
        return replace(
            train,
            optimizer=self.optimizer or train.optimizer,
            learning_rate=self.learning_rate or train.learning_rate,
            momentum=0.0 if self.optimizer else train.momentum,
        )


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """What the guarantee is made of: a target `epsilon`, or a `noise_multiplier` of one's own.

    With central trust `clip_norm` bounds a user's whole update, and `sampling_rate` and
    `expected_batch` are of the local batches, on which the guarantee doesn't rest.
    """

    trust: Literal["local", "central", "distributed", "none"] = "local"
    epsilon: float = 8.0  # for the whole run; the noise is solved for
    delta: float = 1e-5
    noise_multiplier: float | None = None  # given: used as it is, and epsilon is what comes out
    clip: Literal["fixed", "adaptive"] = "fixed"
    clip_norm: float = 1.0  # adaptive: where it begins
    clip_quantile: float = 0.5  # adaptive: the part of the records that isn't to be clipped
    clip_rate: float = 0.2  # adaptive: how fast it follows the noised count
    clip_range: float = 10.0  # adaptive: it stays within this factor of clip_norm, either way
    clip_cost: float = 0.02  # adaptive: the gradients are so much noisier, to pay for the count
    sampling_rate: float = 0.1
    expected_batch: float = 13.0  # the public divisor: about sampling_rate × a client's records
    seeded_noise: bool = False  # reproducible, and then not private: for tests and method studies

    def __post_init__(self) -> None:
        _require(
            self.trust != "distributed",
            "privacy.trust",
            self.trust,
            "other than distributed",
            "it needs secure aggregation, which does not exist here yet; use local",
        )
        _require(0 < self.epsilon < math.inf, "privacy.epsilon", self.epsilon, "finite and > 0")
        _require(0 < self.delta < 1, "privacy.delta", self.delta, "in (0, 1)")
        if self.noise_multiplier is not None:
            _require(
                0 < self.noise_multiplier < math.inf,
                "privacy.noise_multiplier",
                self.noise_multiplier,
                "finite and > 0",
                'for a run without privacy set privacy.trust = "none"',
            )
        _require(
            0 < self.clip_norm < math.inf, "privacy.clip_norm", self.clip_norm, "finite and > 0"
        )
        _require(
            0 < self.sampling_rate <= 1, "privacy.sampling_rate", self.sampling_rate, "in (0, 1]"
        )
        self._check_clip()
        _require(
            0 < self.expected_batch < math.inf,
            "privacy.expected_batch",
            self.expected_batch,
            "finite and > 0",
        )

    def _check_clip(self) -> None:
        _require(
            self.clip == "fixed" or self.trust in ("local", "none"),
            "privacy.clip",
            self.clip,
            "fixed with central trust",
            "a clip norm that follows users' updates does not exist here yet",
        )
        quantile, width, cost = self.clip_quantile, self.clip_range, self.clip_cost
        _require(0 < quantile < 1, "privacy.clip_quantile", quantile, "in (0, 1)")
        _require(0 < self.clip_rate <= 1, "privacy.clip_rate", self.clip_rate, "in (0, 1]")
        _require(1 < width <= 31, "privacy.clip_range", width, "in (1, 31]")
        _require(1e-4 <= cost <= 1, "privacy.clip_cost", cost, "in [0.0001, 1]")


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """A metric that each client sells for a share of ε: what a fleet may see of its utility.

    Off by default: without it nothing that was measured on records leaves a client. Each record's
    value is clipped to [`low`, `high`]; the sum is noised on the device and divided by
    `expected_records`, which is public.
    """

    metric: Literal["none", "loss", "accuracy"] = "none"
    every: int = 1  # rounds from one look to the next
    epsilon_share: float = 0.1  # of privacy.epsilon, for all looks; the noise is solved for
    noise_multiplier: float | None = None  # given: used as it is
    low: float = 0.0
    high: float | None = None  # of a record's value; None: 8 nats a token, or all tokens right
    expected_records: float = 30.0  # the public divisor: about a client's held-out records

    def __post_init__(self) -> None:
        _require(self.every >= 1, "metrics.every", self.every, ">= 1")
        share = self.epsilon_share
        _require(0 < share < 1, "metrics.epsilon_share", share, "in (0, 1)")
        sigma = self.noise_multiplier
        ok = sigma is None or 0 < sigma < math.inf
        _require(ok, "metrics.noise_multiplier", sigma, "finite and > 0")
        _require(math.isfinite(self.low), "metrics.low", self.low, "finite")
        above = f"finite and > metrics.low ({self.low})"
        _require(self.low < self.highest < math.inf, "metrics.high", self.highest, above)
        records = self.expected_records
        _require(0 < records < math.inf, "metrics.expected_records", records, "finite and > 0")

    @property
    def highest(self) -> float:
        """The upper end of a record's value."""
        if self.high is not None:
            return self.high
        return 1.0 if self.metric == "accuracy" else 8.0


@dataclass(frozen=True, kw_only=True)
class FederationConfig:
    """Rounds and the cohort."""

    rounds: int = 3
    population: int = 0  # how many users there are; needed for central trust
    user_rate: float = 1.0  # central trust: below 1, each user's secret coin in every round
    min_updates: int = 1  # a round with fewer valid updates fails
    round_timeout_s: float = 3600.0

    def __post_init__(self) -> None:
        _require(self.rounds >= 1, "federation.rounds", self.rounds, ">= 1")
        _require(self.population >= 0, "federation.population", self.population, ">= 0")
        _require(0 < self.user_rate <= 1, "federation.user_rate", self.user_rate, "in (0, 1]")
        _require(self.min_updates >= 1, "federation.min_updates", self.min_updates, ">= 1")
        _require(
            0 < self.round_timeout_s < math.inf,
            "federation.round_timeout_s",
            self.round_timeout_s,
            "finite and > 0",
        )


@dataclass(frozen=True, kw_only=True)
class PerformanceConfig:
    """Speed and memory. Nothing here may change the guarantee or, but for rounding, the result."""

    workers: int = 2  # processes that share one mapped base; 0: in this process
    micro_batch: int = 8  # records that go through the model at once
    checkpoint: bool = False  # recompute each layer in the backward: slower, far smaller
    memory_mb: int = 0  # what a step may take over the open model; 0: no limit

    def __post_init__(self) -> None:
        _require(self.workers >= 0, "performance.workers", self.workers, ">= 0")
        _require(self.micro_batch >= 1, "performance.micro_batch", self.micro_batch, ">= 1")
        _require(self.memory_mb >= 0, "performance.memory_mb", self.memory_mb, ">= 0")


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything that a simulated run needs."""

    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    devices: DevicesConfig = field(default_factory=DevicesConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    performance: PerformanceConfig = field(default_factory=PerformanceConfig)

    def __post_init__(self) -> None:
        _require(self.seed >= 0, "seed", self.seed, ">= 0")
        _require(
            self.privacy.trust != "central" or self.federation.population > 0,
            "federation.population",
            self.federation.population,
            "> 0 with central trust",
            "say how many users there are: the divisor must be public",
        )
        self._check_metrics()
        self.partition.check(self.data.users, self.data.clients)
        clients = len(self.data.users) or self.data.clients
        _require(
            self.federation.min_updates <= clients,
            "federation.min_updates",
            self.federation.min_updates,
            f"<= the number of clients ({clients})",
        )

    def _check_metrics(self) -> None:
        metrics, privacy = self.metrics, self.privacy
        if metrics.metric == "none":
            return
        _require(
            privacy.trust == "local",
            "metrics.metric",
            metrics.metric,
            f"none with {privacy.trust} trust",
            "it is paid for with noise on the device, for the unit record: use local",
        )
        _require(
            metrics.every <= self.federation.rounds,
            "metrics.every",
            metrics.every,
            f"<= federation.rounds ({self.federation.rounds})",
        )
        _require(
            privacy.noise_multiplier is None or metrics.noise_multiplier is not None,
            "metrics.noise_multiplier",
            metrics.noise_multiplier,
            "given beside privacy.noise_multiplier",
            "there is no target epsilon to take a share of",
        )


def resolve_experiment(
    table: Mapping[str, Any], architecture: Mapping[str, object] | None = None
) -> ExperimentConfig:
    """Build an experiment from a table; what it leaves open is what suits its base.

    Args:
        table: Sections and their settings, as TOML gives them.
        architecture: The base's ``config.json``, where it is at hand; see `with_defaults`.

    Raises:
        ConfigError: It holds something unknown or impossible.
    """
    return build(ExperimentConfig, with_defaults(table, architecture))


def load_experiment(path: Path, overrides: Iterable[str] = ()) -> ExperimentConfig:
    """Read an experiment from a TOML file and apply ``section.key=value`` overrides.

    Raises:
        ConfigError: The file can't be read, isn't TOML, or holds something impossible.
    """
    table = read_toml(path)
    for assignment in overrides:
        set_by_path(table, assignment)
    return resolve_experiment(table)


def reload_experiment(path: Path) -> ExperimentConfig:
    """Read back the settings that a run wrote, as they are: no default of today is filled in.

    Raises:
        ConfigError: As `load_experiment`.
    """
    return build(ExperimentConfig, read_toml(path))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file as it stands.

    Raises:
        ConfigError: It can't be read, or isn't TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error

"""`fleet.toml`, and what a run of the fleet is started from. docs/operate.md has the settings."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from sordino.core import adapters
from sordino.core.config import ExperimentConfig, resolve_experiment
from sordino.core.errors import ConfigError, ModelError, expected
from sordino.core.records import AdapterManifest
from sordino.core.settings import build, to_toml
from sordino.server import fleet_rounds as fr
from sordino.server.bases import gguf_file, read_architecture
from sordino.server.operator.settings import OperatorSettings
from sordino.server.plans import plans_of
from sordino.server.service import ServiceSettings
from sordino.server.status import StatusSettings

_TENSOR_BYTES: Final = 512  # a tensor's name and shape, and what frames them
_MESSAGE_BYTES: Final = 4096  # what else an update holds


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where the coordinator is called, as HOST:PORT; port 0: any that is free.

    Attributes:
        enroll: By devices that have no certificate yet.
        fleet: By members. A device takes the port after `enroll`'s, unless it is told otherwise.
        operator: By operators.
        status: By people's browsers and what collects figures; empty: nowhere.
        status_hosts: Further names that the page is asked for by, through a proxy.
    """

    enroll: str = "0.0.0.0:7420"
    fleet: str = "0.0.0.0:7421"
    operator: str = "127.0.0.1:7422"
    status: str = "127.0.0.1:7423"
    status_hosts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """What devices are allowed; the attributes are those of `ServiceSettings`."""

    certificate_days: int = 30
    heartbeat_ms: int = 60_000
    calls_per_minute: int = 120
    uploads_at_once: int = 64
    connections: int = 2048
    grace_s: float = 10.0


@dataclass(frozen=True, kw_only=True)
class RoundsConfig:
    """How rounds go about devices that don't answer.

    Attributes:
        over_selection: So large a part of the cohort is asked beyond it. Who is asked in vain may
            have charged its ledger.
        patience: So many failed rounds in a row fail the run.
    """

    over_selection: float = 0.0
    patience: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.over_selection <= 1:
            raise ConfigError(expected("rounds.over_selection", self.over_selection, "in [0, 1]"))
        if self.patience < 1:
            raise ConfigError(expected("rounds.patience", self.patience, ">= 1"))


@dataclass(frozen=True, kw_only=True)
class FleetConfig:
    """The whole of `fleet.toml`.

    Attributes:
        folder: The fleet's, with the authority's files, the store and what it keeps; as `bases` and
            `passphrase_file` relative to the file.
        name: For people.
        hosts: Names that devices call it by. Checked against its certificate.
        database: A PostgreSQL URL; empty: SQLite, in the folder.
        bases: A folder of base models: each a folder by its name, with `config.json` and its GGUF.
        passphrase_file: Its first line opens the authority's key; empty: the key isn't encrypted.
        log: `json`: a line for each thing that happened; `text`: for people.
        addresses: Where it is called.
        limits: Of the store.
        service: What devices are allowed.
        rounds: How rounds go about devices that don't answer.
    """

    folder: str = "."
    name: str = ""
    hosts: tuple[str, ...] = ()
    database: str = field(default="", repr=False)  # it may hold a password
    bases: str = "bases"
    passphrase_file: str = ""
    log: Literal["json", "text"] = "json"
    addresses: Addresses = field(default_factory=Addresses)
    limits: fr.Limits = field(default_factory=fr.Limits)
    service: ServiceConfig = field(default_factory=ServiceConfig)
    rounds: RoundsConfig = field(default_factory=RoundsConfig)

    def service_settings(
        self, passphrase: bytes | None, *, insecure_loopback: bool = False
    ) -> ServiceSettings:
        """What the service for devices is told."""
        return ServiceSettings(
            fleet_address=self.addresses.fleet,
            enroll_address=self.addresses.enroll,
            insecure_loopback=insecure_loopback,
            passphrase=passphrase,
            fleet_name=self.name,
            **vars(self.service),
        )

    def status_settings(self) -> StatusSettings | None:
        """What the page is told; None: there is none."""
        if not self.addresses.status:
            return None
        return StatusSettings(address=self.addresses.status, hosts=self.addresses.status_hosts)

    def operator_settings(self) -> OperatorSettings:
        """What the service for operators is told."""
        return OperatorSettings(address=self.addresses.operator)


def load_fleet(path: Path) -> FleetConfig:
    """Read `fleet.toml`; its paths are then absolute.

    Raises:
        ConfigError: It can't be read, isn't TOML, or holds something unknown or impossible.
    """
    config = build(FleetConfig, _parsed(_read(path), str(path)))
    # Bad addresses are refused now.
    _ = config.service_settings(None), config.operator_settings(), config.status_settings()
    here = path.absolute().parent
    secret = str(here / config.passphrase_file) if config.passphrase_file else ""
    return replace(
        config,
        folder=str(here / config.folder),
        bases=str(here / config.bases),
        passphrase_file=secret,
    )


def new_run(
    fleet: fr.Fleet,
    config: FleetConfig,
    run_id: str,
    settings_toml: bytes,
    cohort: int,
    *,
    shipped: Mapping[str, Path] | None = None,
) -> fr.NewRun:
    """Make a run's plan, manifest and terms from an experiment's TOML, and keep its base.

    Args:
        fleet: Where the base is kept.
        config: The fleet's.
        run_id: The run's name.
        settings_toml: As for `sordino simulate`; which data a device has is its own affair.
        cohort: How many updates a round wants. Under central trust the plan says it.
        shipped: Bases that come with the program, by name.

    Raises:
        ConfigError: Something in the settings is unknown or impossible, or not for a fleet.
        ModelError: The base isn't among the coordinator's.
        PlanError: No plan follows from the settings.
    """
    if cohort < 1:
        raise ConfigError(expected("cohort", cohort, ">= 1"))
    table = _parsed(settings_toml, "the settings")
    base = _base(Path(config.bases), _model_name(table), shipped or {})
    architecture = read_architecture(base)
    experiment = resolve_experiment(_of_fleet(table, cohort), architecture)
    _check_for_fleet(experiment)
    plan, metric = plans_of(experiment, run_id)
    manifest = adapters.adapter_manifest(architecture, experiment.lora)
    federation = experiment.federation
    return fr.NewRun(
        run_id=run_id,
        settings=to_toml(experiment),
        trust=plan.trust,
        plan=plan.canonical(),
        manifest=manifest.canonical(),
        base=fr.keep_base(fleet, gguf_file(base, "model.name")),
        rounds=federation.rounds,
        cohort=cohort,
        extra=math.ceil(cohort * config.rounds.over_selection),
        min_updates=federation.min_updates,
        timeout_ms=round(federation.round_timeout_s * 1000),
        max_answer_bytes=answer_bytes(manifest),
        patience=config.rounds.patience,
        metric=metric.canonical() if metric else b"",
    )


def answer_bytes(manifest: AdapterManifest) -> int:
    """No honest update of an adapter is longer: all its tensors, and what frames them."""
    tensors = len(manifest.tensors) * _TENSOR_BYTES
    return 4 * manifest.parameter_count + tensors + _MESSAGE_BYTES


def _of_fleet(table: dict[str, Any], cohort: int) -> dict[str, Any]:
    """The settings with as many clients as a round asks: devices bring their own data."""
    data = table.get("data", {})
    if not isinstance(data, dict):
        raise ConfigError(expected("data", data, "a section"))
    return {**table, "data": {**data, "clients": cohort, "users": ()}}


def _check_for_fleet(experiment: ExperimentConfig) -> None:
    if experiment.privacy.seeded_noise:
        todo = "a seed makes noise that isn't private: it is for simulations"
        raise ConfigError(expected("privacy.seeded_noise", True, "= false on a fleet", todo))


def _model_name(table: Mapping[str, Any]) -> str:
    model = table.get("model", {})
    name = model.get("name", "pocket") if isinstance(model, dict) else model
    if not isinstance(name, str) or not name or Path(name).name != name or name in (".", ".."):
        raise ConfigError(expected("model.name", name, "the name of a base, not a path"))
    return name


def _base(folder: Path, name: str, shipped: Mapping[str, Path]) -> Path:
    own = folder / name
    if own.is_dir():
        return own
    if name in shipped:
        return shipped[name]
    there = (
        sorted(path.name for path in folder.glob("*") if path.is_dir()) if folder.is_dir() else []
    )
    known = ", ".join(sorted({*there, *shipped})) or "none"
    todo = f"put config.json and the GGUF file into {own}"
    raise ModelError(expected("model.name", name, f"one of the coordinator's ({known})", todo))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from error


def _parsed(data: bytes, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what} is not valid TOML: {error}") from error

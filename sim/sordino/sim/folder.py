"""A run's folder: what is written when, and where a stopped run goes on.

runs/<id>/
├── config.toml       the resolved configuration; a resumed run reads it back
├── metrics.jsonl     one line an event, as it happens
├── report.json, report.html
├── adapter/          PEFT format, with a model card
├── ledger.jsonl      every client's charges in the private run, verifiable; under central trust
│                     the coordinator's
├── audit/            of a run with canaries, or that was audited: see `sordino.sim.audit`
└── state/            what a resumed run needs: adapters by round, clients' own folders
"""

from __future__ import annotations

import datetime
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.client.adapter_files import load_adapter
from sordino.core.config import ExperimentConfig, reload_experiment
from sordino.core.errors import ConfigError
from sordino.core.records import Tensors, is_run_id
from sordino.core.settings import to_toml

PRIVATE = "private"
NO_PRIVACY = "no_privacy"
NO_FEDERATION = "no_federation"


def new_run_id() -> str:
    """A run's name: when it began (UTC), and two random bytes."""
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run, and its id: the folder's name, unless that is no name for a run."""

    root: Path
    run_id: str

    @property
    def metrics(self) -> Path:
        """One JSON line an event."""
        return self.root / "metrics.jsonl"

    @property
    def ledger(self) -> Path:
        """The exported ledger."""
        return self.root / "ledger.jsonl"

    @property
    def adapter(self) -> Path:
        """The adapter that the run made."""
        return self.root / "adapter"

    @property
    def audit(self) -> Path:
        """What was published of the canaries, and what the audit found."""
        return self.root / "audit"

    def state(self, variant: str) -> Path:
        """What the variant needs to go on."""
        return self.root / "state" / variant

    def round_adapter(self, variant: str, number: int) -> Path:
        """The global adapter after a round; round 0 is the start."""
        return self.state(variant) / f"round-{number:04d}"

    def log(self, event: str, **values: Any) -> None:
        """Append one event to metrics.jsonl."""
        line = json.dumps({"event": event, **values}, allow_nan=False)
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    @property
    def finished(self) -> bool:
        """Whether everything that a run leaves behind is there."""
        return self._last("finished") is not None

    @property
    def processor_s(self) -> float | None:
        """Processor time of a finished run."""
        told = self._last("finished")
        return None if told is None else float(told["processor_s"])

    def rounds(self, variant: str) -> list[dict[str, Any]]:
        """The variant's finished rounds, as `log` wrote them, each once and in order."""
        return self.events("round", variant)

    def events(self, event: str, variant: str | None = None) -> list[dict[str, Any]]:
        """The events of one name, by their round: each once, as it was last told, in order."""
        found = {
            entry["round"]: entry
            for entry in self._told()
            if entry.get("event") == event and entry.get("variant") == variant
        }
        return [found[number] for number in sorted(found)]

    def _last(self, event: str) -> dict[str, Any] | None:
        return next(
            (entry for entry in reversed(self._told()) if entry.get("event") == event), None
        )

    def _told(self) -> list[dict[str, Any]]:
        if not self.metrics.exists():
            return []
        return [_parse(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()]


def create(config: ExperimentConfig, root: Path) -> RunFolder:
    """Make a new run's folder and write its configuration.

    Raises:
        ConfigError: The folder already holds something.
    """
    if root.exists() and any(root.iterdir()):
        raise ConfigError(
            f"{root} is not empty: choose another --out, or resume the run in it with --resume"
        )
    root.mkdir(parents=True, exist_ok=True)
    root = root.resolve()
    run_id = root.name if is_run_id(root.name) else new_run_id()
    (root / "state").mkdir()
    (root / "state" / "run.json").write_text(json.dumps({"run_id": run_id}), encoding="utf-8")
    (root / "config.toml").write_text(to_toml(config), encoding="utf-8")
    return RunFolder(root, run_id)


def reopen(root: Path) -> tuple[RunFolder, ExperimentConfig]:
    """Open a run that was stopped.

    Raises:
        ConfigError: The folder holds no run.
    """
    root = root.resolve()
    path, state = root / "config.toml", root / "state" / "run.json"
    if not (path.is_file() and state.is_file()):
        raise ConfigError(
            f"{root} holds no run to resume: it has no config.toml and state/run.json"
        )
    run_id = json.loads(state.read_text(encoding="utf-8"))["run_id"]
    return RunFolder(root, run_id), reload_experiment(path)


def last_round(folder: RunFolder, variant: str) -> int:
    """The last round whose adapter and figures are both on disk; 0 if none is."""
    done = [entry["round"] for entry in folder.rounds(variant)]
    number = 0
    while number + 1 in done and folder.round_adapter(variant, number + 1).is_dir():
        number += 1
    return number


def save_round(folder: RunFolder, variant: str, number: int, figures: Mapping[str, Any]) -> None:
    """Say that a round is done; its adapter must already be on disk."""
    folder.log("round", variant=variant, round=number, **figures)


def load_round(folder: RunFolder, variant: str, number: int) -> Tensors:
    """Read a round's adapter back."""
    return load_adapter(folder.round_adapter(variant, number)).tensors


def _parse(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return {}  # the last line of a killed run may be torn; what it told will be told again
    return value if isinstance(value, dict) else {}

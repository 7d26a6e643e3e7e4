"""Flower's ServerApp: the same rounds on stock Flower, on our grids, and in a simulation.

`app` is what ``flwr run`` starts. It reads everything from Flower's run configuration:

- ``section.key`` as in an experiment's TOML, for example ``federation.rounds = 3``, over
- ``sordino-config``: a TOML file, or TOML text, of an experiment;
- ``sordino-base``: a folder with the base's ``config.json`` and its GGUF file (needed: the
  coordinator reads shapes and a hash, never weights);
- ``sordino-base-sha256``: the base's hash, where the folder has no GGUF;
- ``sordino-out``: where the adapter and the rounds' figures go, and under central trust the
  coordinator's ledger; a run that stopped goes on there;
- ``sordino-nodes``: how many nodes to wait for before the first round.
"""

from __future__ import annotations

import json
import logging
import time
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sordino.core import adapters
from sordino.core.config import ExperimentConfig, resolve_experiment
from sordino.core.durable import write_whole
from sordino.core.errors import ConfigError, ModelError, RoundFailedError, expected
from sordino.core.records import AdapterManifest, Tensors, check_tensors
from sordino.core.settings import put
from sordino.privacy.plan import AnyPlan, CentralPlan, decode_plan
from sordino.server.bases import file_sha256, gguf_file, read_architecture
from sordino.server.metrics import looks_of
from sordino.server.plans import keep_metric_plan, metric_plan_of, plans_of
from sordino.server.release import Releases
from sordino.server.rounds import MemoryRounds, OnReply, Rounds, run_rounds
from sordino.server.strategy import RoundReport, SordinoStrategy

log = logging.getLogger(__name__)

_OWN = ("sordino-config", "sordino-base", "sordino-base-sha256", "sordino-out", "sordino-nodes")
_POLL_S = 1.0


def federation_app(rounds: Rounds, *, on_reply: OnReply | None = None) -> ServerApp:
    """A ServerApp of given rounds; the arguments are those of `run_rounds`."""
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        run_rounds(grid, rounds, on_reply=on_reply)

    return server


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that Flower's run configuration describes."""
    settings = read_run_config(context.run_config)
    folder = settings.out or Path("runs") / f"flower-{context.run_id}"
    folder.mkdir(parents=True, exist_ok=True)
    plan = _plan(settings.experiment, folder, f"flower-{context.run_id}")
    strategy = _strategy(settings, plan, folder)
    done, adapter = _resume(folder, strategy)
    wait_for_nodes(grid, settings.nodes, settings.experiment.federation.round_timeout_s)

    def keep(number: int, tensors: Tensors, report: RoundReport) -> None:
        write_whole(folder / "adapter" / "adapter_model.safetensors", _packed(number, tensors))
        lines: list[dict[str, object]] = [
            {"event": "round", **asdict(report), "dropped": report.reasons}
        ]
        if strategy.looks is not None and (look := strategy.looks.after(number)) is not None:
            lines.append({"event": "metric", **look.figures()})
        with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    run_rounds(grid, MemoryRounds(strategy, adapter, start_round=done + 1, on_round=keep))
    config = peft_config(settings.experiment, strategy.manifest)
    write_whole(folder / "adapter" / "adapter_config.json", json.dumps(config, indent=2).encode())


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What the coordinator reads from Flower's run configuration."""

    experiment: ExperimentConfig
    architecture: Mapping[str, object]
    base_sha256: str
    nodes: int
    out: Path | None


def read_run_config(run_config: Mapping[str, Any]) -> ServerSettings:
    """Read Flower's flat run configuration; an empty value counts as not given.

    Raises:
        ConfigError: A key is unknown, or a value impossible.
        ModelError: The base's folder lacks what the coordinator needs.
    """
    given = {key: value for key, value in run_config.items() if value != ""}
    own = {key: given.pop(key, None) for key in _OWN}
    table = _toml(str(own["sordino-config"] or ""))
    for key, value in given.items():
        _put(table, key, value)
    if own["sordino-base"] is None:
        raise ConfigError("sordino-base is required: the folder of the base's config.json")
    base = Path(str(own["sordino-base"]))
    architecture = read_architecture(base)
    experiment = resolve_experiment(table, architecture)
    nodes = own["sordino-nodes"] or experiment.federation.min_updates
    if not isinstance(nodes, int) or nodes < 1:
        raise ConfigError(expected("sordino-nodes", nodes, "a whole number >= 1"))
    return ServerSettings(
        experiment=experiment,
        architecture=architecture,
        base_sha256=str(own["sordino-base-sha256"] or _sha256_of(base)),
        nodes=nodes,
        out=Path(str(own["sordino-out"])) if own["sordino-out"] else None,
    )


def wait_for_nodes(grid: Grid, count: int, timeout_s: float) -> None:
    """Wait until the grid knows `count` nodes.

    Raises:
        RoundFailedError: They didn't come in time.
    """
    deadline = time.monotonic() + timeout_s
    while (found := len(list(grid.get_node_ids()))) < count:
        if time.monotonic() > deadline:
            raise RoundFailedError(f"expected {count} nodes within {timeout_s:g} s, got {found}")
        time.sleep(_POLL_S)


def peft_config(experiment: ExperimentConfig, manifest: AdapterManifest) -> dict[str, Any]:
    """What PEFT needs to load the adapter that has these tensors."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": experiment.model.name,
        "inference_mode": True,
        "r": experiment.lora.rank,
        "lora_alpha": experiment.lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        **adapters.peft_layout(manifest.names),
    }


def _plan(experiment: ExperimentConfig, folder: Path, run_id: str) -> AnyPlan:
    """The run's plan; a resumed run goes on under the one it began with, or not at all."""
    path = folder / "plan.json"
    kept = decode_plan(path.read_bytes()) if path.exists() else None
    run_id = run_id if kept is None else kept.run_id
    plan, metric = plans_of(experiment, run_id)
    if kept is not None and plan != kept:
        raise ConfigError(f"{folder} holds a run under another plan: choose another sordino-out")
    write_whole(path, plan.canonical())
    keep_metric_plan(folder, metric)
    return plan


def _releases(plan: AnyPlan, folder: Path) -> Releases | None:
    return Releases(plan=plan, folder=folder) if isinstance(plan, CentralPlan) else None


def _strategy(settings: ServerSettings, plan: AnyPlan, folder: Path) -> SordinoStrategy:
    experiment = settings.experiment
    manifest = adapters.adapter_manifest(settings.architecture, experiment.lora)
    return SordinoStrategy(
        plan=plan,
        manifest=manifest,
        base_sha256=settings.base_sha256,
        lora=experiment.lora,
        train=experiment.train,
        federation=experiment.federation,
        releases=_releases(plan, folder),
        looks=looks_of(
            experiment,
            metric_plan_of(experiment, plan.run_id),
            manifest=manifest,
            base_sha256=settings.base_sha256,
        ),
    )


def _resume(folder: Path, strategy: SordinoStrategy) -> tuple[int, Tensors]:
    """The last finished round and its adapter, or round 0 and the public one."""
    path = folder / "adapter" / "adapter_model.safetensors"
    if not path.exists():
        seed = strategy.lora.init_seed
        return 0, adapters.initial_adapter(strategy.manifest, seed)
    try:
        data = path.read_bytes()
        tensors: Tensors = load(data)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"can't read {path}: {error}") from error
    check_tensors(tensors, strategy.manifest)
    return int(_metadata(data)["round"]), tensors


def _packed(number: int, tensors: Tensors) -> bytes:
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    return save(whole, metadata={"format": "pt", "round": str(number)})


def _metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata


def _toml(text: str) -> dict[str, Any]:
    try:
        if text and "=" not in text and "[" not in text:
            text = Path(text).read_text(encoding="utf-8")
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"can't read {text}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"sordino-config is not valid TOML: {error}") from error


def _sha256_of(base: Path) -> str:
    return file_sha256(gguf_file(base, "sordino-base", "or give its sha256"))


def _put(table: dict[str, Any], key: str, value: object) -> None:
    # Flower's values are scalars: a list is written with commas.
    listed = key in ("lora.targets", "data.users")
    put(table, key, str(value).split(",") if listed else value)

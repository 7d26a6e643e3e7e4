"""A federation without a model: a tiny adapter, a plan, clients that do as their node says."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord
from flwr.clientapp import ClientApp

from sordino.client.app import make_app
from sordino.client.contract import LocalWork
from sordino.core import adapters
from sordino.core import app as flower
from sordino.core.config import FederationConfig, LoraConfig, TrainConfig
from sordino.core.records import MetricTask, Receipt, Tensors, TrainTask, Update
from sordino.core.wire import decode_task, encode_update
from sordino.privacy.noise import seeded_source
from sordino.privacy.plan import MetricPlan, NoPrivacyPlan, Plan, decode_plan
from sordino.privacy.policy import Cap, Policy
from sordino.server.metrics import Looks
from sordino.server.strategy import SordinoStrategy

ARCHITECTURE = {
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
}
BASE = "ab" * 32
LORA = LoraConfig(rank=2, targets=("q_proj", "down_proj"))
TRAIN = TrainConfig(local_steps=3, learning_rate=1.0)
MANIFEST = adapters.adapter_manifest(ARCHITECTURE, LORA)
POLICY = Policy(  # loose, so that a test says for itself what it is about
    trust=("local", "central"),
    min_noise_multiplier=0.01,
    max_sampling_rate=1.0,
    min_cohort=1,
    amplification=True,
    caps=(Cap(epsilon=1e6, delta=1e-5),),
    metrics=("loss",),
    min_metric_noise=0.01,
)
SCRIPTED = "support.federation:scripted"
TRAINING = "support.federation:training"


def make_plan(**changes: object) -> Plan:
    values: dict[str, object] = {
        "run_id": "run-1",
        "rounds": 3,
        "steps_per_round": TRAIN.local_steps,
        "sampling_rate": 0.5,
        "noise_multiplier": 1.0,
        "clip_norm": 1.0,
        "divisor": 4.0,
        "delta": 1e-5,
    }
    return Plan(**{**values, **changes})  # type: ignore[arg-type]


def make_metric(**changes: object) -> MetricPlan:
    values: dict[str, object] = {
        "run_id": "run-1:loss",
        "rounds": 3,
        "metric": "loss",
        "purpose": "metric",
        "noise_multiplier": 4.0,
        "clip_norm": 4.0,
        "centre": 4.0,
        "divisor": 10.0,
        "delta": 1e-5,
    }
    return MetricPlan(**{**values, **changes})  # type: ignore[arg-type]


def make_looks(plan: MetricPlan | None = None, every: int = 1) -> Looks:
    return Looks(
        plan=plan or make_metric(),
        every=every,
        manifest=MANIFEST,
        base_sha256=BASE,
        lora=LORA,
        timeout_s=60.0,
    )


def make_metric_task(look: int = 1, plan: MetricPlan | None = None) -> MetricTask:
    plan = plan or make_metric()
    return MetricTask(
        run_id=plan.run_id,
        round=look,
        plan=plan.canonical(),
        base_sha256=BASE,
        lora=LORA,
        manifest_sha256=MANIFEST.sha256,
        tensors={},
    )


def open_plan(**changes: object) -> NoPrivacyPlan:
    values: dict[str, object] = {
        "run_id": "run-1",
        "rounds": 3,
        "steps_per_round": TRAIN.local_steps,
        "sampling_rate": 0.5,
        "divisor": 4.0,
    }
    return NoPrivacyPlan(**{**values, **changes})  # type: ignore[arg-type]


def make_strategy(
    plan: Plan | NoPrivacyPlan | None = None,
    lora: LoraConfig = LORA,
    min_updates: int = 1,
    timeout_s: float = 60.0,
    looks: Looks | None = None,
) -> SordinoStrategy:
    return SordinoStrategy(
        plan=plan or make_plan(),
        manifest=adapters.adapter_manifest(ARCHITECTURE, lora),
        base_sha256=BASE,
        lora=lora,
        train=TRAIN,
        federation=FederationConfig(min_updates=min_updates, round_timeout_s=timeout_s),
        looks=looks,
    )


def initial() -> Tensors:
    return adapters.initial_adapter(MANIFEST, LORA.init_seed)


def make_task(round_number: int = 1, plan: Plan | NoPrivacyPlan | None = None) -> TrainTask:
    return make_strategy(plan).task(round_number, initial())


def filled(value: float, round_number: int = 1, lora: LoraConfig = LORA) -> Tensors:
    """An update whose every parameter is `value`."""
    manifest = adapters.trained_manifest(MANIFEST, lora.aggregation, round_number)
    return {s.name: np.full(s.shape, value, np.float32) for s in manifest.tensors}


def update_for(task: TrainTask, tensors: Tensors) -> Update:
    return Update(
        run_id=task.run_id,
        round=task.round,
        plan_sha256=decode_plan(task.plan).sha256,
        tensors=tensors,
        receipt=Receipt(ledger_head="0" * 64, entry_index=0),
    )


# --- clients that misbehave on purpose ---------------------------------------------------------

scripted = ClientApp()


@scripted.train()
def _scripted(message: Message, context: Context) -> Message:
    if "script" in context.node_config:  # a file, so that one grid serves many tests
        context = _read_script(context)
    if "client" in context.node_config:
        return training(message, context)
    behaviour = str(context.node_config.get("behaviour", "honest"))
    _interrupt(behaviour, context)
    task = decode_task(flower.from_records(message.content))
    tensors = filled(float(context.node_config["value"]), task.round, task.lora)
    update = update_for(task, _spoil(behaviour, tensors))
    if behaviour == "stale":
        update = update_for(make_task(task.round + 1), tensors)
    if behaviour == "other-plan":
        update = update_for(make_task(plan=make_plan(noise_multiplier=0.01)), tensors)
    records = flower.to_records(encode_update(update))
    if behaviour == "extra-record":
        records["metrics"] = MetricRecord({"examples": 10**12})
    if behaviour == "lying-shape":
        _lie(records[flower.TENSORS])
    return Message(records, reply_to=message)


@scripted.evaluate()
def _scripted_look(message: Message, context: Context) -> Message:
    return training(message, _read_script(context))


def _interrupt(behaviour: str, context: Context) -> None:
    if behaviour == "raise":
        raise ValueError("a record said: hunter2")
    if behaviour == "die-once":
        _die_once(Path(str(context.node_config["marker"])))
    if behaviour == "sleep":
        time.sleep(float(context.node_config["seconds"]))


def _read_script(context: Context) -> Context:
    config = json.loads(Path(str(context.node_config["script"])).read_text())
    return Context(context.run_id, context.node_id, config, context.state, context.run_config)


def _spoil(behaviour: str, tensors: Tensors) -> Tensors:
    name = sorted(tensors)[0]
    first = tensors[name]
    if behaviour in ("nan", "inf"):
        first[0, 0] = np.nan if behaviour == "nan" else -np.inf
    elif behaviour == "shape":
        tensors[name] = first[:-1]
    elif behaviour == "transposed":
        tensors[name] = np.ascontiguousarray(first.T)
    elif behaviour == "dtype":
        tensors[name] = first.astype(np.float64)  # type: ignore[assignment]
    elif behaviour == "extra":
        tensors["another.lora_B.weight"] = first
    elif behaviour == "missing":
        del tensors[name]
    elif behaviour == "norm":
        first[0, 0] = 1e6
    return tensors


def _lie(arrays: ArrayRecord) -> None:
    name = next(iter(arrays))
    array = arrays[name]
    arrays[name] = Array(array.dtype, (1 << 30, 1), array.stype, array.data)


def _die_once(marker: Path) -> None:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


# --- the real ClientApp on a session without a model -------------------------------------------


@dataclass
class TinySession:
    """Ten records that each pull in one direction; the gradient is their clipped sum."""

    client_id: str
    state_dir: Path
    allow_no_privacy: bool = False
    base_sha256: str = BASE
    architecture: dict[str, int] = field(default_factory=lambda: dict(ARCHITECTURE))
    dataset_id: str = "tiny"
    limit: object = None
    policy: Policy = POLICY
    now: dict[str, bool] = field(default_factory=dict)
    trained: int = 0
    measured: int = 0
    values: tuple[float, ...] = (2.0,) * 10
    fail: Exception | None = None

    def conditions(self) -> dict[str, bool]:
        return self.now

    def noise_source(self, run_id: str, round_number: int) -> object:
        # A new stream each time: a second draw would show.
        self.draws = getattr(self, "draws", 0) + 1
        return seeded_source(os.getpid(), self.client_id, run_id, str(time.time_ns()))

    def train(self, work: LocalWork, mechanism) -> tuple[Tensors, object]:  # type: ignore[no-untyped-def]
        if self.fail is not None:
            raise self.fail
        self.trained += 1
        update = {s.name: np.zeros(s.shape, np.float32) for s in work.trained.tensors}
        batches = []
        for _ in range(work.train.local_steps):
            batch = mechanism.sample(10)
            batches.append(len(batch))
            factors = mechanism.clip_factors(np.ones(len(batch)))
            total = np.full(work.trained.parameter_count, float(np.sum(factors)) * 1e-3)
            step = mechanism.release(total) / mechanism.divisor
            start = 0
            for spec in work.trained.tensors:
                part = step[start : start + spec.size].reshape(spec.shape)
                update[spec.name] -= work.train.learning_rate * part.astype(np.float32)
                start += spec.size
        return update, {"batch_sizes": np.array(batches)}

    def measure(self, metric: str, adapter: Tensors, lora: LoraConfig) -> np.ndarray:
        if self.fail is not None:
            raise self.fail
        self.measured += 1
        return np.array(self.values)


def open_tiny(config) -> TinySession:  # type: ignore[no-untyped-def]
    return TinySession(
        str(config["client"]),
        Path(str(config["state"])) / str(config["client"]),
        allow_no_privacy=bool(config.get("allow-no-privacy", False)),
    )


training = make_app(open_tiny)  # type: ignore[arg-type]

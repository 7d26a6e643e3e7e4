"""One trial of the sweep of defaults: a federation that trains as devices do, on other plays."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.client.data import shakespeare
from sordino.client.data.records import Record
from sordino.client.data.source import open_source
from sordino.client.data.tokens import TokenRecord
from sordino.client.lora import LoraAdapter
from sordino.client.model.store import cache_root
from sordino.client.session import warm_base
from sordino.client.train import Mechanism, Observations, evaluate, train_round
from sordino.core import adapters
from sordino.core.config import DataConfig, ExperimentConfig, ModelConfig
from sordino.core.records import Tensors
from sordino.core.settings import build
from sordino.privacy.ledger import Ledger
from sordino.privacy.noise import seeded_source
from sordino.privacy.plan import (
    NoPrivacyPlan,
    Plan,
    open_round,
    open_round_without_privacy,
    plan_without_privacy,
    private_plan,
)
from sordino.server import aggregate

Settings = Mapping[str, Any]  # "section.key" to its value
RECORDS = 118  # of each client, as many as the demo's median role has
RUN_ID = "sweep"


@dataclass(frozen=True)
class Client:
    """A group of roles.

    Attributes:
        train: Their speeches.
        held_out: About a fifth of each role's, by each record's own hash.
    """

    train: tuple[TokenRecord, ...]
    held_out: tuple[TokenRecord, ...]


@dataclass(frozen=True)
class Trial:
    """One run.

    Attributes:
        epsilon: Of the whole run; infinity: without privacy.
        settings: What differs from the defaults of the settings' classes.
        seed: Of noise, batches and views.
    """

    epsilon: float
    settings: Settings
    seed: int

    @property
    def key(self) -> str:
        """The trial's name in the file of results."""
        return json.dumps([repr(self.epsilon), dict(self.settings), self.seed], sort_keys=True)

    def experiment(self) -> ExperimentConfig:
        """The settings in full."""
        table: dict[str, dict[str, Any]] = {"privacy": {}}
        for path, value in self.settings.items():
            section, name = path.split(".")
            table.setdefault(section, {})[name] = value
        if math.isfinite(self.epsilon):
            table["privacy"]["epsilon"] = self.epsilon
        else:
            table["privacy"]["trust"] = "none"
        return build(ExperimentConfig, table)


@dataclass(frozen=True)
class Bench:
    """A base and clients that every trial shares.

    Attributes:
        model: The base's name.
        clients: How many groups of roles.
        max_tokens: Where a record is cut.
        most_held_out: Of each client, at most so many records are evaluated.
    """

    model: str
    clients: int
    max_tokens: int
    most_held_out: int

    @cached_property
    def base(self) -> Any:
        """The open base."""
        return warm_base(ModelConfig(name=self.model), cache_root())[0]

    @cached_property
    def people(self) -> list[Client]:
        """The clients: roles dealt out, largest first, until each has `RECORDS` or they run out."""
        tokenizer = warm_base(ModelConfig(name=self.model), cache_root())[1]
        roles = shakespeare.roles(shakespeare.TUNING)
        source = open_source(DataConfig(users=tuple(roles)))
        groups: list[tuple[list[Record], list[Record]]] = [([], []) for _ in range(self.clients)]
        for role in roles:
            smallest = min(groups, key=lambda group: len(group[0]))
            if len(smallest[0]) >= RECORDS:
                break
            mine = source.user(role)
            smallest[0].extend(mine.train)
            smallest[1].extend(mine.held_out)

        def encode(records: Sequence[Record], most: int) -> tuple[TokenRecord, ...]:
            spread = np.linspace(0, len(records) - 1, min(most, len(records))).astype(int)
            chosen = [records[i] for i in spread]
            return tokenizer.encode_records(chosen, self.max_tokens).records

        return [Client(encode(t, RECORDS), encode(h, self.most_held_out)) for t, h in groups]

    @cached_property
    def before(self) -> float:
        """Held-out loss of the base alone, nats per token."""
        return self.loss(None)

    def loss(self, adapter: LoraAdapter | None) -> float:
        """Held-out loss over all clients' tokens, nats per token."""
        rows = [evaluate(self.base.decoder, adapter, c.held_out) for c in self.people]
        sums: NDArray[np.float64] = np.concatenate(rows).sum(0)
        return float(sums[0] / sums[1])

    def run(self, trial: Trial) -> dict[str, float]:
        """Train and evaluate; what a line of results holds beside the trial."""
        config, started = trial.experiment(), time.process_time()
        plan = _plan(config)
        manifest = adapters.adapter_manifest(self.base.files.config, config.lora)
        tensors = adapters.initial_adapter(manifest, config.lora.init_seed)
        seen: list[Observations] = []
        with tempfile.TemporaryDirectory() as folder:
            for number in range(1, plan.rounds + 1):
                trained = adapters.trained_manifest(manifest, config.lora.aggregation, number)
                bound = aggregate.norm_bound(
                    plan, config.train, trained.parameter_count, round_number=number
                )
                total = aggregate.UpdateSum(trained, bound=bound, cohort=self.clients)
                for index, client in enumerate(self.people):
                    opened = _open(plan, number, index, trial.seed, Path(folder))
                    update, observed = self._train(config, number, client, tensors, opened)
                    if aggregate.update_norm(update) > bound:
                        raise ValueError(f"an honest update is beyond its bound: {trial.key}")
                    total.add(update)
                    seen.append(observed)
                tensors = aggregate.apply_mean(tensors, total.mean())
        scale = config.lora.alpha / config.lora.rank
        ratios = [ratio for one in seen for ratio in one.signal_to_noise]
        return {
            "gain": self.before - self.loss(LoraAdapter(tensors, scale=scale)),
            "noise_multiplier": plan.noise_multiplier if isinstance(plan, Plan) else 0.0,
            "clipped": sum(o.clipped for o in seen) / max(1, sum(sum(o.batch_sizes) for o in seen)),
            "signal_to_noise": statistics.fmean(ratios) if ratios else math.inf,
            "cpu_s": time.process_time() - started,
        }

    def _train(
        self,
        config: ExperimentConfig,
        number: int,
        client: Client,
        tensors: Tensors,
        opened: Mechanism,
    ) -> tuple[Tensors, Observations]:
        manifest = adapters.adapter_manifest(self.base.files.config, config.lora)
        return train_round(
            self.base.decoder,
            tensors,
            adapters.trained_manifest(manifest, config.lora.aggregation, number).names,
            client.train,
            opened,
            round_number=number,
            lora=config.lora,
            train=config.train,
            performance=config.performance,
        )


def _plan(config: ExperimentConfig) -> Plan | NoPrivacyPlan:
    rounds, steps = config.federation.rounds, config.train.local_steps
    if config.privacy.trust == "none":
        return plan_without_privacy(config.privacy, run_id=RUN_ID, rounds=rounds, local_steps=steps)
    privacy = config.privacy
    solved = _solved(privacy.epsilon, privacy.delta, privacy.sampling_rate, rounds, steps)
    return replace(solved, clip_norm=privacy.clip_norm, divisor=privacy.expected_batch)


@lru_cache
def _solved(epsilon: float, delta: float, rate: float, rounds: int, steps: int) -> Plan:
    """The plan of these figures; clip norm and divisor don't change its ε."""
    privacy = build(
        ExperimentConfig,
        {"privacy": {"epsilon": epsilon, "delta": delta, "sampling_rate": rate}},
    ).privacy
    return private_plan(privacy, run_id=RUN_ID, rounds=rounds, local_steps=steps)


def _open(
    plan: Plan | NoPrivacyPlan, number: int, index: int, seed: int, folder: Path
) -> Mechanism:
    source = seeded_source(seed, RUN_ID, str(index), str(number))
    if isinstance(plan, NoPrivacyPlan):
        return open_round_without_privacy(plan, source)
    ledger = Ledger(folder / f"{index}.db", f"client-{index}")
    return open_round(plan, ledger.charge(plan, number, f"tuning-{index}"), source)

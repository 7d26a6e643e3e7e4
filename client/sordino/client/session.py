"""One client's data over one warm base: what the ClientApp trains with.

A process opens a base once and keeps it; a client is its records, its folder, and nothing of the
model, so that going from one client to the next costs milliseconds.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sordino.client.canaries import placed_records
from sordino.client.contract import LocalWork, NodeConfig
from sordino.client.data.records import Record, Source
from sordino.client.data.source import open_source, select_users
from sordino.client.data.tokens import TokenizerFile, TokenRecord
from sordino.client.device import read_conditions
from sordino.client.lora import LoraAdapter
from sordino.client.measure import record_values
from sordino.client.model.store import BaseModel, cache_root, open_base, resolve_model
from sordino.client.train import Mechanism, Observations, Tensors, train_round
from sordino.core.config import DataConfig, LoraConfig, ModelConfig, PerformanceConfig
from sordino.core.errors import ConfigError, expected
from sordino.core.settings import build
from sordino.privacy.ledger import Limit
from sordino.privacy.noise import NoiseSource, seeded_source, system_source
from sordino.privacy.plan import policy_limit
from sordino.privacy.policy import BUILT_IN, Conditions, Policy, load_policy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """A device's own configuration, flat, as Flower's ``node-config`` carries it.

    Attributes:
        model: As `ModelConfig.name`.
        quantization: As `ModelConfig.quantization`.
        data: As `DataConfig.source`.
        user: Whose records; empty: the `partition_id`-th of the source's users by their numbers of
            records, which no guarantee covers.
        partition_id: Which user, where `user` is empty.
        num_partitions: How many nodes there are; Flower's simulation sets it.
        state_dir: The client's own folder: ledger, kept updates, observations.
        cache_dir: The model cache; empty: the user's.
        allow_no_privacy: The owner's explicit word that training without privacy may happen.
        policy: The owner's signed policy, a TOML file; empty: the strict built-in one.
        policy_key: The public key of the policy's owner, 64 hexadecimal digits.
        noise_seed: Not negative: noise and batches are reproducible, and not private.
        canaries: The folder of an audit that the owner agreed to; empty: none. See
            `sordino.client.canaries`.
    """

    model: str = "pocket"
    quantization: str = "int8"
    data: str = "shakespeare"
    user_column: str = "user"
    user: str = ""
    partition_id: int = 0
    num_partitions: int = 1
    share: float = 1.0
    max_tokens: int = 64
    held_out: float = 0.2
    state_dir: str = ""
    cache_dir: str = ""
    allow_no_privacy: bool = False
    policy: str = ""
    policy_key: str = ""
    noise_seed: int = -1
    canaries: str = ""
    micro_batch: int = 8
    checkpoint: bool = False
    memory_mb: int = 0

    def data_config(self) -> DataConfig:
        """The part that says which records."""
        return DataConfig(
            source=self.data,
            user_column=self.user_column,
            users=(self.user,) if self.user else (),
            clients=max(self.num_partitions, self.partition_id + 1),
            share=self.share,
            max_tokens=self.max_tokens,
            held_out=self.held_out,
        )


@dataclass(frozen=True)
class ClientSession:
    """A client that is ready to train; see `sordino.client.app.Session`."""

    client_id: str
    dataset_id: str
    state_dir: Path
    allow_no_privacy: bool
    base: BaseModel
    records: tuple[TokenRecord, ...]
    held_out: tuple[TokenRecord, ...]
    performance: PerformanceConfig
    noise_seed: int
    policy: Policy = BUILT_IN
    conditions: Callable[[], Conditions] = read_conditions

    @property
    def limit(self) -> Limit:
        """The policy's lifetime caps."""
        return policy_limit(self.policy)

    @property
    def base_sha256(self) -> str:
        """Hash of the base model's file."""
        return self.base.files.sha256

    @property
    def architecture(self) -> Mapping[str, object]:
        """The base model's ``config.json``."""
        return self.base.files.config

    def noise_source(self, run_id: str, round_number: int) -> NoiseSource:
        """The operating system's randomness, unless the owner asked for a seed."""
        if self.noise_seed < 0:
            return system_source()
        return seeded_source(self.noise_seed, run_id, self.client_id, str(round_number))

    def train(self, work: LocalWork, mechanism: Mechanism) -> tuple[Tensors, Observations]:
        """Run a round's local steps over the client's training records."""
        return train_round(
            self.base.decoder,
            work.adapter,
            work.trained.names,
            self.records,
            mechanism,
            round_number=work.round,
            lora=work.lora,
            train=work.train,
            performance=self.performance,
        )

    def measure(self, metric: str, adapter: Tensors, lora: LoraConfig) -> NDArray[np.float64]:
        """A metric of each held-out record under an adapter: exact, private."""
        return record_values(
            metric,
            self.base.decoder,
            LoraAdapter(adapter, scale=lora.alpha / lora.rank),
            self.held_out,
            micro_batch=self.performance.micro_batch,
        )


def open_session(config: NodeConfig) -> ClientSession:
    """Open a client from its node configuration; keys may be written with ``-`` or ``_``.

    One record added to a named user's data, or removed, changes the training and the held-out part,
    taken together, by that record alone. So does the first one: without a record there is a session
    all the same, which trains on nothing.

    Raises:
        ConfigError: A key is unknown or a value impossible.
        PolicyError: The policy can't be read, or isn't its owner's.
        DataError: The data can't be read, or no user is named and there are too few.
        ModelError: The base can't be opened.
    """
    node = build(NodeSettings, {k.replace("-", "_"): v for k, v in config.items()}, "node-config")
    data = node.data_config()
    # A file is read once for all its users.
    source = _source(replace(data, users=()))
    user = node.user or select_users(source, data)[node.partition_id]
    base, tokenizer = warm_base(_model_config(node), Path(node.cache_dir or cache_root()))
    mine = source.user(user)
    canaries = placed_records(Path(node.canaries), data) if node.canaries else ()
    return ClientSession(
        client_id=user,
        dataset_id=mine.dataset_id,
        state_dir=Path(node.state_dir) if node.state_dir else _default_state_dir(user),
        allow_no_privacy=node.allow_no_privacy,
        base=base,
        records=_encode(tokenizer, (*mine.train, *canaries), data, user, "train"),
        held_out=_encode(tokenizer, mine.held_out, data, user, "held-out"),
        performance=PerformanceConfig(
            micro_batch=node.micro_batch, checkpoint=node.checkpoint, memory_mb=node.memory_mb
        ),
        noise_seed=node.noise_seed,
        policy=_policy(node),
    )


@lru_cache(maxsize=2)
def warm_base(model: ModelConfig, cache: Path) -> tuple[BaseModel, TokenizerFile]:
    """Open a base once a process, with its tokenizer."""
    files = resolve_model(model, cache)
    return open_base(files), TokenizerFile.load(files.tokenizer)


def _policy(node: NodeSettings) -> Policy:
    if not node.policy and not node.policy_key:
        return BUILT_IN
    # One without the other is a mistake that must not end in another policy than was meant.
    return load_policy(Path(node.policy), node.policy_key)


@lru_cache(maxsize=8)
def _source(data: DataConfig) -> Source:
    return open_source(data)


def _model_config(node: NodeSettings) -> ModelConfig:
    if node.quantization not in ("int8", "nf4"):
        raise ConfigError(expected("node-config.quantization", node.quantization, "int8 or nf4"))
    return build(ModelConfig, {"name": node.model, "quantization": node.quantization})


def _encode(
    tokenizer: TokenizerFile, records: Sequence[Record], data: DataConfig, user: str, part: str
) -> tuple[TokenRecord, ...]:
    encoded = tokenizer.encode_records(records, data.max_tokens)
    # For the owner, on the device: whether there is a record at all is as private as a record.
    for reason, count in Counter(encoded.dropped).items():
        _warn_once(f"{user}: {count} {part} records were left out: {reason}")
    if not encoded.records:
        _warn_once(f"{user}: no {part} record in {data.source}")
    return encoded.records


@lru_cache(maxsize=1024)
def _warn_once(text: str) -> None:
    """A simulation opens the same session for every evaluation."""
    logger.warning(text)


def _default_state_dir(user: str) -> Path:
    states = os.environ.get("XDG_STATE_HOME")
    root = Path(states) if states else Path.home() / ".local" / "state"
    return root / "sordino" / re.sub(r"[^A-Za-z0-9._-]", "-", user)

"""Who takes part in a simulated run: each client's node configuration and its own folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from sordino.client.data.source import open_source, select_users
from sordino.core.config import ExperimentConfig
from sordino.sim.grid import NodeConfig


@dataclass(frozen=True)
class Population:
    """The clients of a run.

    Attributes:
        users: Their names, in the order of their nodes.
        records: How many training records each has.
        notes: What was left out of the data, and why.
    """

    users: tuple[str, ...]
    records: tuple[int, ...]
    notes: tuple[str, ...]


def choose_population(config: ExperimentConfig) -> Population:
    """Pick the users that the configuration names, or those with most records.

    Raises:
        DataError: The data can't be read, or has too few users.
    """
    source = open_source(config.data)
    users = select_users(source, config.data)
    parts = [source.user(user) for user in users]
    records = tuple(len(user.train) for user in parts)
    notes = [*source.notes]
    if idle := records.count(0):
        notes.append(f"{idle} of {len(users)} clients have no record to train on: they send noise")
    if unjudged := sum(not user.held_out for user in parts):
        notes.append(f"{unjudged} of {len(users)} clients hold no record out, and have no loss")
    return Population(users, records, tuple(notes))


def state_dir(root: Path, index: int) -> Path:
    """A client's own folder: by number, since a user's name may be no file name."""
    return root / f"client-{index:05d}"


def _no_canaries(index: int) -> Mapping[str, str]:
    del index
    return {}


@dataclass(frozen=True)
class Nodes(Sequence[NodeConfig]):
    """What each client's device would have in its own configuration, made when it is asked for.

    Attributes:
        common: What all have.
        users: Whose records each has.
        state_root: Where the clients' folders go.
        canaries: What the owner of each set for an audit that it agreed to.
    """

    common: NodeConfig
    users: Sequence[str]
    state_root: Path
    canaries: Callable[[int], Mapping[str, str]] = _no_canaries

    def __len__(self) -> int:
        return len(self.users)

    @overload
    def __getitem__(self, index: int) -> NodeConfig: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[NodeConfig]: ...

    def __getitem__(self, index: int | slice) -> NodeConfig | Sequence[NodeConfig]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        folder = str(state_dir(self.state_root, number))
        own = {"user": self.users[number], "state-dir": folder}
        return {**self.common, **own, **self.canaries(number)}


@dataclass(frozen=True)
class Blocks(Sequence[NodeConfig]):
    """The nodes of several variants, one block after the other, all of the same length."""

    parts: Sequence[Nodes]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @overload
    def __getitem__(self, index: int) -> NodeConfig: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[NodeConfig]: ...

    def __getitem__(self, index: int | slice) -> NodeConfig | Sequence[NodeConfig]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        block, number = divmod(range(len(self))[index], len(self.parts[0]))
        return self.parts[block][number]


def node_configs(
    config: ExperimentConfig,
    users: Sequence[str],
    *,
    state_root: Path,
    cache: Path,
    without_privacy: bool,
    policy: Mapping[str, str],
    canaries: Callable[[int], Mapping[str, str]] = _no_canaries,
) -> Nodes:
    """What each client's device would have in its own configuration.

    Args:
        config: The experiment.
        users: The clients' users.
        state_root: Where the clients' folders go.
        cache: The model cache.
        without_privacy: The simulated owners let their devices train without privacy. Then nothing
            has to be secret, and batches come from the experiment's seed.
        policy: The simulated owners' signed policy, and the key that it is signed with.
        canaries: What the owner of each client set for an audit that it agreed to.
    """
    common: NodeConfig = {
        "model": config.model.name,
        "quantization": config.model.quantization,
        "data": config.data.source,
        "user-column": config.data.user_column,
        "share": config.data.share,
        "max-tokens": config.data.max_tokens,
        "held-out": config.data.held_out,
        "cache-dir": str(cache),
        "allow-no-privacy": without_privacy,
        "noise-seed": config.seed if config.privacy.seeded_noise or without_privacy else -1,
        "micro-batch": config.performance.micro_batch,
        "checkpoint": config.performance.checkpoint,
        "memory-mb": config.performance.memory_mb,
        **policy,
    }
    return Nodes(common, users, state_root, canaries)

"""What is audited: a run's folder opened for reading, or a model and an adapter by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from sordino.client.adapter_files import WEIGHTS, load_adapter
from sordino.client.data.records import Record, Source, UserData
from sordino.client.data.source import open_source
from sordino.client.data.tokens import TokenizerFile, TokenRecord
from sordino.client.lora import LoraAdapter
from sordino.client.model.store import BaseModel
from sordino.client.session import warm_base
from sordino.core import canonical
from sordino.core.adapters import adapter_manifest, initial_adapter, trained_manifest
from sordino.core.config import ExperimentConfig
from sordino.core.errors import AuditError
from sordino.core.records import Tensors
from sordino.privacy.plan import AnyPlan
from sordino.sim import folder
from sordino.sim.folder import NO_PRIVACY, PRIVATE, RunFolder
from sordino.sim.population import choose_population
from sordino.sim.updates import kept_update
from sordino.sim.variants import read_plan


@dataclass(frozen=True)
class Target:
    """A finished run, opened for an audit. Nothing here writes to it.

    Attributes:
        run: Its folder.
        config: Its settings.
        base: The frozen base that it was trained over.
        tokenizer: Of that base.
    """

    run: RunFolder
    config: ExperimentConfig
    base: BaseModel
    tokenizer: TokenizerFile

    @cached_property
    def users(self) -> tuple[str, ...]:
        """The clients' users, in the order of their folders."""
        return choose_population(self.config).users

    @property
    def main(self) -> str:
        """The variant that the report is about."""
        return NO_PRIVACY if self.config.privacy.trust == "none" else PRIVATE

    @property
    def variants(self) -> tuple[str, ...]:
        """The federated runs whose adapters are here, the main one first."""
        known = [self.main, *({PRIVATE, NO_PRIVACY} - {self.main})]
        return tuple(name for name in known if folder.last_round(self.run, name))

    def plan(self, variant: str) -> AnyPlan:
        """The plan that a variant ran under."""
        return read_plan(self.run, variant)

    def rounds(self, variant: str) -> int:
        """How many rounds of a variant are done."""
        return folder.last_round(self.run, variant)

    def tensors(self, variant: str, number: int) -> Tensors:
        """The global adapter after a round; 0: what the run began with."""
        if number == 0:
            manifest = adapter_manifest(self.base.files.config, self.config.lora)
            return initial_adapter(manifest, self.config.lora.init_seed)
        return load_adapter(self.run.round_adapter(variant, number)).tensors

    def trained(self, number: int) -> tuple[str, ...]:
        """Names of the tensors that a round trains."""
        manifest = adapter_manifest(self.base.files.config, self.config.lora)
        return tuple(trained_manifest(manifest, self.config.lora.aggregation, number).names)

    @property
    def scale(self) -> float:
        """``alpha / rank``."""
        return self.config.lora.alpha / self.config.lora.rank

    def adapter(self, variant: str, number: int) -> LoraAdapter:
        """The global adapter after a round, to evaluate with."""
        return LoraAdapter(self.tensors(variant, number), scale=self.scale)

    def update(self, variant: str, number: int, client: int) -> Tensors | None:
        """What a client sent in a round; None: nothing, or it wasn't kept for an audit."""
        return kept_update(self.run, variant, number, client)

    def data(self, user: str) -> UserData:
        """A user's records, as the run cut them."""
        return self._source.user(user)

    def encode(self, texts: list[str]) -> tuple[TokenRecord, ...]:
        """Texts as a client would encode its records.

        Raises:
            AuditError: One has no token to learn.
        """
        records = [Record(text=text) for text in texts]
        encoded = self.tokenizer.encode_records(records, self.config.data.max_tokens)
        if encoded.dropped:
            raise AuditError(f"a text can't be scored: {encoded.dropped[0]}")
        return encoded.records

    def rng(self, purpose: str) -> np.random.Generator:
        """Randomness of the audit's own choices, from the run's seed: never of coins or noise."""
        return np.random.default_rng([self.config.seed, *purpose.encode()])

    @cached_property
    def _source(self) -> Source:
        return open_source(self.config.data)


def open_target(root: Path, cache: Path) -> Target:
    """Open a finished run.

    Raises:
        AuditError: The run has no finished round.
        ConfigError: The folder holds no run.
        ModelError: Its base can't be opened.
    """
    run, config = folder.reopen(root)
    base, tokenizer = warm_base(config.model, cache)
    target = Target(run, config, base, tokenizer)
    if not target.variants or target.variants[0] != target.main:
        raise AuditError(f"{root} holds no finished round: let the run finish, or resume it")
    return target


def texts_of(data: Mapping[str, UserData], part: str) -> list[str]:
    """The plain texts of users' records; chats and prompts are written out one after another."""
    found = []
    for user in data.values():
        for record in getattr(user, part):
            turns = "\n".join(turn.content for turn in record.messages)
            found.append(f"{record.prompt}{record.text}{turns}")
    return found


def adapter_sha256(target: Target, variant: str) -> str:
    """Hash of the weights of a variant's last adapter, as they lie on disk."""
    path = target.run.round_adapter(variant, target.rounds(variant)) / WEIGHTS
    return canonical.sha256_hex(path.read_bytes())

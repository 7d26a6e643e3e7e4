"""What is audited: a run's folder opened for reading, or a model and an adapter by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from sordino.client.adapter_files import WEIGHTS, SavedAdapter, load_adapter
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
from sordino.sim.audit.corpus import Corpus
from sordino.sim.folder import NO_PRIVACY, PRIVATE, RunFolder
from sordino.sim.updates import kept_update
from sordino.sim.variants import read_plan

GIVEN = "given"


class Deployed(Protocol):
    """A base and adapters over it, as whoever uses them has them."""

    @property
    def base(self) -> BaseModel:
        """The frozen base."""
        ...

    @property
    def corpus(self) -> Corpus:
        """The texts that it was trained on, and others."""
        ...

    @property
    def variants(self) -> Sequence[str]:
        """The adapters' names, the main one first."""
        ...

    @property
    def scale(self) -> float:
        """``alpha / rank``."""
        ...

    def last(self, variant: str) -> Tensors:
        """An adapter as it was deployed."""
        ...

    def sha256(self, variant: str) -> str:
        """Hash of its weights, as they lie on disk."""
        ...


def last_adapter(target: Deployed, variant: str) -> LoraAdapter:
    """A deployed adapter, to evaluate with."""
    return LoraAdapter(target.last(variant), scale=target.scale)


@dataclass(frozen=True)
class Target:
    """A finished run, opened for an audit. Nothing here writes to it.

    Attributes:
        run: Its folder.
        config: Its settings.
        base: The frozen base that it was trained over.
        corpus: Its users' records.
    """

    run: RunFolder
    config: ExperimentConfig
    base: BaseModel
    corpus: Corpus

    @property
    def main(self) -> str:
        """The variant that the report is about."""
        return NO_PRIVACY if self.config.privacy.trust == "none" else PRIVATE

    @cached_property
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

    def last(self, variant: str) -> Tensors:
        """See `Deployed`."""
        return self.tensors(variant, self.rounds(variant))

    def sha256(self, variant: str) -> str:
        """See `Deployed`."""
        path = self.run.round_adapter(variant, self.rounds(variant)) / WEIGHTS
        return canonical.sha256_hex(path.read_bytes())

    def trained(self, number: int) -> tuple[str, ...]:
        """Names of the tensors that a round trains."""
        manifest = adapter_manifest(self.base.files.config, self.config.lora)
        return tuple(trained_manifest(manifest, self.config.lora.aggregation, number).names)

    @property
    def scale(self) -> float:
        """See `Deployed`."""
        return self.config.lora.alpha / self.config.lora.rank

    def update(self, variant: str, number: int, client: int) -> Tensors | None:
        """What a client sent in a round; None: nothing, or it wasn't kept for an audit."""
        return kept_update(self.run, variant, number, client)


@dataclass(frozen=True)
class GivenAdapter:
    """A model and an adapter of whatever origin: what a user of them can ask.

    Attributes:
        folder: The adapter's.
        saved: The adapter.
        base: What it belongs to.
        corpus: What it is said to have been trained on, and others of the kind.
    """

    folder: Path
    saved: SavedAdapter
    base: BaseModel
    corpus: Corpus
    variants: tuple[str, ...] = (GIVEN,)

    @property
    def scale(self) -> float:
        """See `Deployed`."""
        return self.saved.scale

    def last(self, variant: str) -> Tensors:
        """See `Deployed`."""
        del variant
        return self.saved.tensors

    def sha256(self, variant: str) -> str:
        """See `Deployed`."""
        del variant
        return canonical.sha256_hex((self.folder / WEIGHTS).read_bytes())


def open_target(root: Path, cache: Path) -> Target:
    """Open a finished run.

    Raises:
        AuditError: The run has no finished round.
        ConfigError: The folder holds no run.
        ModelError: Its base can't be opened.
    """
    run, config = folder.reopen(root)
    base, tokenizer = warm_base(config.model, cache)
    target = Target(run, config, base, Corpus(config, tokenizer))
    if not target.variants or target.variants[0] != target.main:
        raise AuditError(f"{root} holds no finished round: let the run finish, or resume it")
    return target


def open_given(config: ExperimentConfig, adapter: Path, cache: Path) -> GivenAdapter:
    """Open an adapter over the base that a configuration names.

    Raises:
        ModelError: The base can't be opened, or the adapter can't be read.
    """
    base, tokenizer = warm_base(config.model, cache)
    return GivenAdapter(adapter, load_adapter(adapter), base, Corpus(config, tokenizer))

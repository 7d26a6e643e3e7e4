"""The records that only the fleet needs: a task as it travels, artefacts, and signed heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from sordino.core import canonical
from sordino.core.config import LoraConfig, TrainConfig
from sordino.core.errors import ContractError, WireError, expected
from sordino.core.records import (
    MetricTask,
    Receipt,
    Tensors,
    TrainTask,
    require_run_id,
    require_sha256,
)

REVISION: Final = 2
"""CONTRACT_REVISION: grows with every addition to ``sordino.v1``."""

BaseKind: TypeAlias = Literal["gguf", "folder"]
"""A GGUF file, or what a device made of a Hugging Face folder."""


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """A file by its content.

    Attributes:
        sha256: Its hash, hex.
        size: Its length in bytes, at least 1.
    """

    sha256: str
    size: int

    def __post_init__(self) -> None:
        require_sha256("artefact", self.sha256)
        if not 1 <= self.size <= 2**40:
            raise WireError(expected("size of the artefact", self.size, "in [1, 2**40]"))

    @classmethod
    def of(cls, data: bytes) -> Artefact:
        """Name bytes at hand."""
        return cls(sha256=canonical.sha256_hex(data), size=len(data))


@dataclass(frozen=True, kw_only=True)
class SignedHead:
    """An entry of a device's ledger by index and hash, with its holder's signature.

    Whether the signature holds is for `sordino.privacy.ledger.keys.signature_holds` to say.

    Attributes:
        receipt: Which entry.
        public_key: Ed25519, hex.
        signature: Of the entry's hash, hex.
    """

    receipt: Receipt
    public_key: str
    signature: str

    def __post_init__(self) -> None:
        require_sha256("public_key", self.public_key)
        require_sha256("signature, first half", self.signature[:64])
        require_sha256("signature, second half", self.signature[64:])


@dataclass(frozen=True, kw_only=True)
class TaskOrder:
    """A task as it travels: what is large is named by hash and fetched apart.

    Attributes:
        task_id: Unique in the fleet.
        run_id: The run.
        round: From 1.
        deadline_unix_ms: By the coordinator's clock.
        expires_in_ms: The same from the sending on.
        plan: The canonical encoding, which is what the device charges.
        base: The frozen base.
        base_kind: What it is. A `folder` base is never fetched: a device has it, or declines.
        manifest: The listing of the adapter's tensors.
        adapter: The tensors that differ from the initial adapter; None where none does.
        lora: The adapter's settings.
        train: The local optimizer; None: the task is a paid look at a metric.
        max_answer_bytes: The largest answer that will be taken.
    """

    task_id: str
    run_id: str
    round: int
    deadline_unix_ms: int
    expires_in_ms: int
    plan: bytes
    base: Artefact
    base_kind: BaseKind = "gguf"
    manifest: Artefact
    adapter: Artefact | None
    lora: LoraConfig
    train: TrainConfig | None
    max_answer_bytes: int

    def __post_init__(self) -> None:
        require_run_id(self.run_id)

    @property
    def plan_sha256(self) -> str:
        """What the ledger charges."""
        return canonical.sha256_hex(self.plan)

    def client_task(self, tensors: Tensors) -> TrainTask | MetricTask:
        """The task for the client, once its adapter is there.

        Args:
            tensors: What `decode_adapter` made of the adapter's artefact; empty without one.

        Raises:
            ContractError: ``wrong-adapter``: tensors without an adapter, or the other way round.
        """
        if (self.adapter is None) != (not tensors):
            raise ContractError("wrong-adapter", "the tensors are not those that the task names")
        asked = MetricTask(
            run_id=self.run_id,
            round=self.round,
            plan=self.plan,
            base_sha256=self.base.sha256,
            lora=self.lora,
            manifest_sha256=self.manifest.sha256,
            tensors=tensors,
        )
        return asked if self.train is None else TrainTask(**vars(asked), train=self.train)

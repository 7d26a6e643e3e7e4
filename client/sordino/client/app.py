"""Flower's ClientApp: one round of one client, charged before it is trained.

The order is the guarantee: check the task, charge the ledger (durable), train, keep the update on
disk, send. A retry finds the kept update and sends the same bytes, with no second charge and no
second draw. A crash between the charge and the keeping leaves the round charged and abandoned.

Replies hold the update and a receipt: no loss, count, norm or timing. What the device saw of its
own training goes to ``observations.jsonl`` in its own folder. Errors are stable words: an
exception's own text may speak of the data, so it stays in the device's log.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from sordino.core import adapters, durable
from sordino.core import app as flower
from sordino.core.config import LoraConfig, TrainConfig
from sordino.core.errors import (
    LedgerError,
    ModelError,
    PlanError,
    SordinoError,
    UpdateRejectedError,
    WireError,
    expected,
)
from sordino.core.records import (
    AdapterManifest,
    Receipt,
    Tensors,
    TrainTask,
    Update,
    check_tensors,
)
from sordino.core.wire import Envelope, decode_task, encode_update, pack, unpack
from sordino.privacy.ledger import Ledger
from sordino.privacy.noise import NoiseSource
from sordino.privacy.plan import (
    NoPrivacyMechanism,
    NoPrivacyPlan,
    Plan,
    RoundMechanism,
    decode_plan,
    open_round,
    open_round_without_privacy,
)

logger = logging.getLogger(__name__)

NodeConfig = Mapping[str, bool | int | float | str]
LEDGER = "ledger.jsonl"
OBSERVATIONS = "observations.jsonl"
MOST_SESSIONS = 64


@dataclass(frozen=True, kw_only=True)
class LocalWork:
    """What a session is asked to train: everything checked, the adapter complete."""

    run_id: str
    round: int
    adapter: Tensors  # all tensors, as they are before the round
    trained: AdapterManifest  # the tensors to train and to return the change of
    lora: LoraConfig
    train: TrainConfig


class Session(Protocol):
    """One client's data and model, opened once and kept warm."""

    @property
    def client_id(self) -> str:
        """Whose ledger this is."""
        ...

    @property
    def dataset_id(self) -> str:
        """The stable name of the records, which the ledger charges."""
        ...

    @property
    def state_dir(self) -> Path:
        """This client's own folder: ledger, kept updates, observations."""
        ...

    @property
    def base_sha256(self) -> str:
        """Hash of the base model's file."""
        ...

    @property
    def architecture(self) -> Mapping[str, object]:
        """The base model's ``config.json``."""
        ...

    @property
    def allow_no_privacy(self) -> bool:
        """Whether the owner lets this client train without privacy."""
        ...

    def noise_source(self, run_id: str, round_number: int) -> NoiseSource:
        """The source that this client draws a round's noise and batches from."""
        ...

    def train(
        self, work: LocalWork, mechanism: RoundMechanism | NoPrivacyMechanism
    ) -> tuple[Tensors, object]:
        """Train; returns the change of each trained tensor, and private observations."""
        ...


OpenSession = Callable[[NodeConfig], Session]


def make_app(open_session: OpenSession) -> ClientApp:
    """A ClientApp whose sessions come from `open_session`, one for each node configuration."""
    client = ClientApp()

    @lru_cache(maxsize=MOST_SESSIONS)
    def session_for(config: str) -> Session:
        return open_session(json.loads(config))

    @client.train()
    def train(message: Message, context: Context) -> Message:
        try:
            session = session_for(json.dumps(dict(context.node_config), sort_keys=True))
            envelope = answer(session, decode_task(flower.from_records(message.content)))
            return Message(flower.to_records(envelope), reply_to=message)
        except SordinoError as error:
            logger.warning("round %s refused: %s", message.metadata.group_id, error)
            return Message(Error(flower.ERROR_REFUSED, refusal(error)), reply_to=message)
        except Exception:
            # Flower would send the exception's text, which may quote a record.
            logger.exception("round %s failed", message.metadata.group_id)
            return Message(Error(flower.ERROR_REFUSED, "internal"), reply_to=message)

    return client


def refusal(error: SordinoError) -> str:
    """The stable word that a coordinator is told; nothing in it depends on the data."""
    words = {
        WireError: "malformed-task",
        UpdateRejectedError: "malformed-task",
        PlanError: "plan-refused",
        LedgerError: "ledger-refused",
        ModelError: "model-mismatch",
    }
    return words.get(type(error), "unavailable")


def answer(session: Session, task: TrainTask) -> Envelope:
    """Do a task, or find its kept answer.

    Args:
        session: The client.
        task: As decoded; not yet checked against the client's model and policy.

    Returns:
        The update's envelope: the same for every retry of a (run, round, plan).

    Raises:
        SordinoError: The client refuses, or the round was charged and abandoned.
    """
    work, plan = _check(session, task)
    kept = _kept_path(session.state_dir, task.run_id, task.round)
    durable.make_folder(session.state_dir)
    # One round at a time for this client: a retry waits, then finds what was kept.
    with durable.locked(session.state_dir / "lock"):
        if kept.exists():
            return _resend(kept, plan)
        update, seen = _train(session, work, plan)
        envelope = encode_update(update)
        _keep(kept, pack(envelope))
        _observe(session.state_dir / OBSERVATIONS, task, seen)
    return envelope


def _check(session: Session, task: TrainTask) -> tuple[LocalWork, Plan | NoPrivacyPlan]:
    if task.base_sha256 != session.base_sha256:
        raise ModelError(expected("base_sha256", task.base_sha256, f"= {session.base_sha256}"))
    manifest = adapters.adapter_manifest(session.architecture, task.lora)
    if task.manifest_sha256 != manifest.sha256:
        raise ModelError(expected("manifest_sha256", task.manifest_sha256, f"= {manifest.sha256}"))
    plan = decode_plan(task.plan)
    for name, got, wanted in (
        ("run_id", task.run_id, plan.run_id),
        ("local_steps", task.train.local_steps, plan.steps_per_round),
    ):
        if got != wanted:
            raise PlanError(expected(name, got, f"= {wanted!r}, as in the plan"))
    if task.round > plan.rounds:
        raise PlanError(expected("round", task.round, f"<= {plan.rounds}, as in the plan"))
    if isinstance(plan, NoPrivacyPlan) and not session.allow_no_privacy:
        raise PlanError("a plan without privacy needs the device owner's explicit word")
    work = LocalWork(
        run_id=task.run_id,
        round=task.round,
        adapter=adapters.complete_adapter(task.tensors, manifest, task.lora.init_seed),
        trained=adapters.trained_manifest(manifest, task.lora.aggregation, task.round),
        lora=task.lora,
        train=task.train,
    )
    return work, plan


def _train(session: Session, work: LocalWork, plan: Plan | NoPrivacyPlan) -> tuple[Update, object]:
    source = session.noise_source(work.run_id, work.round)
    receipt = None
    mechanism: RoundMechanism | NoPrivacyMechanism
    if isinstance(plan, NoPrivacyPlan):
        mechanism = open_round_without_privacy(plan, source)
    else:
        ledger = Ledger(session.state_dir / LEDGER, session.client_id)
        charge = ledger.charge(plan, work.round, session.dataset_id)
        mechanism = open_round(plan, charge, source)
        receipt = Receipt(ledger_head=charge.entry.sha256, entry_index=charge.entry.index)
    tensors, seen = session.train(work, mechanism)
    check_tensors(tensors, work.trained)
    update = Update(
        run_id=work.run_id,
        round=work.round,
        plan_sha256=plan.sha256,
        tensors=tensors,
        receipt=receipt,
    )
    return update, seen


def _resend(kept: Path, plan: Plan | NoPrivacyPlan) -> Envelope:
    envelope = unpack(kept.read_bytes())
    if envelope.fields.get("plan-sha256") != plan.sha256:
        raise PlanError("this round was answered under another plan")
    return envelope


def _kept_path(state_dir: Path, run_id: str, round_number: int) -> Path:
    # A hash, since the coordinator chooses the run's id.
    run = hashlib.sha256(run_id.encode()).hexdigest()[:32]
    return state_dir / "updates" / run / f"{round_number}.update"


def _keep(path: Path, data: bytes) -> None:
    """Put the update on stable storage, whole or not at all; the run's earlier ones may go."""
    durable.write_whole(path, data)
    for other in path.parent.iterdir():
        if other != path:
            other.unlink(missing_ok=True)


def _observe(path: Path, task: TrainTask, seen: object) -> None:
    values = asdict(seen) if is_dataclass(seen) and not isinstance(seen, type) else seen
    line = json.dumps(
        {"run_id": task.run_id, "round": task.round, "observations": values}, default=_plain
    )
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"observations can't hold a {type(value).__name__}")


def _default_session(config: NodeConfig) -> Session:
    # Here, so that a coordinator or a test can read this module without torch.
    from sordino.client.session import open_session  # noqa: PLC0415

    return open_session(config)


app = make_app(_default_session)

"""Flower's ClientApp: one round of one client, charged before it is trained.

The order is the guarantee: check the task, reserve and commit in the ledger (durable), train, keep
the update by hash, write down its release, send. A retry finds the kept update and sends the same
bytes, with no second charge and no second draw. A crash before the commit lets a retry begin; one
between the commit and the keeping leaves the round charged and abandoned; after that, a retry sends
what was kept.

Replies hold the update and a receipt: no loss, count, norm or timing. What the device saw of its
own training goes to ``observations.jsonl`` in its own folder. Errors are stable words: an
exception's own text may speak of the data, so it stays in the device's log.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass, replace
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
    PolicyError,
    PolicyRefusedError,
    SordinoError,
    UpdateRejectedError,
    WireError,
    expected,
)
from sordino.core.families import family_of, meant
from sordino.core.kept import KeptUpdates
from sordino.core.records import (
    AdapterManifest,
    Receipt,
    Tensors,
    TrainTask,
    Update,
    check_tensors,
)
from sordino.core.wire import Envelope, decode_task, encode_update, pack, unpack
from sordino.privacy.ledger import Charge, Hook, Ledger, Limit, no_hook
from sordino.privacy.noise import NoiseSource
from sordino.privacy.plan import (
    AnyPlan,
    CentralPlan,
    NoPrivacyMechanism,
    NoPrivacyPlan,
    Plan,
    RoundMechanism,
    UserMechanism,
    decode_plan,
    open_round,
    open_round_without_privacy,
    open_update,
    request_of,
)
from sordino.privacy.policy import Conditions, Policy, check_request

logger = logging.getLogger(__name__)

NodeConfig = Mapping[str, bool | int | float | str]
LEDGER = "ledger.db"
UPDATES = "updates"
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
    def policy(self) -> Policy:
        """What the device's owner allows: every request is held against it, before anything."""
        ...

    def conditions(self) -> Conditions:
        """What is known of the device now, for a policy that says when to work."""
        ...

    @property
    def limit(self) -> Limit | None:
        """The lifetime cap of the device's own policy, which every charge is held against."""
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
        self, work: LocalWork, mechanism: RoundMechanism | UserMechanism | NoPrivacyMechanism
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
    if isinstance(error, PolicyRefusedError):
        return error.reason
    words = {
        WireError: "malformed-task",
        UpdateRejectedError: "malformed-task",
        PlanError: "plan-refused",
        LedgerError: "ledger-refused",
        ModelError: "model-mismatch",
        PolicyError: "policy-unreadable",
    }
    return words.get(type(error), "unavailable")


def answer(session: Session, task: TrainTask, at: Hook = no_hook) -> Envelope:
    """Do a task, or find its kept answer.

    Args:
        session: The client.
        task: As decoded; not yet checked against the client's model and policy.
        at: Told each step as it is reached.

    Returns:
        The update's envelope: the same for every retry of a (run, round, plan).

    Raises:
        SordinoError: The client refuses, or the round was charged and abandoned.
    """
    work, plan = _check(session, task)
    durable.make_folder(session.state_dir)
    # One round at a time for this client: a retry waits, then finds what was kept.
    with durable.locked(session.state_dir / "lock"):
        if isinstance(plan, NoPrivacyPlan):
            data, seen = _without_privacy(session, work, plan)
        else:
            data, seen = _privately(session, work, plan, at)
        if seen is not None:
            _observe(session.state_dir / OBSERVATIONS, task, seen)
    at("update:ready")
    return unpack(data)


def _check(session: Session, task: TrainTask) -> tuple[LocalWork, AnyPlan]:
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
    _hold_against_policy(session, task, plan)
    work = LocalWork(
        run_id=task.run_id,
        round=task.round,
        adapter=adapters.complete_adapter(task.tensors, manifest, task.lora.init_seed),
        trained=adapters.trained_manifest(manifest, task.lora.aggregation, task.round),
        lora=task.lora,
        train=task.train,
    )
    return work, plan


def _hold_against_policy(session: Session, task: TrainTask, plan: AnyPlan) -> None:
    if isinstance(plan, NoPrivacyPlan):
        if not session.allow_no_privacy:
            raise PlanError("a plan without privacy needs the device owner's explicit word")
        return
    # Both sides may name groups, or linears in several ways: compared are this base's own linears.
    family, lora = family_of(session.architecture), task.lora
    asked, allowed = meant(family, lora.targets), meant(family, session.policy.targets)
    request = request_of(plan, base_sha256=task.base_sha256, rank=lora.rank, targets=asked)
    check_request(replace(session.policy, targets=allowed), request, session.conditions)


def _privately(
    session: Session, work: LocalWork, plan: Plan | CentralPlan, at: Hook
) -> tuple[bytes, object | None]:
    """The update's bytes, and what was seen if it was trained now."""
    ledger = Ledger(session.state_dir / LEDGER, session.client_id, at=at)
    kept = KeptUpdates(session.state_dir / UPDATES)
    settle(ledger, kept)
    known = ledger.find(work.run_id, work.round)
    if known is not None and known.state == "released":
        if known.reserve.plan_sha256 != plan.sha256:
            raise PlanError("this round was answered under another plan")
        return kept.read(plan.sha256, work.round, known.artefact), None
    at("task:checked")
    charge = ledger.charge(plan, work.round, session.dataset_id, limit=session.limit)
    try:
        data, seen = _train_charged(session, work, plan, charge)
        at("update:trained")
        digest = kept.keep(plan.sha256, work.round, data)
    except BaseException:
        with suppress(LedgerError):  # else the next start does it
            ledger.abandon(charge.number, "failed")
        raise
    at("update:kept")
    ledger.release(charge.number, digest)
    return data, seen


def settle(ledger: Ledger, kept: KeptUpdates) -> None:
    """Finish what a crash cut short: a kept update is released, any other round abandoned.

    Only under the client's lock: a commit without an outcome is then nobody's work any more.
    """
    for standing in ledger.standings:
        if standing.state != "commit":
            continue
        reserve = standing.reserve
        digest = kept.find(reserve.plan_sha256, reserve.round)
        if digest:
            ledger.release(standing.number, digest)
        else:
            ledger.abandon(standing.number, "interrupted")


def _train_charged(
    session: Session, work: LocalWork, plan: Plan | CentralPlan, charge: Charge
) -> tuple[bytes, object]:
    source = session.noise_source(work.run_id, work.round)
    if isinstance(plan, CentralPlan):
        user = open_update(plan, charge, source)
        tensors, seen = session.train(work, user)
        tensors = user.clip_update(tensors)
    else:
        tensors, seen = session.train(work, open_round(plan, charge, source))
    receipt = Receipt(ledger_head=charge.commit.sha256, entry_index=charge.commit.index)
    return _update_bytes(work, plan, tensors, receipt), seen


def _without_privacy(
    session: Session, work: LocalWork, plan: NoPrivacyPlan
) -> tuple[bytes, object | None]:
    kept = KeptUpdates(session.state_dir / UPDATES)
    digest = kept.find(plan.sha256, work.round)
    if digest:
        return kept.read(plan.sha256, work.round, digest), None
    source = session.noise_source(work.run_id, work.round)
    tensors, seen = session.train(work, open_round_without_privacy(plan, source))
    data = _update_bytes(work, plan, tensors, None)
    kept.keep(plan.sha256, work.round, data)
    return data, seen


def _update_bytes(
    work: LocalWork, plan: AnyPlan, tensors: Tensors, receipt: Receipt | None
) -> bytes:
    check_tensors(tensors, work.trained)
    update = Update(
        run_id=work.run_id,
        round=work.round,
        plan_sha256=plan.sha256,
        tensors=tensors,
        receipt=receipt,
    )
    return pack(encode_update(update))


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

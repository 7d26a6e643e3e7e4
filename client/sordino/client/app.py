"""Flower's ClientApp: one round of one client, or one look at a metric, charged before it begins.

The order is the guarantee: check the task, reserve and commit in the ledger (durable), train, keep
the update by hash, write down its release, send. A retry finds the kept update and sends the same
bytes, with no second charge and no second draw. A crash before the commit lets a retry begin; one
between the commit and the keeping leaves the round charged and abandoned; after that, a retry sends
what was kept.

Replies hold the update, or the noised value that was paid for, and a receipt: no exact loss, no
count, norm or timing. What the device saw of its own training goes to ``observations.jsonl`` in its
own folder. Errors are stable words: an exception's own text may speak of the data, so it stays in
the device's log.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, is_dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from sordino.client.charged import UPDATES, Make, answer_once
from sordino.client.contract import LocalWork, NodeConfig, OpenSession, Session
from sordino.core import adapters, durable
from sordino.core import app as flower
from sordino.core.config import METRICS
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
    Measurement,
    MetricTask,
    Receipt,
    Tensors,
    TrainTask,
    Update,
    check_tensors,
)
from sordino.core.wire import (
    Envelope,
    decode_metric_task,
    decode_task,
    encode_measurement,
    encode_update,
    pack,
    unpack,
)
from sordino.privacy.ledger import Charge, Hook, no_hook
from sordino.privacy.plan import (
    AnyPlan,
    CentralPlan,
    ChargedPlan,
    ClipMemory,
    MetricPlan,
    NoPrivacyPlan,
    Plan,
    decode_metric_plan,
    decode_plan,
    open_metric,
    open_round,
    open_round_without_privacy,
    open_update,
    request_of,
)
from sordino.privacy.policy import check_request

logger = logging.getLogger(__name__)

CLIPS = "clips"
OBSERVATIONS = "observations.jsonl"
MOST_SESSIONS = 64


def make_app(open_session: OpenSession, at: Hook = no_hook) -> ClientApp:
    """A ClientApp whose sessions come from `open_session`, one for each node configuration.

    `at` is told each step as it is reached.
    """
    client = ClientApp()

    @lru_cache(maxsize=MOST_SESSIONS)
    def session_for(config: str) -> Session:
        return open_session(json.loads(config))

    @client.train()
    def train(message: Message, context: Context) -> Message:
        return reply(message, context, lambda s, e: answer(s, decode_task(e), at))

    @client.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return reply(message, context, lambda s, e: answer_metric(s, decode_metric_task(e), at))

    def reply(
        message: Message, context: Context, work: Callable[[Session, Envelope], Envelope]
    ) -> Message:
        try:
            session = session_for(json.dumps(dict(context.node_config), sort_keys=True))
            envelope = work(session, flower.from_records(message.content))
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
            make = partial(_train_charged, session, work, plan)
            data, seen = _privately(session, plan, work.round, make, at)
        if seen is not None:
            _observe(session.state_dir / OBSERVATIONS, task, seen)
    at("update:ready")
    return unpack(data)


def answer_metric(session: Session, task: MetricTask, at: Hook = no_hook) -> Envelope:
    """Take a paid look at a metric, or find its kept answer; charged before a record is touched.

    Args:
        session: The client.
        task: As decoded; not yet checked against the client's model and policy.
        at: Told each step as it is reached.

    Returns:
        The measurement's envelope: the same for every retry of a look.

    Raises:
        SordinoError: The client refuses, or the look was charged and abandoned.
    """
    adapter, plan = _check_metric(session, task)
    durable.make_folder(session.state_dir)
    with durable.locked(session.state_dir / "lock"):
        make = partial(_measure_charged, session, task, adapter, plan)
        data, _ = _privately(session, plan, task.round, make, at)
    at("update:ready")
    return unpack(data)


def check_task(session: Session, task: TrainTask | MetricTask) -> None:
    """Hold a task against the client's model and policy; nothing is touched, nothing charged.

    What adds up over the device's life is asked only when the round is charged.

    Raises:
        SordinoError: The client would refuse it; `refusal` has the word.
    """
    if isinstance(task, MetricTask):
        _check_metric(session, task)
    else:
        _check(session, task)


def _check(session: Session, task: TrainTask) -> tuple[LocalWork, AnyPlan]:
    manifest = _check_model(session, task)
    plan = decode_plan(task.plan)
    _check_schedule(task, plan)
    steps = task.train.local_steps
    if steps != plan.steps_per_round:
        required = f"= {plan.steps_per_round!r}, as in the plan"
        raise PlanError(expected("local_steps", steps, required))
    if not isinstance(plan, NoPrivacyPlan):
        _hold_against_policy(session, task, plan)
    elif not session.allow_no_privacy:
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


def _check_metric(session: Session, task: MetricTask) -> tuple[Tensors, MetricPlan]:
    manifest = _check_model(session, task)
    plan = decode_metric_plan(task.plan)
    _check_schedule(task, plan)
    if plan.metric not in METRICS:
        raise PlanError(expected("metric", plan.metric, f"one of {', '.join(METRICS)}"))
    _hold_against_policy(session, task, plan)
    return adapters.complete_adapter(task.tensors, manifest, task.lora.init_seed), plan


def _check_model(session: Session, task: TrainTask | MetricTask) -> AdapterManifest:
    if task.base_sha256 != session.base_sha256:
        raise ModelError(expected("base_sha256", task.base_sha256, f"= {session.base_sha256}"))
    manifest = adapters.adapter_manifest(session.architecture, task.lora)
    if task.manifest_sha256 != manifest.sha256:
        raise ModelError(expected("manifest_sha256", task.manifest_sha256, f"= {manifest.sha256}"))
    return manifest


def _check_schedule(task: TrainTask | MetricTask, plan: AnyPlan | MetricPlan) -> None:
    if task.run_id != plan.run_id:
        raise PlanError(expected("run_id", task.run_id, f"= {plan.run_id!r}, as in the plan"))
    if task.round > plan.rounds:
        raise PlanError(expected("round", task.round, f"<= {plan.rounds}, as in the plan"))


def _hold_against_policy(session: Session, task: TrainTask | MetricTask, plan: ChargedPlan) -> None:
    # Both sides may name groups, or linears in several ways: compared are this base's own linears.
    family, lora = family_of(session.architecture), task.lora
    asked, allowed = meant(family, lora.targets), meant(family, session.policy.targets)
    request = request_of(plan, base_sha256=task.base_sha256, rank=lora.rank, targets=asked)
    check_request(replace(session.policy, targets=allowed), request, session.conditions)


def _privately(
    session: Session, plan: ChargedPlan, round_number: int, make: Make, at: Hook
) -> tuple[bytes, object | None]:
    """The answer's bytes, and what was seen if they were made now."""
    return answer_once(
        plan,
        round_number,
        make,
        state_dir=session.state_dir,
        client_id=session.client_id,
        dataset_id=session.dataset_id,
        limit=session.limit,
        at=at,
    )


def _train_charged(
    session: Session, work: LocalWork, plan: Plan | CentralPlan, charge: Charge
) -> tuple[bytes, object]:
    source = session.noise_source(work.run_id, work.round)
    if isinstance(plan, CentralPlan):
        user = open_update(plan, charge, source)
        tensors, seen = session.train(work, user)
        tensors = user.clip_update(tensors)
    else:
        memory = ClipMemory(session.state_dir / CLIPS)
        tensors, seen = session.train(work, open_round(plan, charge, source, memory))
    return _update_bytes(work, plan, tensors, _receipt(charge)), seen


def _measure_charged(
    session: Session, task: MetricTask, adapter: Tensors, plan: MetricPlan, charge: Charge
) -> tuple[bytes, None]:
    look = open_metric(plan, charge, session.noise_source(plan.run_id, task.round))
    measurement = Measurement(
        run_id=task.run_id,
        round=task.round,
        plan_sha256=plan.sha256,
        value=look.release(session.measure(plan.metric, adapter, task.lora)),
        receipt=_receipt(charge),
    )
    return pack(encode_measurement(measurement)), None


def _receipt(charge: Charge) -> Receipt:
    return Receipt(ledger_head=charge.commit.sha256, entry_index=charge.commit.index)


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


def warm_session(config: NodeConfig) -> Session:
    """The session of a node configuration, opened once a process."""
    return _opened(json.dumps(dict(config), sort_keys=True))


@lru_cache(maxsize=MOST_SESSIONS)
def _opened(config: str) -> Session:
    # Here, so that a coordinator or a test can read this module without torch.
    from sordino.client.session import open_session  # noqa: PLC0415

    return open_session(json.loads(config))


app = make_app(warm_session)

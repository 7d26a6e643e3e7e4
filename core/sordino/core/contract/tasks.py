"""What a device is asked: a round's training, or a paid look at a metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeVar

from sordino.core.config import LoraConfig, TrainConfig
from sordino.core.contract.codec import (
    artefact_message,
    from_bytes,
    named,
    read_artefact,
    require_hash,
    to_bytes,
)
from sordino.core.contract.records import REVISION, Artefact, BaseKind, TaskOrder
from sordino.core.errors import ContractError, expected
from sordino.protos.v1 import common_pb2, work_pb2

NameT = TypeVar("NameT", bound=str)

_BASES: Final[dict[BaseKind, common_pb2.ArtefactKind]] = {
    "gguf": common_pb2.ARTEFACT_KIND_BASE_GGUF,
    "folder": common_pb2.ARTEFACT_KIND_BASE_FOLDER,
}
_AGGREGATIONS: Final[dict[Literal["ffa", "rolora", "fedit"], work_pb2.Aggregation]] = {
    "ffa": work_pb2.AGGREGATION_FFA,
    "rolora": work_pb2.AGGREGATION_ROLORA,
    "fedit": work_pb2.AGGREGATION_FEDIT,
}
_OPTIMIZERS: Final[dict[Literal["sgd", "adam"], work_pb2.Optimizer]] = {
    "sgd": work_pb2.OPTIMIZER_SGD,
    "adam": work_pb2.OPTIMIZER_ADAM,
}
_SCHEDULES: Final[dict[Literal["constant", "linear", "cosine"], work_pb2.Schedule]] = {
    "constant": work_pb2.SCHEDULE_CONSTANT,
    "linear": work_pb2.SCHEDULE_LINEAR,
    "cosine": work_pb2.SCHEDULE_COSINE,
}

# What revision 1 had no field for, as it was: it isn't sent, so that its devices can take the task.
_STEADY = work_pb2.RateSchedule(kind=work_pb2.SCHEDULE_CONSTANT, warmup=0.0)
_ONE_VIEW = work_pb2.RecordViews(count=1, dropout=0.1, cut=0.0)  # without a further view to alter


def encode_task(order: TaskOrder, *, revision: int = REVISION) -> bytes:
    """Encode a task; raises as `task_message`."""
    return to_bytes(task_message(order, revision=revision))


def task_message(order: TaskOrder, *, revision: int = REVISION) -> work_pb2.Task:
    """A task as it travels, to be put in a stream's message.

    Args:
        order: The task.
        revision: The one in force with the device.

    Raises:
        ContractError: ``bad-value``: a setting is beyond what the contract's types hold;
            ``revision-too-old``: the device wouldn't know a part of it.
    """
    with named("bad-value"):
        message = work_pb2.Task(
            task_id=order.task_id,
            run_id=order.run_id,
            round=order.round,
            deadline_unix_ms=order.deadline_unix_ms,
            expires_in_ms=order.expires_in_ms,
            plan=order.plan,
            plan_sha256=bytes.fromhex(order.plan_sha256),
            base=artefact_message(order.base, _BASES[order.base_kind]),
            max_answer_bytes=order.max_answer_bytes,
        )
        if order.train is None:
            message.metric.CopyFrom(_metric_work(order))
        else:
            message.train.CopyFrom(_train_work(order, order.train))
    if revision < (needed := _revision_of(message)):
        raise ContractError("revision-too-old", expected("revision", revision, f">= {needed}"))
    return message


def decode_task(data: bytes) -> TaskOrder:
    """Decode a task; it is still to be held against the device's model and policy.

    Raises:
        ContractError: As `gate.check`, or with reason ``wrong-hash``, ``wrong-kind``,
            ``unknown-work``, ``bad-settings`` or ``bad-value``.
    """
    return read_task(from_bytes(data, work_pb2.Task))


def read_task(message: work_pb2.Task) -> TaskOrder:
    """A task from a message that passed the gate; raises as `decode_task`."""
    require_hash(message.plan, message.plan_sha256.hex())
    work = _work_of(message)
    with named("bad-value"):
        return TaskOrder(
            task_id=message.task_id,
            run_id=message.run_id,
            round=message.round,
            deadline_unix_ms=message.deadline_unix_ms,
            expires_in_ms=message.expires_in_ms,
            plan=message.plan,
            base=read_artefact(message.base, *_BASES.values()),
            base_kind=_name(_BASES, message.base.kind),
            manifest=read_artefact(work.manifest, common_pb2.ARTEFACT_KIND_MANIFEST_JSON),
            adapter=_read_adapter(work),
            lora=_read_lora(work.lora),
            train=_read_train(work.train) if isinstance(work, work_pb2.TrainWork) else None,
            max_answer_bytes=message.max_answer_bytes,
        )


# --- internals ---------------------------------------------------------------------------------


def _revision_of(message: work_pb2.Task) -> int:
    """The first revision that has all of a task's parts."""
    train = message.train.train
    later = (
        message.HasField("metric"),
        message.base.kind == common_pb2.ARTEFACT_KIND_BASE_FOLDER,
        train.HasField("schedule"),
        train.HasField("views"),
    )
    return 2 if any(later) else 1


def _work_of(message: work_pb2.Task) -> work_pb2.TrainWork | work_pb2.MetricWork:
    match message.WhichOneof("work"):
        case "train":
            return message.train
        case "metric":
            return message.metric
    raise ContractError("unknown-work", "the task asks for nothing that this revision knows")


def _metric_work(order: TaskOrder) -> work_pb2.MetricWork:
    return work_pb2.MetricWork(
        manifest=artefact_message(order.manifest, common_pb2.ARTEFACT_KIND_MANIFEST_JSON),
        adapter=_adapter(order),
        lora=_lora(order.lora),
    )


def _train_work(order: TaskOrder, train: TrainConfig) -> work_pb2.TrainWork:
    return work_pb2.TrainWork(
        manifest=artefact_message(order.manifest, common_pb2.ARTEFACT_KIND_MANIFEST_JSON),
        adapter=_adapter(order),
        lora=_lora(order.lora),
        train=_train(train),
    )


def _adapter(order: TaskOrder) -> common_pb2.Artefact | None:
    if order.adapter is None:
        return None
    return artefact_message(order.adapter, common_pb2.ARTEFACT_KIND_ADAPTER)


def _read_adapter(work: work_pb2.TrainWork | work_pb2.MetricWork) -> Artefact | None:
    if not work.HasField("adapter"):
        return None
    return read_artefact(work.adapter, common_pb2.ARTEFACT_KIND_ADAPTER)


def _lora(lora: LoraConfig) -> work_pb2.LoraSettings:
    return work_pb2.LoraSettings(
        aggregation=_AGGREGATIONS[lora.aggregation],
        rank=lora.rank,
        alpha=lora.alpha,
        targets=lora.targets,
        init_seed=lora.init_seed,
    )


def _read_lora(message: work_pb2.LoraSettings) -> LoraConfig:
    with named("bad-settings"):
        return LoraConfig(
            aggregation=_name(_AGGREGATIONS, message.aggregation),
            rank=message.rank,
            alpha=message.alpha,
            targets=tuple(message.targets),
            init_seed=message.init_seed,
        )


def _train(train: TrainConfig) -> work_pb2.TrainSettings:
    schedule = work_pb2.RateSchedule(kind=_SCHEDULES[train.schedule], warmup=train.warmup)
    views = work_pb2.RecordViews(count=train.views, dropout=train.view_dropout, cut=train.view_cut)
    return work_pb2.TrainSettings(
        optimizer=_OPTIMIZERS[train.optimizer],
        learning_rate=train.learning_rate,
        momentum=train.momentum,
        local_steps=train.local_steps,
        schedule=None if schedule == _STEADY else schedule,
        views=None if views == _ONE_VIEW else views,
    )


def _read_train(message: work_pb2.TrainSettings) -> TrainConfig:
    schedule = message.schedule if message.HasField("schedule") else _STEADY
    views = message.views if message.HasField("views") else _ONE_VIEW
    with named("bad-settings"):
        return TrainConfig(
            optimizer=_name(_OPTIMIZERS, message.optimizer),
            learning_rate=message.learning_rate,
            schedule=_name(_SCHEDULES, schedule.kind),
            warmup=schedule.warmup,
            momentum=message.momentum,
            local_steps=message.local_steps,
            views=views.count,
            view_dropout=views.dropout,
            view_cut=views.cut,
        )


def _name(names: Mapping[NameT, int], number: int) -> NameT:
    """The word of an enum's value, which passed the gate."""
    return next(name for name, known in names.items() if known == number)

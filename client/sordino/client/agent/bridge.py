"""The one place of the agent that knows Flower: a task becomes a Message, its reply an answer.

The ClientApp is the very one that runs on every other grid: it checks the task, charges the ledger,
trains and keeps. Flower's messages end here and never cross the wire.
"""

from __future__ import annotations

import threading
import uuid
from contextlib import ExitStack
from typing import Final

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from sordino.client.contract import NodeConfig
from sordino.core import app as flower
from sordino.core.errors import SordinoError, WireError
from sordino.core.records import Measurement, MetricTask, TrainTask, Update
from sordino.core.wire import (
    decode_measurement,
    decode_update,
    encode_metric_task,
    encode_task,
)

RUN_ID: Final = 1  # Flower's numbers of a run and a node: nothing of ours depends on them
NODE_ID: Final = 2
_ONE_AT_A_TIME: Final = threading.Lock()  # Flower's task identity is the process'


class RefusedError(SordinoError):
    """The ClientApp refused a task.

    Attributes:
        word: The stable word that the coordinator may be told.
    """

    def __init__(self, word: str) -> None:
        super().__init__(f"the client refuses: {word}")
        self.word = word


def ask_app(
    app: ClientApp, config: NodeConfig, task: TrainTask | MetricTask, *, ttl_s: float
) -> Update | Measurement:
    """Have the ClientApp answer a task, in this process.

    Args:
        app: The ClientApp.
        config: The node configuration, which names the session.
        task: As it came, its adapter at hand.
        ttl_s: Seconds until its deadline.

    Raises:
        RefusedError: The app refused, with its word.
    """
    look = isinstance(task, MetricTask)
    envelope = encode_metric_task(task) if isinstance(task, MetricTask) else encode_task(task)
    with ExitStack() as stack:
        stack.enter_context(_ONE_AT_A_TIME)
        stack.enter_context(flower.quiet_flower())
        stack.enter_context(flower.task_identity(run_id=RUN_ID, node_id=NODE_ID))
        message = Message(
            flower.to_records(envelope),
            dst_node_id=NODE_ID,
            message_type=MessageType.EVALUATE if look else MessageType.TRAIN,
            ttl=ttl_s,
            group_id=str(task.round),
        )
        flower.set_message_id(message, uuid.uuid4().hex)
        reply = app(message, _context(config))
    if reply.has_error():
        raise RefusedError(reply.error.reason or "internal")
    try:
        answer = flower.from_records(reply.content)
        return decode_measurement(answer) if look else decode_update(answer)
    except WireError as error:
        raise RefusedError("internal") from error


def _context(config: NodeConfig) -> Context:
    return Context(
        run_id=RUN_ID,
        node_id=NODE_ID,
        node_config=dict(config),
        state=RecordDict(),
        run_config={},
    )

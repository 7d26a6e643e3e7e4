"""Where a `LocalGrid`'s clients run: in this process, or in workers that get messages as bytes."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from sordino.core import app as flower
from sordino.core.errors import ConfigError, WireError, expected
from sordino.core.wire import Envelope, Scalar, pack, unpack
from sordino.sim.pool import Job, Outcome, WorkerPool, resolve, run_call

logger = logging.getLogger(__name__)

NodeConfig = Mapping[str, bool | int | float | str]


class Clients:
    """Runs a ClientApp for each node, as a SuperNode would, but in this process.

    Args:
        app: The ClientApp, or ``module:name`` of it.
        nodes: Each node's configuration.
        run_config: What every node sees as the run's configuration.
        run_id: Flower's number of the run.
    """

    def __init__(
        self,
        app: str | ClientApp,
        nodes: Mapping[int, NodeConfig],
        run_config: NodeConfig,
        run_id: int,
    ) -> None:
        self._app = _client_app(app) if isinstance(app, str) else app
        self._nodes = nodes
        self._run_config = run_config
        self._run_id = run_id
        self._contexts: dict[int, Context] = {}

    def answer(self, message: Message) -> Message:
        """Run the app on a message. Whatever it raises becomes an error's reply."""
        node_id = message.metadata.dst_node_id
        if flower.is_expired(message):
            error = Error(flower.ERROR_EXPIRED, "the round was over before the client began")
            return Message(error, reply_to=message)
        with flower.task_identity(run_id=self._run_id, node_id=node_id):
            try:
                reply = self._app(message, self._context(node_id))
            except Exception as error:
                logger.exception("the app of node %d raised", node_id)
                reason = type(error).__name__  # its text may quote a record
                return Message(Error(flower.ERROR_APP, reason), reply_to=message)
        if not isinstance(reply, Message):
            return Message(Error(flower.ERROR_APP, "the app made no message"), reply_to=message)
        return reply

    def _context(self, node_id: int) -> Context:
        if node_id not in self._contexts:
            self._contexts[node_id] = Context(
                run_id=self._run_id,
                node_id=node_id,
                node_config=dict(self._nodes[node_id]),
                state=RecordDict(),
                run_config=dict(self._run_config),
            )
        return self._contexts[node_id]


def _client_app(reference: str) -> ClientApp:
    app = resolve(reference)
    if not isinstance(app, ClientApp):
        raise ConfigError(expected("app", reference, "a ClientApp"))
    return app


class Inline:
    """This process; each poll does one job."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._queue: deque[tuple[str, Message | Job]] = deque()

    def wait_until_ready(self) -> None:
        """Nothing is to be started."""

    def submit(self, message: Message) -> None:
        """Queue a message."""
        self._queue.append((message.metadata.message_id, message))

    def call(self, job: Job) -> None:
        """Queue a call."""
        self._queue.append((job.key, job))

    def poll(self, timeout: float | None) -> Sequence[tuple[str, Message | Outcome]]:
        """Work, and return what has ended: message ids with replies, call keys with outcomes."""
        if not self._queue:
            return []
        key, work = self._queue.popleft()
        return [(key, run_call(work) if isinstance(work, Job) else self._clients.answer(work))]

    def cancel(self, keys: Iterable[str]) -> None:
        """Forget messages and calls."""
        unwanted = set(keys)
        self._queue = deque(entry for entry in self._queue if entry[0] not in unwanted)

    def process_ids(self) -> list[int]:
        """The workers' process ids."""
        return []

    def close(self) -> None:
        """Let go of everything."""
        self._queue.clear()


class Pooled:
    """Worker processes; messages go to `answer_in_worker` as bytes."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._sent: dict[str, Message] = {}
        self._packed: tuple[RecordDict, bytes] | None = None

    def wait_until_ready(self) -> None:
        """Wait for all workers."""
        self._pool.wait_until_ready()

    def submit(self, message: Message) -> None:
        """Queue a message."""
        head = pack(Envelope(flower.metadata_fields(message.metadata)))
        key = message.metadata.message_id
        self._pool.submit(Job(key, ANSWER, (head, self._pack(message.content))))
        self._sent[key] = message

    def call(self, job: Job) -> None:
        """Queue a call."""
        self._pool.submit(job)

    def poll(self, timeout: float | None) -> Sequence[tuple[str, Message | Outcome]]:
        """Work, and return what has ended: message ids with replies, call keys with outcomes."""
        return [(outcome.key, self._done(outcome)) for outcome in self._pool.poll(timeout)]

    def cancel(self, keys: Iterable[str]) -> None:
        """Forget messages and calls."""
        unwanted = list(keys)
        self._pool.cancel(unwanted)
        for key in unwanted:
            self._sent.pop(key, None)

    def process_ids(self) -> list[int]:
        """The workers' process ids."""
        return self._pool.process_ids

    def close(self) -> None:
        """Let go of everything."""
        self._pool.close()

    def _pack(self, content: RecordDict) -> bytes:
        # A round's messages share their content: it is packed once.
        if self._packed is None or self._packed[0] is not content:
            self._packed = (content, pack(flower.from_records(content)))
        return self._packed[1]

    def _done(self, outcome: Outcome) -> Message | Outcome:
        message = self._sent.pop(outcome.key, None)
        if message is None:
            return outcome
        if outcome.error:
            code = flower.ERROR_WORKER if outcome.died else flower.ERROR_APP
            return Message(Error(code, outcome.error), reply_to=message)
        return _unpack_reply(*outcome.parts)


# --- in a worker -------------------------------------------------------------------------------

PREPARE = f"{__name__}:prepare_worker"
ANSWER = f"{__name__}:answer_in_worker"

_worker_clients: list[Clients] = []
_worker_life = ExitStack()


def prepare_worker(settings: bytes) -> None:
    """Set a worker process up: `settings` is JSON of app, nodes, run_config and run_id."""
    values = json.loads(settings)
    _worker_life.enter_context(flower.quiet_flower())
    nodes = {int(key): config for key, config in values["nodes"].items()}
    clients = Clients(values["app"], nodes, values["run_config"], values["run_id"])
    _worker_clients[:] = [clients]


def answer_in_worker(head: bytes, content: bytes) -> tuple[bytes, bytes]:
    """Answer one message; both ways a head of metadata and a packed content."""
    records = flower.to_records(unpack(content))
    message = flower.rebuild_message(dict(unpack(head).fields), records)
    reply = _worker_clients[0].answer(message)
    fields = flower.metadata_fields(reply.metadata)
    if not reply.has_error():
        try:
            return pack(Envelope(fields)), pack(flower.from_records(reply.content))
        except WireError as error:
            return _pack_error(fields, flower.ERROR_MALFORMED, str(error))
    return _pack_error(fields, reply.error.code, reply.error.reason or "")


def _pack_error(fields: dict[str, Scalar], code: int, reason: str) -> tuple[bytes, bytes]:
    return pack(Envelope({**fields, "error-code": code, "error-reason": reason})), b""


def _unpack_reply(head: bytes, content: bytes) -> Message:
    fields: dict[str, Any] = dict(unpack(head).fields)
    if "error-code" in fields:
        error = Error(fields["error-code"], fields["error-reason"])
        return flower.rebuild_message(fields, error)
    return flower.rebuild_message(fields, flower.to_records(unpack(content)))

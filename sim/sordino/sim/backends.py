"""Where a `LocalGrid`'s clients run: in this process, or in workers that get messages as bytes."""

from __future__ import annotations

import json
import logging
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from sordino.core import app as flower
from sordino.core.errors import ConfigError, WireError, expected
from sordino.core.wire import Scalar, pack, unpack
from sordino.sim.pool import Job, Outcome, WorkerPool, resolve, run_call

logger = logging.getLogger(__name__)

NodeConfig = Mapping[str, bool | int | float | str]
NodeOf = Callable[[int], NodeConfig]
"""A node's configuration by its id, made when it is asked for: of ten thousand few are at work."""

_LARGE = 1 << 16


class Clients:
    """Runs a ClientApp for each node, as a SuperNode would, but in this process.

    What an app leaves in `Context.state` stays for the node's next message; nothing else of a node
    stays, so that memory doesn't grow with the clients that were ever asked.

    Args:
        app: The ClientApp, or ``module:name`` of it.
        run_config: What every node sees as the run's configuration.
        run_id: Flower's number of the run.
    """

    def __init__(self, app: str | ClientApp, run_config: NodeConfig, run_id: int) -> None:
        self._app = _client_app(app) if isinstance(app, str) else app
        self._run_config = run_config
        self._run_id = run_id
        self._states: dict[int, RecordDict] = {}

    def answer(self, message: Message, node: NodeConfig) -> Message:
        """Run the app on a message to a node. Whatever it raises becomes an error's reply."""
        node_id = message.metadata.dst_node_id
        if flower.is_expired(message):
            error = Error(flower.ERROR_EXPIRED, "the round was over before the client began")
            return Message(error, reply_to=message)
        context = Context(
            run_id=self._run_id,
            node_id=node_id,
            node_config=dict(node),
            state=self._states.pop(node_id, RecordDict()),
            run_config=dict(self._run_config),
        )
        with flower.task_identity(run_id=self._run_id, node_id=node_id):
            try:
                reply = self._app(message, context)
            except Exception as error:
                logger.exception("the app of node %d raised", node_id)
                reason = type(error).__name__  # its text may quote a record
                return Message(Error(flower.ERROR_APP, reason), reply_to=message)
            finally:
                if context.state:
                    self._states[node_id] = context.state
        if not isinstance(reply, Message):
            return Message(Error(flower.ERROR_APP, "the app made no message"), reply_to=message)
        return reply


def _client_app(reference: str) -> ClientApp:
    app = resolve(reference)
    if not isinstance(app, ClientApp):
        raise ConfigError(expected("app", reference, "a ClientApp"))
    return app


class Inline:
    """This process; each poll does one job."""

    def __init__(self, clients: Clients, node_of: NodeOf) -> None:
        self._clients = clients
        self._node_of = node_of
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
        if isinstance(work, Job):
            return [(key, run_call(work))]
        return [(key, self._clients.answer(work, self._node_of(work.metadata.dst_node_id)))]

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


class Shelf:
    """Contents of messages for workers to read: written once, however many messages share one.

    A round's messages share their content. A large one is a file, which every worker reads once
    and keeps while messages of the same round come; a small one goes with its message.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="sordino-grid-")
        self._last: tuple[RecordDict, bytes, str] | None = None
        self._waiting: Counter[str] = Counter()
        self._made = 0

    def put(self, content: RecordDict) -> tuple[str, bytes]:
        """Where a content is: the file's path, or no path and its bytes. To be let go of."""
        if self._last is None or self._last[0] is not content:
            self._replace(content, pack(flower.from_records(content)))
        _, data, path = self._last or (content, b"", "")
        self._waiting[path] += 1
        return path, data

    def let_go(self, path: str) -> None:
        """A message with this content is answered, or nobody waits for it."""
        self._waiting[path] -= 1
        self._clear(path)

    def close(self) -> None:
        """Take all files away."""
        self._folder.cleanup()

    def _replace(self, content: RecordDict, data: bytes) -> None:
        before = self._last[2] if self._last else ""
        path = ""
        if len(data) > _LARGE:
            self._made += 1
            path = str(Path(self._folder.name) / str(self._made))
            Path(path).write_bytes(data)
            data = b""
        self._last = (content, data, path)
        self._clear(before)

    def _clear(self, path: str) -> None:
        current = self._last[2] if self._last else ""
        if path and path != current and not self._waiting[path]:
            del self._waiting[path]
            Path(path).unlink(missing_ok=True)


class Pooled:
    """Worker processes; messages go to `answer_in_worker` as bytes."""

    def __init__(self, pool: WorkerPool, node_of: NodeOf) -> None:
        self._pool = pool
        self._node_of = node_of
        self._sent: dict[str, tuple[Message, str]] = {}
        self._shelf = Shelf()

    def wait_until_ready(self) -> None:
        """Wait for all workers."""
        self._pool.wait_until_ready()

    def submit(self, message: Message) -> None:
        """Queue a message."""
        head = _head(flower.metadata_fields(message.metadata))
        node = json.dumps(dict(self._node_of(message.metadata.dst_node_id))).encode()
        key = message.metadata.message_id
        path, data = self._shelf.put(message.content)
        self._pool.submit(Job(key, ANSWER, (head, node, path.encode(), data)))
        self._sent[key] = (message, path)

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
            if key in self._sent:
                self._shelf.let_go(self._sent.pop(key)[1])

    def process_ids(self) -> list[int]:
        """The workers' process ids."""
        return self._pool.process_ids

    def close(self) -> None:
        """Let go of everything."""
        self._pool.close()
        self._shelf.close()

    def _done(self, outcome: Outcome) -> Message | Outcome:
        if outcome.key not in self._sent:
            return outcome
        message, path = self._sent.pop(outcome.key)
        self._shelf.let_go(path)
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
    """Set a worker process up: `settings` is JSON of app, run_config and run_id."""
    values = json.loads(settings)
    _worker_life.enter_context(flower.quiet_flower())
    _worker_clients[:] = [Clients(values["app"], values["run_config"], values["run_id"])]


def answer_in_worker(head: bytes, node: bytes, path: bytes, content: bytes) -> tuple[bytes, bytes]:
    """Answer one message; both ways a head of metadata and a content, which may lie in a file."""
    records = _on_shelf(path.decode()) if path else flower.to_records(unpack(content))
    message = flower.rebuild_message(json.loads(head), records)
    reply = _worker_clients[0].answer(message, json.loads(node))
    fields = flower.metadata_fields(reply.metadata)
    if not reply.has_error():
        try:
            return _head(fields), pack(flower.from_records(reply.content))
        except WireError as error:
            return _pack_error(fields, flower.ERROR_MALFORMED, str(error))
    return _pack_error(fields, reply.error.code, reply.error.reason or "")


@lru_cache(maxsize=1)
def _on_shelf(path: str) -> RecordDict:
    return flower.to_records(unpack(Path(path).read_bytes()))


def _head(fields: Mapping[str, Scalar]) -> bytes:
    """A message's metadata, between our own processes: nothing in it has to be checked."""
    return json.dumps(fields).encode()


def _pack_error(fields: dict[str, Scalar], code: int, reason: str) -> tuple[bytes, bytes]:
    return _head({**fields, "error-code": code, "error-reason": reason}), b""


def _unpack_reply(head: bytes, content: bytes) -> Message:
    fields: dict[str, Any] = json.loads(head)
    if "error-code" in fields:
        error = Error(fields["error-code"], fields["error-reason"])
        return flower.rebuild_message(fields, error)
    return flower.rebuild_message(fields, flower.to_records(unpack(content)))

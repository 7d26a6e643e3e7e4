"""`LocalGrid`: Flower's Grid on one machine, in this process or over worker processes.

The same ServerApp, strategy and ClientApp run here as on a fleet; only the Grid differs. With
workers, each maps the same frozen base file, so n clients cost one base model.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from sordino.core import app as flower
from sordino.core.errors import ConfigError, SordinoError, WireError, expected
from sordino.core.wire import Envelope, Scalar, pack, unpack
from sordino.sim.pool import Job, Outcome, WorkerPool, resolve, run_call

logger = logging.getLogger(__name__)

DEFAULT_APP = "sordino.client.app:app"
FIRST_NODE_ID = 2  # 1 is the coordinator's, as at Flower's SuperLink
NodeConfig = Mapping[str, bool | int | float | str]


class LocalGrid(Grid):
    """A grid of clients on this machine; use it as a context manager.

    Args:
        nodes: Each client's node configuration; client i is node i + 2.
        app: The ClientApp, or ``module:name`` of it (needed with workers).
        run_config: The run's configuration, the same for every client.
        workers: Processes that run the clients; 0 runs them in this process, one after the other.
        threads: Threads that each worker may use for arithmetic.
        run_id: Flower's number of the run.

    With workers a client's messages may go to different processes: what must last belongs on disk,
    not in `Context.state`.

    Raises:
        ConfigError: There are no nodes, or an app is given to workers that they can't import.
        SordinoError: From the first use: a worker can't be set up.
    """

    def __init__(
        self,
        nodes: Sequence[NodeConfig],
        *,
        app: str | ClientApp = DEFAULT_APP,
        run_config: NodeConfig | None = None,
        workers: int = 0,
        threads: int = 1,
        run_id: int = 1,
    ) -> None:
        if not nodes:
            raise ConfigError(expected("nodes", len(nodes), ">= 1"))
        if workers and not isinstance(app, str):
            raise ConfigError("expected app as module:name, which worker processes can import")
        self._run = flower.empty_run(run_id)
        self._node_ids = list(range(FIRST_NODE_ID, FIRST_NODE_ID + len(nodes)))
        configs = dict(zip(self._node_ids, nodes, strict=True))
        self._stack = ExitStack()
        self._stack.enter_context(flower.quiet_flower())
        self._stack.enter_context(flower.task_identity(run_id=run_id, node_id=1))
        self._done: dict[str, Message] = {}
        self._backend: _Inline | _Pooled
        if workers:
            settings = {"app": app, "nodes": configs, "run_config": run_config or {}}
            setup = Job("", PREPARE, (json.dumps({**settings, "run_id": run_id}).encode(),))
            self._backend = _Pooled(WorkerPool(workers, threads=threads, setup=setup))
        else:
            self._backend = _Inline(Clients(app, configs, run_config or {}, run_id))
        self._stack.callback(self._backend.close)

    # --- Flower's Grid -------------------------------------------------------------------------

    def set_run(self, run: flower.Run) -> None:
        """Take the description of the run that this grid works for."""
        self._run = run

    @property
    def run(self) -> flower.Run:
        """The description of the run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message; `Message(...)` does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The clients' node ids, ascending."""
        return list(self._node_ids)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages, and return their ids."""
        ids = []
        for message in messages:
            if message.metadata.dst_node_id not in self._node_ids:
                raise ConfigError(
                    expected("dst_node_id", message.metadata.dst_node_id, "a node of this grid")
                )
            flower.set_message_id(message, uuid.uuid4().hex)
            self._backend.submit(message)
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, each once. In this process, work is done here."""
        self._fetch(0.0)
        wanted = list(message_ids)
        return [self._done.pop(key) for key in wanted if key in self._done]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send messages, and yield each reply as it comes: nothing here holds on to replies.

        At the timeout what hasn't begun is cancelled, and what runs on is thrown away.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._replies(set(self.push_messages(messages)), deadline)

    # --- beside Flower's -----------------------------------------------------------------------

    def map(
        self,
        function: str,
        jobs: Iterable[bytes],
        *,
        on_done: Callable[[int], None] | None = None,
    ) -> list[bytes]:
        """Call a function on each job, on the same processes as the clients.

        For what only a simulation may do, such as evaluating on every client's records.

        Args:
            function: ``module:name`` of a function from bytes to bytes.
            jobs: Its arguments.
            on_done: Called with a job's index when it is done, in the order of completion.

        Returns:
            The results, in the order of the jobs.

        Raises:
            SordinoError: A call raised, or its worker died twice; the rest is cancelled.
        """
        calls = [Job(uuid.uuid4().hex, function, (argument,)) for argument in jobs]
        index = {job.key: number for number, job in enumerate(calls)}
        retried: set[str] = set()
        results: dict[str, bytes] = {}
        for job in calls:
            self._backend.call(job)
        try:
            while len(results) < len(calls):
                for outcome in self._fetch(None):
                    number = index[outcome.key]
                    if outcome.died and outcome.key not in retried:
                        retried.add(outcome.key)
                        self._backend.call(calls[number])
                    elif outcome.error:
                        raise SordinoError(f"{function}, job {number}: {outcome.error}")
                    else:
                        results[outcome.key] = outcome.parts[0]
                        _tell(on_done, number)
        finally:
            self._backend.cancel(index)
        return [results[job.key] for job in calls]

    @property
    def worker_process_ids(self) -> list[int]:
        """Process ids of the workers; empty when clients run in this process."""
        return self._backend.process_ids()

    def close(self) -> None:
        """End the workers and leave Flower's process-wide state as it was."""
        self._stack.close()

    def __enter__(self) -> LocalGrid:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _replies(self, waiting: set[str], deadline: float | None) -> Iterator[Message]:
        try:
            while waiting:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return
                self._fetch(left)
                for key in waiting.intersection(self._done):
                    waiting.discard(key)
                    yield self._done.pop(key)
        finally:
            self._backend.cancel(waiting)

    def _fetch(self, timeout: float | None) -> list[Outcome]:
        """Let the backend work; replies are put aside, and outcomes of calls are returned."""
        outcomes = []
        for done in self._backend.poll(timeout):
            if isinstance(done, Outcome):
                outcomes.append(done)
            else:
                flower.set_message_id(done, uuid.uuid4().hex)
                self._done[done.metadata.reply_to_message_id] = done
        return outcomes


def _tell(on_done: Callable[[int], None] | None, number: int) -> None:
    if on_done is not None:
        on_done(number)


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
                return self._app(message, self._context(node_id))
            except Exception as error:
                logger.exception("the app of node %d raised", node_id)
                reason = type(error).__name__  # its text may quote a record
                return Message(Error(flower.ERROR_APP, reason), reply_to=message)

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


class _Inline:
    """This process; each poll does one job."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._queue: deque[tuple[str, Message | Job]] = deque()

    def submit(self, message: Message) -> None:
        self._queue.append((message.metadata.message_id, message))

    def call(self, job: Job) -> None:
        self._queue.append((job.key, job))

    def poll(self, timeout: float | None) -> Sequence[Message | Outcome]:
        if not self._queue:
            return []
        _, work = self._queue.popleft()
        return [run_call(work) if isinstance(work, Job) else self._clients.answer(work)]

    def cancel(self, keys: Iterable[str]) -> None:
        unwanted = set(keys)
        self._queue = deque(entry for entry in self._queue if entry[0] not in unwanted)

    def process_ids(self) -> list[int]:
        return []

    def close(self) -> None:
        self._queue.clear()


class _Pooled:
    """Worker processes; messages go to `answer_in_worker` as bytes."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._sent: dict[str, Message] = {}
        self._packed: tuple[RecordDict, bytes] | None = None

    def submit(self, message: Message) -> None:
        head = pack(Envelope(flower.metadata_fields(message.metadata)))
        key = message.metadata.message_id
        self._pool.submit(Job(key, ANSWER, (head, self._pack(message.content))))
        self._sent[key] = message

    def call(self, job: Job) -> None:
        self._pool.submit(job)

    def poll(self, timeout: float | None) -> Sequence[Message | Outcome]:
        return [self._done(outcome) for outcome in self._pool.poll(timeout)]

    def cancel(self, keys: Iterable[str]) -> None:
        unwanted = list(keys)
        self._pool.cancel(unwanted)
        for key in unwanted:
            self._sent.pop(key, None)

    def process_ids(self) -> list[int]:
        return self._pool.process_ids

    def close(self) -> None:
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


def prepare_worker(settings: bytes) -> None:
    """Set a worker process up: `settings` is JSON of app, nodes, run_config and run_id."""
    values = json.loads(settings)
    flower.quiet_flower().__enter__()
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

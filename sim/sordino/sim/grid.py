"""`LocalGrid`: Flower's Grid on one machine, in this process or over worker processes.

The same ServerApp, strategy and ClientApp run here as on a fleet; only the Grid differs. With
workers, each maps the same frozen base file, so n clients cost one base model.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Literal

from flwr.app import Message
from flwr.clientapp import ClientApp

from sordino.core import app as flower
from sordino.core.errors import ConfigError, SordinoError, expected
from sordino.server.plain_grid import PlainGrid
from sordino.sim.backends import PREPARE, Clients, Inline, NodeConfig, Pooled
from sordino.sim.pool import Job, Outcome, WorkerPool

__all__ = ["DEFAULT_APP", "FIRST_NODE_ID", "LocalGrid", "NodeConfig"]

Fate = Callable[[Message], Literal["", "offline", "lost"]]
"""What becomes of a message to a simulated device."""

DEFAULT_APP = "sordino.client.app:app"
FIRST_NODE_ID = 2  # 1 is the coordinator's, as at Flower's SuperLink


class LocalGrid(PlainGrid):
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
        SordinoError: On entry: a worker can't be set up.
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
        super().__init__(run_id)
        self._node_ids = range(FIRST_NODE_ID, FIRST_NODE_ID + len(nodes))
        self._nodes = nodes
        self._fate: Fate = _there
        self._stack = ExitStack()
        self._stack.enter_context(flower.quiet_flower())
        self._stack.enter_context(flower.task_identity(run_id=run_id, node_id=1))
        self._done: dict[str, Message] = {}
        self._backend: Inline | Pooled
        if workers:
            settings = {"app": app, "run_config": run_config or {}, "run_id": run_id}
            setup = Job("", PREPARE, (json.dumps(settings).encode(),))
            self._backend = Pooled(WorkerPool(workers, threads=threads, setup=setup), self._node)
        else:
            self._backend = Inline(Clients(app, run_config or {}, run_id), self._node)
        self._stack.callback(self._backend.close)

    # --- Flower's Grid -------------------------------------------------------------------------

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
        fates = [(message, self._fate(message)) for message in messages]
        asked = [message for message, fate in fates if fate != "offline"]
        waiting = set(self.push_messages(asked))
        lost = {message.metadata.message_id for message, fate in fates if fate == "lost"}
        return self._replies(waiting, deadline, lost)

    @contextmanager
    def fleet(self, fate: Fate) -> Iterator[None]:
        """Let a trace decide, while the block runs, who is there and whose answer gets lost.

        Who is offline is never asked. Whose answer is lost was asked, trained and was charged.
        """
        before, self._fate = self._fate, fate
        try:
            yield
        finally:
            self._fate = before

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
        try:
            self._backend.wait_until_ready()  # or a round's time would run while processes start
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _node(self, node_id: int) -> NodeConfig:
        return self._nodes[node_id - FIRST_NODE_ID]

    def _replies(
        self, waiting: set[str], deadline: float | None, lost: set[str]
    ) -> Iterator[Message]:
        try:
            while waiting:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return
                self._fetch(left)
                for key in waiting.intersection(self._done):
                    waiting.discard(key)
                    reply = self._done.pop(key)
                    if key not in lost:
                        yield reply
        finally:
            self._backend.cancel(waiting)

    def _fetch(self, timeout: float | None) -> list[Outcome]:
        """Let the backend work; replies are put aside, and outcomes of calls are returned."""
        outcomes = []
        for key, done in self._backend.poll(timeout):
            if isinstance(done, Outcome):
                outcomes.append(done)
            else:
                flower.set_message_id(done, uuid.uuid4().hex)
                self._done[key] = done
        return outcomes


def _there(message: Message) -> Literal[""]:
    return ""


def _tell(on_done: Callable[[int], None] | None, number: int) -> None:
    if on_done is not None:
        on_done(number)

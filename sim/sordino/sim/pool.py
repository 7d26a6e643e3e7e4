"""Worker processes that call functions named by text, with bytes in and bytes out.

Processes are spawned, so each imports only what it is asked to run, and what goes through the pipes
is bytes (nothing is pickled). A worker ignores Ctrl-C, which a terminal sends to the whole group:
the process that started it decides when it ends, and takes it along if it is killed. A worker that
dies fails the job that it had and is replaced.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection as mp
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from typing import Any

from sordino.core.errors import ConfigError, SordinoError, expected

logger = logging.getLogger(__name__)

_CONTEXT = get_context("spawn")
_PATIENCE_S = 2.0  # for a worker to leave by itself
_MOST_FALSE_STARTS = 2


def resolve(reference: str) -> Any:
    """Import what ``package.module:name`` names.

    Raises:
        ConfigError: It isn't of that form, or there is no such thing.
    """
    module_name, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        text = expected("reference", reference, "an importable module:name", str(error))
        raise ConfigError(text) from error


@dataclass(frozen=True)
class Job:
    """A call: the function's ``module:name``, and its arguments."""

    key: str
    function: str
    parts: Sequence[bytes]


@dataclass(frozen=True)
class Outcome:
    """What became of a job: what it returned, or why it didn't."""

    key: str
    parts: tuple[bytes, ...] = ()
    error: str = ""
    died: bool = False


class WorkerPool:
    """A fixed number of workers; each job goes to the next free one, first come first served.

    Args:
        workers: How many processes.
        threads: Threads that each may use for arithmetic.
        setup: A call that each worker makes once, before its first job.
        return_freed_memory: Large blocks go back to the system when they are freed. Without, as
            glibc would have it.
    """

    def __init__(
        self,
        workers: int,
        *,
        threads: int = 1,
        setup: Job | None = None,
        return_freed_memory: bool = False,
    ) -> None:
        if workers < 1:
            raise ConfigError(expected("workers", workers, ">= 1"))
        self._environment = _environment(threads, return_freed_memory)
        self._setup = setup
        self._queue: deque[Job] = deque()
        self._false_starts = 0
        self._workers = [self._start() for _ in range(workers)]

    def wait_until_ready(self) -> None:
        """Wait for all workers to be set up, before the first job.

        Raises:
            SordinoError: Workers die, or fail, before they are ready.
        """
        while not all(worker.ready for worker in self._workers):
            self._collect(None)

    def submit(self, job: Job) -> None:
        """Queue a job; it starts as soon as a worker is free and `poll` is called."""
        self._queue.append(job)

    def cancel(self, keys: Iterable[str]) -> None:
        """Forget jobs: queued ones never start, and what running ones return is thrown away."""
        unwanted = set(keys)
        self._queue = deque(job for job in self._queue if job.key not in unwanted)
        for worker in self._workers:
            if worker.job is not None and worker.job.key in unwanted:
                worker.forgotten = True

    def poll(self, timeout: float | None) -> list[Outcome]:
        """Hand out jobs and return what has ended, waiting up to `timeout` for the first.

        Raises:
            SordinoError: Workers die, or fail, before they are ready.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._dispatch()
            if not (self._queue or any(worker.job for worker in self._workers)):
                return []
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            outcomes = self._collect(left)
            if outcomes or left == 0.0:
                return outcomes

    def close(self) -> None:
        """End all workers: idle ones leave when their pipe closes, busy ones are terminated."""
        self._queue.clear()
        for worker in self._workers:
            worker.pipe.close()
            if worker.job is not None:
                worker.process.terminate()
        deadline = time.monotonic() + _PATIENCE_S
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.process.close()
        self._workers.clear()

    @property
    def process_ids(self) -> list[int]:
        """The workers' process ids."""
        return [worker.process.pid or 0 for worker in self._workers]

    def _start(self) -> _Worker:
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(
            target=_serve, args=(theirs, self._setup), daemon=True, name="sordino-worker"
        )
        with _in_environment(self._environment):
            process.start()
        theirs.close()
        return _Worker(process, ours)

    def _dispatch(self) -> None:
        for index, worker in enumerate(self._workers):
            if worker.ready and worker.job is None and self._queue:
                worker.job = self._queue.popleft()
                try:
                    _send(worker.pipe, worker.job.function, worker.job.parts)
                except OSError:
                    logger.warning("worker %d is gone: another takes its job", index)
                    self._queue.appendleft(worker.job)
                    worker.job = None
                    self._replace(worker)

    def _collect(self, timeout: float | None) -> list[Outcome]:
        waiting: dict[object, _Worker] = {worker.pipe: worker for worker in self._workers}
        outcomes = []
        for pipe in mp.wait([worker.pipe for worker in self._workers], timeout):
            worker = waiting[pipe]
            try:
                word, parts = _receive(worker.pipe)
            except (EOFError, OSError):
                if worker.job is not None and not worker.forgotten:
                    outcomes.append(Outcome(worker.job.key, error="worker died", died=True))
                self._replace(worker)
                continue
            if word == "failed":
                raise SordinoError(f"a worker can't be set up: {parts[0].decode()}")
            self._false_starts = 0
            if worker.job is not None and not worker.forgotten:
                error = parts[0].decode() if word == "error" else ""
                outcomes.append(Outcome(worker.job.key, () if error else parts, error))
            worker.ready, worker.job, worker.forgotten = True, None, False
        return outcomes

    def _replace(self, dead: _Worker) -> None:
        dead.pipe.close()
        dead.process.kill()
        dead.process.join()
        logger.warning("worker %s died (exit code %s)", dead.process.pid, dead.process.exitcode)
        if not dead.ready:
            self._false_starts += 1
            if self._false_starts > _MOST_FALSE_STARTS:
                raise SordinoError("worker processes die before they are ready: see their output")
        self._workers[self._workers.index(dead)] = self._start()


class _Worker:
    """A process, our end of its pipe, and the job it has."""

    def __init__(self, process: Any, pipe: Connection[Any, Any]) -> None:
        self.process = process
        self.pipe = pipe
        self.job: Job | None = None
        self.ready = False
        self.forgotten = False


def _environment(threads: int, return_freed_memory: bool) -> dict[str, str]:
    """What a worker must find in its environment before it imports anything."""
    values = {
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if return_freed_memory:
        # Costs every large tensor its page faults, and the engine's own are few.
        values["MALLOC_MMAP_THRESHOLD_"] = "1048576"
    return values


@contextmanager
def _in_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Give what is started within the block these variables; put ours back after."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _serve(pipe: Connection[Any, Any], setup: Job | None) -> None:
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        started = run_call(setup) if setup is not None else Outcome("")
        if started.error:
            _send(pipe, "failed", (started.error.encode(),))
            return
        _send(pipe, "ready", ())
        while True:
            outcome = run_call(Job("", *_receive(pipe)))
            if outcome.error:
                _send(pipe, "error", (outcome.error.encode(),))
            else:
                _send(pipe, "ok", outcome.parts)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # whoever started us is gone


def _die_with_parent() -> None:
    """Nobody would take what an orphan makes, and whoever begins anew may need its files."""
    parent = parent_process()
    if parent is not None:
        mp.wait([parent.sentinel])
        os._exit(1)


def run_call(job: Job) -> Outcome:
    """Do a job in this process. Whatever it raises becomes its error."""
    try:
        call: Callable[..., bytes | Sequence[bytes] | None] = resolve(job.function)
        result = call(*job.parts)
    except Exception as error:
        logger.exception("%s raised", job.function)
        return Outcome(job.key, error=f"{type(error).__name__}: {error}")
    return Outcome(job.key, (result,) if isinstance(result, bytes) else tuple(result or ()))


def _send(pipe: Connection[Any, Any], word: str, parts: Sequence[bytes]) -> None:
    pipe.send_bytes(json.dumps([word, len(parts)]).encode())
    for part in parts:
        pipe.send_bytes(part)


def _receive(pipe: Connection[Any, Any]) -> tuple[str, tuple[bytes, ...]]:
    word, count = json.loads(pipe.recv_bytes())
    return word, tuple(pipe.recv_bytes() for _ in range(count))

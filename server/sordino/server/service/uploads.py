"""The methods that take an answer: OfferUpload, PushUpdate.

An upload has one stream at a time: a newer one waits until the older has let go of its file, so
that no byte is written behind the back of a check. What came by a stream that was cut is kept.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from typing import Any

from sordino.core import contract
from sordino.core.contract import Artefact
from sordino.core.errors import ContractError, SordinoError
from sordino.protos.v1 import common_pb2, fleet_pb2
from sordino.server.enroll import Call
from sordino.server.enroll.interceptor import StreamCall
from sordino.server.fleet_rounds import Stream, finish_upload, offer_upload
from sordino.server.fleet_rounds.context import require
from sordino.server.fleet_rounds.tasks import task_of
from sordino.server.logs import say
from sordino.server.service.shared import Shared, require_about, require_member, upload_state
from sordino.server.store import Task, Upload

_LOG = logging.getLogger(__name__)
_LATER_MS = 5000


class _Sending:
    """A `PushUpdate` under way, as those see it that come after."""

    def __init__(self) -> None:
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.over = asyncio.Event()
        self.waited_s = 0.0

    def stop(self, why: str) -> None:
        """Let it come to an end: `superseded`, `offered` anew, or `cut`."""
        if not self.end.done():
            self.end.set_result(why)

    @property
    def why(self) -> str:
        """Why it shall end; empty: it shall not."""
        return self.end.result() if self.end.done() else ""


class Uploads:
    """Takes answers in, on the service's event loop; disks and checks are left to threads.

    Args:
        shared: The service's surroundings.
        checking: Where whole answers are checked.
    """

    def __init__(self, shared: Shared, checking: Executor) -> None:
        self._shared, self._fleet, self._checking = shared, shared.fleet, checking
        self._room = asyncio.Semaphore(shared.settings.uploads_at_once)
        self._sending: dict[str, _Sending] = {}
        self._checks: dict[str, asyncio.Future[Upload]] = {}
        self._running: set[asyncio.Future[fleet_pb2.PushUpdateResponse]] = set()

    async def offer(self, call: Call, context: Any) -> fleet_pb2.OfferUploadResponse:
        """Announce an answer, or say how it stands. A stream of it that is open is ended first."""
        body: fleet_pb2.OfferUploadRequest = call.opened.body
        artefact = contract.read_artefact(body.artefact, common_pb2.ARTEFACT_KIND_UPDATE)
        device_id = call.peer.device_id

        def known() -> str:
            with self._fleet.store.read() as rows:
                require_about(call, task_of(rows, device_id, body.task_id))
                found = rows.all(Upload, task_id=body.task_id)
            return found[0].upload_id if found else ""

        await self._end(await asyncio.to_thread(known), "offered")
        upload = await asyncio.to_thread(
            offer_upload, self._fleet, device_id, body.task_id, artefact
        )
        if upload.state == "checking":
            self._check(upload)
        return fleet_pb2.OfferUploadResponse(
            upload_id=upload.upload_id,
            state=upload_state(upload.state),
            offset=upload.stored,
            reason=upload.reason,
        )

    async def push(self, stream: StreamCall, context: Any) -> fleet_pb2.PushUpdateResponse:
        """Take an answer in, and acknowledge it once it is checked and durable.

        The work goes on when the call is cut, to an orderly end: nobody reads its answer then.
        """
        sending = _Sending()
        work = asyncio.ensure_future(self._receive(stream, sending))
        self._running.add(work)
        work.add_done_callback(self._running.discard)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            sending.stop("cut")
            work.add_done_callback(_forget)
            raise

    async def settle(self) -> None:
        """Wait until what came of streams that were cut is durable, and checks have ended."""
        await asyncio.gather(*self._running, *self._checks.values(), return_exceptions=True)

    async def _receive(self, stream: StreamCall, sending: _Sending) -> fleet_pb2.PushUpdateResponse:
        start: fleet_pb2.PushUpdateStart = stream.call.opened.body
        async with self._place(start.upload_id, sending):
            opened = await asyncio.to_thread(self._open, stream.call, start)
            upload = await self._take(opened, stream.rest, sending)
        if upload.state == "checking":
            upload = await self._check(upload)
        return fleet_pb2.PushUpdateResponse(state=upload_state(upload.state), offset=upload.stored)

    @asynccontextmanager
    async def _place(self, upload_id: str, sending: _Sending) -> AsyncIterator[None]:
        """One of the places for streams, as the only stream of an upload.

        Raises:
            ContractError: ``too-many-uploads``: none became free; ``superseded``.
        """
        try:
            async with asyncio.timeout(self._shared.settings.upload_wait_s):
                await self._room.acquire()
        except TimeoutError as error:
            raise ContractError(
                "too-many-uploads", "others are being taken in", retry_after_ms=_LATER_MS
            ) from error
        self._shared.counters.uploading(1)
        try:
            _require_wanted(sending)
            await self._end(upload_id, "superseded")
            _require_wanted(sending)
            self._sending[upload_id] = sending
            try:
                yield
            finally:
                del self._sending[upload_id]
                sending.over.set()
        finally:
            self._shared.counters.uploading(-1)
            self._room.release()

    async def _end(self, upload_id: str, why: str) -> None:
        """Let an upload's stream end, if there is one, and wait for that."""
        while (older := self._sending.get(upload_id)) is not None:
            older.stop(why)
            await older.over.wait()

    def _open(self, call: Call, start: fleet_pb2.PushUpdateStart) -> Stream:
        device_id = call.peer.device_id
        with self._fleet.store.read() as rows:
            upload = rows.find(Upload, start.upload_id)
            if upload is None or upload.device_id != device_id:
                raise ContractError("unknown-upload", f"no upload {start.upload_id} of this device")
            require_about(call, require(rows, Task, upload.task_id))
        whole = Artefact(sha256=start.sha256.hex(), size=start.size)
        return Stream(self._fleet, device_id, start.upload_id, whole, start.offset)

    async def _take(self, opened: Stream, rest: AsyncIterator[bytes], sending: _Sending) -> Upload:
        """Write what comes, up to the last byte or the stream's end, and make it durable."""
        if opened.upload.state != "open":
            return opened.upload  # it came whole before
        looked, tick_s = time.monotonic(), self._shared.settings.tick_ms / 1000
        try:
            while opened.received < opened.upload.size:
                message = await self._next(rest, sending, opened)
                if message is None:
                    break
                if time.monotonic() - looked > tick_s:
                    looked = time.monotonic()
                    await asyncio.to_thread(self._look, opened.upload)
                await asyncio.to_thread(_write, opened, message)
        except ContractError:
            if sending.why != "superseded":  # else the offset that the newer one knows must stay
                with suppress(SordinoError):
                    await asyncio.to_thread(opened.keep)
            raise
        return await asyncio.to_thread(opened.keep)

    async def _next(
        self, rest: AsyncIterator[bytes], sending: _Sending, opened: Stream
    ) -> bytes | None:
        """The next message; None: there is no further one.

        Raises:
            ContractError: ``superseded`` or ``too-slow``.
        """
        settings, begun = self._shared.settings, time.monotonic()
        coming: asyncio.Future[Any] = asyncio.ensure_future(anext(rest, None))
        await asyncio.wait(
            (coming, sending.end),
            timeout=settings.message_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if sending.end.done() or not coming.done():
            coming.cancel()
            coming.add_done_callback(_forget)
        if sending.why == "cut":
            return None
        _require_wanted(sending)
        sending.waited_s += time.monotonic() - begun
        came = opened.received - opened.upload.stored
        slow = sending.waited_s > settings.message_s and (
            came < settings.bytes_per_s * sending.waited_s
        )
        if not coming.done() or slow:
            required = f"a chunk each {settings.message_s} s, {settings.bytes_per_s} bytes/s"
            raise ContractError("too-slow", f"expected {required}")
        if coming.cancelled() or coming.exception() is not None:
            return None  # the connection is gone
        message: bytes | None = coming.result()
        return message

    def _look(self, begun: Upload) -> None:
        """Whether what is being sent may still come to something.

        Raises:
            ContractError: ``certificate-revoked`` or ``task-over``.
        """
        with self._fleet.store.read() as rows:
            require_member(rows, begun.device_id)
            if require(rows, Upload, begun.upload_id).state == "discarded":
                raise ContractError("task-over", "the upload was discarded")

    def _check(self, upload: Upload) -> asyncio.Future[Upload]:
        """The one check of a whole upload that is under way, begun if there is none."""
        name = upload.upload_id
        if name not in self._checks:
            check = asyncio.ensure_future(self._checked(upload))
            self._checks[name] = check
            check.add_done_callback(lambda _: self._checks.pop(name))
            check.add_done_callback(_forget)
        return self._checks[name]

    async def _checked(self, upload: Upload) -> Upload:
        about: dict[str, Any] = {
            "device": upload.device_id,
            "task": upload.task_id,
            "bytes": upload.size,
        }
        loop = asyncio.get_running_loop()
        try:
            done = await loop.run_in_executor(self._checking, self._finish, upload)
        except ContractError as error:
            if error.reason != "task-over":
                self._shared.counters.checked(error.reason)
            say(_LOG, "update-refused", logging.WARNING, **about, word=error.reason)
            raise
        self._shared.counters.checked()
        say(_LOG, "update-accepted", **about)
        return done

    def _finish(self, upload: Upload) -> Upload:
        with self._fleet.store.read() as rows:
            run_id = require(rows, Task, upload.task_id).run_id
        return finish_upload(self._fleet, self._shared.work_of(run_id), upload.upload_id)


def _require_wanted(sending: _Sending) -> None:
    if sending.end.done():
        raise ContractError("superseded", "a newer call is about this upload, or this one is gone")


def _write(opened: Stream, message: bytes) -> None:
    """Write the piece that a stream's further message holds."""
    part = contract.from_bytes(message, fleet_pb2.PushUpdateRequest)
    if not part.HasField("chunk"):
        raise ContractError("wrong-kind", "expected a chunk after the stream's start")
    opened.write(part.chunk.offset, part.chunk.data)


def _forget(done: asyncio.Future[Any]) -> None:
    """Look at a result that nobody waits for, so that asyncio doesn't complain."""
    if not done.cancelled():
        done.exception()

"""Answers on their way: offered, sent in pieces, checked, and accepted once and for good.

What was acknowledged is on stable storage under its hash, and named by a row, before anybody is
told so. docs/contract.md has the states.
"""

from __future__ import annotations

import secrets
from typing import Any

from sordino.core.contract import Artefact, SignedHead
from sordino.core.errors import (
    ContractError,
    SordinoError,
    UpdateRejectedError,
    expected,
)
from sordino.server.fleet_rounds import devices
from sordino.server.fleet_rounds.context import Fleet, name_artefact, require, tell
from sordino.server.fleet_rounds.machine import move
from sordino.server.fleet_rounds.tasks import take, task_of
from sordino.server.fleet_rounds.work import Work
from sordino.server.store import Accepted, ArtefactRow, Reader, Round, Task, Upload, Writer
from sordino.server.store.records import UNFINISHED_TASKS, UNFINISHED_UPLOADS


def offer_upload(fleet: Fleet, device_id: str, task_id: str, artefact: Artefact) -> Upload:
    """Announce an answer, or ask how it stands. Its disk is allotted before a byte comes.

    Raises:
        ContractError: ``unknown-task``; ``task-over``; ``another-answer``: a task has one;
            ``too-long``: beyond the task's limit; ``quota-full``, ``storage-full`` or
            ``too-many-uploads``: later perhaps.
    """
    with fleet.store.write("offer-upload") as tx:
        task = task_of(tx, device_id, task_id)
        known = tx.all(Upload, task_id=task_id)
        if known:
            if (known[0].sha256, known[0].size) != (artefact.sha256, artefact.size):
                raise ContractError(
                    "another-answer", "a task has one answer: send the one that is kept"
                )
            return known[0]
        _require_unfinished(fleet, task)
        limit = require(tx, Round, task.run_id, task.round).max_answer_bytes
        if artefact.size > limit:
            raise ContractError("too-long", expected("size", artefact.size, f"<= {limit}"))
        _require_room(fleet, tx, artefact.size)
        if task.state == "offered":
            take(tx, task)
        upload = tx.add(
            Upload(
                upload_id=secrets.token_hex(16),
                task_id=task_id,
                device_id=device_id,
                sha256=artefact.sha256,
                size=artefact.size,
            )
        )
        try:
            fleet.artefacts.begin_upload(upload.upload_id, upload.size)
        except OSError as error:
            raise ContractError("storage-full", f"the disk refuses: {error.strerror}") from error
    return upload


class Stream:
    """One call that sends pieces of an upload. A newer one for the same upload ends it.

    Args:
        fleet: The fleet.
        device_id: Who sends.
        upload_id: Which upload.
        artefact: The whole answer, as the device states it once more.
        offset: Where its first piece begins.

    Raises:
        ContractError: ``unknown-upload``; ``another-answer``; ``wrong-offset``: not where the
            stored bytes end; ``task-over``.
    """

    def __init__(
        self, fleet: Fleet, device_id: str, upload_id: str, artefact: Artefact, offset: int
    ) -> None:
        self._fleet = fleet
        with fleet.store.write("begin-stream") as tx:
            upload = _upload_of(tx, device_id, upload_id)
            if (upload.sha256, upload.size) != (artefact.sha256, artefact.size):
                raise ContractError("another-answer", "the upload was announced with another hash")
            if upload.state == "open":
                _require_unfinished(fleet, require(tx, Task, upload.task_id))
            if offset != upload.stored:
                raise ContractError(
                    "wrong-offset", expected("offset", offset, f"= {upload.stored}")
                )
            self.upload = tx.change(upload, streams=upload.streams + 1)
        self.received = self.upload.stored

    def write(self, offset: int, data: bytes) -> None:
        """Take the next piece.

        Raises:
            ContractError: ``wrong-offset``: a gap, an overlap, or beyond the announced size;
                ``superseded``; ``task-over``; ``storage-full``.
        """
        if offset != self.received or offset + len(data) > self.upload.size:
            required = f"= {self.received}, and the piece within {self.upload.size} bytes"
            raise ContractError("wrong-offset", expected("offset", offset, required))
        try:
            self._fleet.artefacts.write_upload(self.upload.upload_id, offset, data)
        except FileNotFoundError as error:
            raise ContractError("task-over", "the upload was discarded") from error
        except OSError as error:
            raise ContractError("storage-full", f"the disk refuses: {error.strerror}") from error
        self.received += len(data)
        if self.received - self.upload.stored >= self._fleet.limits.sync_bytes:
            self.keep()

    def keep(self) -> Upload:
        """Make durable what came, at the end of a stream and now and then before it.

        Raises:
            ContractError: ``superseded``: a newer stream is at it; ``task-over``.
        """
        try:
            self._fleet.artefacts.sync_upload(self.upload.upload_id)
        except FileNotFoundError as error:
            raise ContractError("task-over", "the upload was discarded") from error
        self._fleet.at("upload:synced")
        with self._fleet.store.write("keep-upload") as tx:
            upload = require(tx, Upload, self.upload.upload_id)
            if upload.streams != self.upload.streams:
                raise ContractError("superseded", "a newer stream of this upload goes on")
            if _ended(upload).state == "open":
                upload = tx.change(upload, stored=self.received)
                if self.received == upload.size:
                    upload = move(tx, upload, "checking")
            self.upload = upload
        return self.upload


def finish_upload(fleet: Fleet, work: Work, upload_id: str) -> Upload:
    """Check a whole upload, and accept or reject it; again: how it ended.

    Safe to repeat after a crash at any point, and what a restart does with every upload that it
    finds in `checking`.

    Raises:
        ContractError: ``unknown-upload``; ``task-over``; or the word for which it was rejected.
    """
    with fleet.store.read() as rows:
        upload = require(rows, Upload, upload_id)
        task = require(rows, Task, upload.task_id)
        asked = require(rows, Round, task.run_id, task.round)
    if upload.state != "checking":
        return _ended(upload)
    try:
        head = _check(fleet, work, asked, upload)
    except (ContractError, UpdateRejectedError) as error:
        _reject(fleet, upload, error.reason)
        fleet.artefacts.drop_upload(upload_id)
        raise ContractError(error.reason, str(error)) from error
    with fleet.artefacts.lock:
        fleet.artefacts.take_upload(upload_id, upload.sha256)
        fleet.at("update:kept")
        return _ended(_accept(fleet, upload, head))


def _check(fleet: Fleet, work: Work, asked: Round, upload: Upload) -> SignedHead | None:
    """Hold a whole upload against its hash and its round."""
    data = fleet.artefacts.read_upload(upload.upload_id, upload.sha256)
    if data is None:
        raise UpdateRejectedError("wrong-hash", f"the bytes are not {upload.sha256}")
    try:
        return work.check(asked, data)
    except (SordinoError, OSError, MemoryError):  # a refusal, or this machine's own trouble
        raise
    except Exception as error:
        # Bytes that trip the check up would hold their round up for good: they are refused too.
        raise UpdateRejectedError("malformed", f"not to be checked: {error!r:.200}") from error


def _accept(fleet: Fleet, upload: Upload, head: SignedHead | None) -> Upload:
    """The acknowledgement: task answered, upload accepted, update named, all in one."""
    with fleet.store.write("accept-update") as tx:
        upload = require(tx, Upload, upload.upload_id)
        if upload.state != "checking":  # another thread was first, or the task is over
            return upload
        task = require(tx, Task, upload.task_id)
        kept = Artefact(sha256=upload.sha256, size=upload.size)
        tx.add(
            Accepted(
                run_id=task.run_id,
                round=task.round,
                device_id=task.device_id,
                task_id=task.task_id,
                sha256=name_artefact(fleet, tx, kept, "update"),
                accepted_ms=fleet.now_ms(),
                **_receipt(head),
            )
        )
        if head is not None:
            devices.note_head(fleet, tx, task.device_id, head, newest=False)
        move(tx, task, "answered")
        devices.succeeded(fleet, tx, task.device_id)
        return move(tx, upload, "accepted")


def _receipt(head: SignedHead | None) -> dict[str, Any]:
    if head is None:
        return {}
    return {
        "entry_index": head.receipt.entry_index,
        "entry_sha256": head.receipt.ledger_head,
        "public_key": head.public_key,
        "signature": head.signature,
    }


def _reject(fleet: Fleet, upload: Upload, reason: str) -> None:
    with fleet.store.write("reject-update") as tx:
        upload = require(tx, Upload, upload.upload_id)
        if upload.state != "checking":
            return
        task = require(tx, Task, upload.task_id)
        move(tx, upload, "rejected", reason=reason)
        move(tx, task, "rejected", reason=reason)
        devices.failed(fleet, tx, task.device_id)
        tell(
            fleet,
            tx,
            "update-rejected",
            run_id=task.run_id,
            round_number=task.round,
            device_id=task.device_id,
            reason=reason,
        )


def _ended(upload: Upload) -> Upload:
    """How an upload stands, as its sender is told.

    Raises:
        ContractError: It was rejected or discarded.
    """
    if upload.state == "rejected":
        raise ContractError(upload.reason, "this answer was refused before")
    if upload.state == "discarded":
        raise ContractError("task-over", f"the upload was discarded: {upload.reason}")
    return upload


def _upload_of(rows: Reader, device_id: str, upload_id: str) -> Upload:
    upload = require(rows, Upload, upload_id)
    if upload.device_id != device_id:
        raise ContractError("unknown-upload", f"there is no upload {upload_id} of this device")
    return _ended(upload)


def _require_unfinished(fleet: Fleet, task: Task) -> None:
    if task.state not in UNFINISHED_TASKS:
        raise ContractError(
            "task-over", f"the task is {task.state}: {task.reason or 'it has ended'}"
        )
    if task.deadline_ms <= fleet.now_ms():
        raise ContractError("task-over", "its deadline has passed")


def _require_room(fleet: Fleet, tx: Writer, size: int) -> None:
    """Refuse what would go beyond the coordinator's limits, before anything is allotted."""
    limits = fleet.limits
    if tx.count(Upload, state=UNFINISHED_UPLOADS) >= limits.uploads:
        raise ContractError("too-many-uploads", f"{limits.uploads} are on their way")
    used = tx.total(ArtefactRow, "size") + tx.total(Upload, "size", state=UNFINISHED_UPLOADS)
    if used + size > limits.storage_bytes:
        required = f"<= {limits.storage_bytes - used}"
        raise ContractError("quota-full", expected("size", size, required))
    if fleet.artefacts.free_bytes() - limits.spare_bytes < size:
        raise ContractError("storage-full", "the coordinator's disk is full")

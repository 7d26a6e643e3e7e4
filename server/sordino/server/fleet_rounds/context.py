"""What every transaction of the fleet works with, and what they share."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from sordino.core import durable
from sordino.core.contract import Artefact
from sordino.core.errors import ConfigError, ContractError, StoreError, expected
from sordino.server.store import (
    ArtefactRow,
    Artefacts,
    Device,
    Event,
    Hook,
    Reader,
    Round,
    Run,
    SqlStore,
    Store,
    Task,
    Upload,
    Writer,
    no_hook,
)
from sordino.server.store.records import ArtefactKind

DATABASE: Final = "coordinator.db"
LOCK: Final = "coordinator.lock"

RowT = TypeVar("RowT", Run, Round, Task, Upload, Device, ArtefactRow)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the coordinator allows. None of it changes a guarantee.

    Attributes:
        storage_bytes: All artefacts and announced uploads together.
        spare_bytes: What is left free of the disk.
        uploads: Unfinished uploads at once.
        sync_bytes: An upload's bytes are made durable at least this often.
        failures: So many in a row, and a device rests.
        rest_ms: How long the first time; doubled with each further failure, up to a day.
    """

    storage_bytes: int = 1 << 40
    spare_bytes: int = 1 << 28
    uploads: int = 1024
    sync_bytes: int = 1 << 24
    failures: int = 3
    rest_ms: int = 600_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0 or (value == 0 and name != "spare_bytes"):
                raise ConfigError(expected(name, value, "> 0"))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """A coordinator's state and surroundings. Its functions may be called from any thread.

    Attributes:
        store: The rows.
        artefacts: The files.
        limits: What is allowed.
        now_ms: The clock.
        at: Told each step as it is reached.
    """

    store: Store
    artefacts: Artefacts
    limits: Limits = field(default_factory=Limits)
    now_ms: Callable[[], int] = _now_ms
    at: Hook = no_hook


@contextmanager
def open_fleet(
    folder: Path,
    *,
    url: str | None = None,
    limits: Limits | None = None,
    now_ms: Callable[[], int] = _now_ms,
    at: Hook = no_hook,
) -> Iterator[Fleet]:
    """Open a coordinator's folder: its lock, its database, its files.

    Args:
        folder: Made if need be.
        url: The database, if it isn't the folder's own SQLite file.
        limits: What is allowed.
        now_ms: The clock.
        at: Told each step as it is reached.

    Raises:
        StoreError: Another process has it open, or the database can't be used.
    """
    durable.make_folder(folder)
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(f"another coordinator works in {folder}: stop it first") from error
        store = SqlStore(url or folder / DATABASE, at=at)
        try:
            yield Fleet(
                store=store,
                artefacts=Artefacts(folder),
                limits=limits or Limits(),
                now_ms=now_ms,
                at=at,
            )
        finally:
            store.close()
    finally:
        os.close(fd)


def require(tx: Reader, kind: type[RowT], *key: str | int) -> RowT:
    """The row of a key.

    Raises:
        ContractError: ``unknown-run``, ``unknown-task``, ..: there is none.
    """
    found = tx.find(kind, *key)
    if found is None:
        word = kind.__name__.lower().removesuffix("row")
        raise ContractError(f"unknown-{word}", f"there is no {word} {'/'.join(map(str, key))}")
    return found


def tell(
    fleet: Fleet,
    tx: Writer,
    kind: str,
    *,
    run_id: str = "",
    round_number: int = 0,
    device_id: str = "",
    **detail: str | int,
) -> Event:
    """Write down an event, in the transaction that makes it true."""
    return tx.add(
        Event(
            number=tx.largest(Event, "number") + 1,
            at_ms=fleet.now_ms(),
            kind=kind,
            run_id=run_id,
            round=round_number,
            device_id=device_id,
            detail=json.dumps(detail, sort_keys=True),
        )
    )


def name_artefact(fleet: Fleet, tx: Writer, kept: Artefact, kind: ArtefactKind) -> str:
    """Give a file that is kept its row, and its hash back. The caller holds `artefacts.lock`.

    A file that is also an update is kept for its other sake: updates go when their round is over.
    """
    known = tx.find(ArtefactRow, kept.sha256)
    if known is None:
        made = fleet.now_ms()
        tx.add(ArtefactRow(sha256=kept.sha256, size=kept.size, kind=kind, made_ms=made))
    elif known.kind == "update":
        tx.change(known, kind=kind)
    return kept.sha256


def keep_artefact(fleet: Fleet, tx: Writer, data: bytes, kind: ArtefactKind) -> str:
    """Keep bytes durably and name them; gives their hash. The caller holds `artefacts.lock`."""
    return name_artefact(fleet, tx, fleet.artefacts.put(data), kind)

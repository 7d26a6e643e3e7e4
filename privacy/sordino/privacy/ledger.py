"""The ledger: what each client has spent, on disk before any noise is drawn.

One JSON object a line, canonical, chained by SHA-256: `prev` is the hash of the client's line
before. `Ledger.charge` returns only after the entry and its folder are on stable storage; what it
returns is the proof without which no round opens. Nothing here computes ε: entries keep events.

**A line torn by a crash.** `charge` had not returned, so no noise was drawn and nothing left the
device. On the next opening, under the lock, a last line without its newline is completed if it is a
whole valid entry (it then counts as charged: counting too much is safe). Otherwise it is moved to
`<name>.torn` and cut off. A bad line that *has* its newline or its last field was perhaps once a
durable charge: nothing is repaired, the ledger is refused and the entry named. If the disk fails to
confirm a write, the line is left in place: charged, though the round never opens.

A cut tail, or an older copy put back, can't be seen from the file alone: compare `head` with one
that somebody else kept.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, Protocol, final

from sordino.core import canonical, durable
from sordino.core.errors import LedgerError, expected

GENESIS = "0" * 64
KIND, VERSION = "charge", 1

Fields = Mapping[str, str | int | float]


class Chargeable(Protocol):
    """What the ledger must know of a plan."""

    @property
    def run_id(self) -> str:
        """The run that asks."""
        ...

    @property
    def rounds(self) -> int:
        """How many rounds were announced."""
        ...

    @property
    def unit(self) -> str:
        """What is protected: `record` or `user`."""
        ...

    @property
    def neighbouring(self) -> str:
        """The neighbouring relation."""
        ...

    @property
    def sha256(self) -> str:
        """Hash of the plan's canonical encoding."""
        ...

    def event_fields(self) -> dict[str, str | int | float]:
        """The event of one round."""
        ...


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One charge: this client's `dataset` was, or may have been, used for `event`."""

    client: str
    index: int
    time: str
    run_id: str
    round: int
    dataset: str
    unit: str
    neighbouring: str
    event: Fields
    plan_sha256: str
    prev: str

    def body(self) -> dict[str, Any]:
        """Everything that the entry's hash covers."""
        return {"kind": KIND, "version": VERSION, **asdict(self), "event": dict(self.event)}

    @property
    def sha256(self) -> str:
        """The hash that the next entry carries as `prev`."""
        return canonical.sha256_hex(canonical.encode(self.body()))

    def line(self) -> bytes:
        """The entry as it stands in the file, newline included."""
        return canonical.encode({**self.body(), "sha256": self.sha256}) + b"\n"


@final
class Charge:
    """Proof that an entry is durable. Made by `Ledger.charge` alone; good for one round, once.

    It can't be copied or pickled, and a forked process can't use its parent's.
    """

    __slots__ = ("_entry", "_lock", "_process", "_used")

    def __init__(self, entry: Entry, *, _key: object = None) -> None:
        if _key is not _KEY:
            raise LedgerError("a charge comes from Ledger.charge: nothing else proves durability")
        self._entry = entry
        self._used = False
        self._process = os.getpid()
        self._lock = threading.Lock()

    @property
    def entry(self) -> Entry:
        """The durable entry."""
        return self._entry

    def redeem(self) -> bool:
        """True the first time, False ever after."""
        with self._lock:
            fresh = not self._used and self._process == os.getpid()
            self._used = True
        return fresh

    def __reduce__(self) -> NoReturn:
        raise LedgerError("a charge can't be copied: it is good for one round, once")


_KEY = object()


@final
class Ledger:
    """A client's own append-only ledger file. Several processes may share it: a charge locks it.

    Args:
        path: The file; made with its folders if absent, readable by its owner only.
        client_id: Whose ledger this is. A file of another client is refused.
        now: The clock.

    Raises:
        LedgerError: The file can't be read or written, or its chain is broken.
    """

    def __init__(
        self, path: Path, client_id: str, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        if not client_id:
            raise LedgerError(expected("client_id", client_id, "not empty"))
        self.path = path
        self.client_id = client_id
        self._now = now
        with _os_errors("open", path):
            durable.make_folder(path.parent)
            with durable.locked(path) as fd:
                self._load(fd)
                os.fsync(fd)
                durable.sync_folder(path.parent)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries, oldest first, freshly read and verified."""
        with _os_errors("read", self.path), durable.locked(self.path) as fd:
            return tuple(self._load(fd))

    @property
    def head(self) -> str:
        """Hash of the last entry, or 64 zeros. Let another party keep it: it exposes a rollback."""
        entries = self.entries
        return entries[-1].sha256 if entries else GENESIS

    def charge(self, plan: Chargeable, round_number: int, dataset_id: str) -> Charge:
        """Write one round's event, make it durable, and return the proof.

        From here on the round is spent, whether or not it is trained, finished or sent.

        Args:
            plan: The plan whose round is to begin.
            round_number: 1 .. plan.rounds.
            dataset_id: The stable name of the records that will be used.

        Raises:
            LedgerError: This run's round is already charged (resend the kept bytes), the round is
                not in the plan, or the disk refuses.
        """
        if type(round_number) is not int or not 1 <= round_number <= plan.rounds:
            raise LedgerError(expected("round", round_number, f"in 1..{plan.rounds}"))
        if not dataset_id:
            raise LedgerError(expected("dataset_id", dataset_id, "not empty"))
        with _os_errors("write", self.path), durable.locked(self.path) as fd:
            entries = self._load(fd)
            self._refuse_twice(entries, plan.run_id, round_number)
            entry = self._next(entries, plan, round_number, dataset_id)
            durable.append(fd, entry.line())
            durable.sync_folder(self.path.parent)
        return Charge(entry, _key=_KEY)

    def _refuse_twice(self, entries: Iterable[Entry], run_id: str, round_number: int) -> None:
        for entry in entries:
            if (entry.run_id, entry.round) == (run_id, round_number):
                raise LedgerError(
                    f"round {round_number} of run {run_id} is already charged to client "
                    f"{self.client_id} (entry {entry.index}): a retry resends the same bytes"
                )

    def _next(
        self, entries: list[Entry], plan: Chargeable, round_number: int, dataset_id: str
    ) -> Entry:
        return Entry(
            client=self.client_id,
            index=len(entries),
            time=self._now().astimezone(UTC).isoformat(timespec="seconds"),
            run_id=plan.run_id,
            round=round_number,
            dataset=dataset_id,
            unit=plan.unit,
            neighbouring=plan.neighbouring,
            event=plan.event_fields(),
            plan_sha256=plan.sha256,
            prev=entries[-1].sha256 if entries else GENESIS,
        )

    def _load(self, fd: int) -> list[Entry]:
        data = durable.read_all(fd)
        if data and not data.endswith(b"\n"):
            data = _mend(fd, self.path, data)
        entries = _parse(data, str(self.path))
        for entry in entries:
            if entry.client != self.client_id:
                raise LedgerError(
                    f"{self.path} entry {entry.index}: "
                    + expected("client", entry.client, f"to be {self.client_id}")
                )
        return entries


def read_ledger(path: Path) -> dict[str, tuple[Entry, ...]]:
    """Read and verify a ledger, a client's own or an export of several; changes nothing.

    Returns:
        Each client's entries, oldest first.

    Raises:
        LedgerError: The file can't be read, or an entry, which is named, is not what it should be.
    """
    with _os_errors("read", path):
        data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        last = len(data.split(b"\n"))
        raise LedgerError(f"{path} line {last}: torn, its newline is missing")
    by_client: dict[str, list[Entry]] = {}
    for entry in _parse(data, str(path)):
        by_client.setdefault(entry.client, []).append(entry)
    return {client: tuple(entries) for client, entries in by_client.items()}


def export_ledgers(paths: Iterable[Path], to: Path) -> None:
    """Write several clients' verified ledgers as one file, by client id.

    Raises:
        LedgerError: A ledger is defective, two belong to one client, or the disk refuses.
    """
    merged: dict[str, tuple[Entry, ...]] = {}
    for path in paths:
        for client, entries in read_ledger(path).items():
            if client in merged:
                raise LedgerError(f"{path}: client {client} is already in another of the ledgers")
            merged[client] = entries
    draft = to.with_name(to.name + ".part")
    with _os_errors("write", to):
        with draft.open("wb") as file:
            for client in sorted(merged):
                file.writelines(entry.line() for entry in merged[client])
            file.flush()
            os.fsync(file.fileno())
        draft.replace(to)
        durable.sync_folder(to.parent)


def _parse(data: bytes, name: str) -> list[Entry]:
    last: dict[str, Entry] = {}
    seen: set[tuple[str, str, int]] = set()
    entries = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        where = f"{name} line {number}"
        entry = _parse_line(line, where)
        previous = last.get(entry.client)
        where += f" (client {entry.client}, entry {entry.index})"
        index, prev = (previous.index + 1, previous.sha256) if previous else (0, GENESIS)
        if entry.index != index:
            raise LedgerError(f"{where}: {expected('index', entry.index, f'to be {index}')}")
        if entry.prev != prev:
            raise LedgerError(f"{where}: the chain is broken, prev is not the entry before")
        key = (entry.client, entry.run_id, entry.round)
        if key in seen:
            raise LedgerError(f"{where}: round {entry.round} of run {entry.run_id} charged twice")
        seen.add(key)
        last[entry.client] = entry
        entries.append(entry)
    return entries


def _parse_line(line: bytes, where: str) -> Entry:
    try:
        fields = canonical.decode(line)
    except ValueError as error:
        raise LedgerError(f"{where}: {error}") from error
    claimed = fields.pop("sha256", None)
    if (fields.pop("kind", None), fields.pop("version", None)) != (KIND, VERSION):
        raise LedgerError(f"{where}: not a {KIND} of version {VERSION}")
    if {key: type(value) for key, value in fields.items()} != _TYPES:
        raise LedgerError(f"{where}: fields are missing, unknown or of the wrong type")
    entry = Entry(**fields)
    if entry.sha256 != claimed or entry.line() != line + b"\n":
        raise LedgerError(f"{where}: changed after it was written, its hash doesn't match")
    return entry


_TYPES: dict[str, type] = {
    **dict.fromkeys(("client", "time", "run_id", "dataset", "unit", "neighbouring"), str),
    **dict.fromkeys(("plan_sha256", "prev"), str),
    **dict.fromkeys(("index", "round"), int),
    "event": dict,
}


_LAST_FIELD = (
    b'"version":1}'  # what a canonical line ends with; inside a value the quotes are escaped
)


def _mend(fd: int, path: Path, data: bytes) -> bytes:
    """Deal with a last line that lacks its newline (see the module's text)."""
    whole, _, tail = data.rpartition(b"\n")
    whole += b"\n" if whole else b""
    try:
        _parse(data + b"\n", str(path))
    except LedgerError as error:
        if _LAST_FIELD in tail:  # whole, so perhaps once durable: damaged, not torn
            raise LedgerError(f"{error}: its last line is damaged, nothing was changed") from error
        with path.with_name(path.name + ".torn").open("ab") as kept:
            kept.write(tail + b"\n")
            kept.flush()
            os.fsync(kept.fileno())
        os.ftruncate(fd, len(whole))
        os.fsync(fd)
        return whole
    durable.append(fd, b"\n")
    return data + b"\n"


@contextmanager
def _os_errors(verb: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LedgerError(f"can't {verb} the ledger {path}: {error.strerror}") from error

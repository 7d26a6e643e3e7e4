"""Entries: what a ledger says, in one canonical encoding, chained by hash and signed.

An entry's *body* is canonical JSON (see `sordino.core.canonical`) of its fields, `kind`, `version`
and `state`. Its SHA-256 is the entry's name; the next entry carries it as `prev`. A *line* is the
body with `sha256` and the holder's Ed25519 `signature` of it: every entry was the head once, and
stays signed. What the entries amount to, and in which order they may come, is `book`'s matter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Final, Protocol

from sordino.core import canonical
from sordino.core.errors import LedgerError, expected

GENESIS: Final = "0" * 64
KIND: Final = "sordino.ledger"
VERSION: Final = 2
WHOLE: Final = "all"
"""The time block of a dataset that isn't divided into blocks. It overlaps every block."""

Fields = Mapping[str, str | int | float]

_HEX64 = re.compile(r"[0-9a-f]{64}")
_HEX128 = re.compile(r"[0-9a-f]{128}")
_WORD = re.compile(r"[a-z][a-z0-9-]{0,63}")


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
    """What every entry has.

    Attributes:
        client: Whose ledger.
        index: 0, 1, 2, .. without a gap.
        time: When, by the device's clock: for people, not for order.
        prev: The SHA-256 of the entry before, or 64 zeros.
    """

    state: ClassVar[str] = ""

    client: str
    index: int
    time: str
    prev: str

    def body(self) -> dict[str, Any]:
        """Everything that the entry's hash covers."""
        return {"kind": KIND, "version": VERSION, "state": self.state, **_plain(self)}

    @cached_property
    def sha256(self) -> str:
        """The entry's name, which the next one carries as `prev`."""
        return canonical.sha256_hex(canonical.encode(self.body()))


@dataclass(frozen=True, kw_only=True)
class Opened(Entry):
    """The first entry: binds the ledger to its holder and the holder's public key."""

    state: ClassVar[str] = "opened"

    public_key: str


@dataclass(frozen=True, kw_only=True)
class Reserve(Entry):
    """Budget set aside for one round of one plan: counted from here on, whatever follows.

    Attributes:
        run_id: The run that asked.
        round: Which of its rounds.
        dataset: The stable name of the records: not a hash of them.
        block: The time block of the records, or `WHOLE`.
        unit: What is protected: `record` or `user`.
        neighbouring: The neighbouring relation.
        event: The mechanism: all that accounting needs.
        plan_sha256: The plan that was charged.
        policy_sha256: The device's policy that allowed it; empty if none was asked.
    """

    state: ClassVar[str] = "reserve"

    run_id: str
    round: int
    dataset: str
    block: str
    unit: str
    neighbouring: str
    event: Fields
    plan_sha256: str
    policy_sha256: str

    def __post_init__(self) -> None:
        # A charge is shown to whoever asks, and counted by caps: nobody may change it in between.
        object.__setattr__(self, "event", MappingProxyType(dict(self.event)))

    def terms(self) -> dict[str, Any]:
        """What a retry must ask for again, to the letter."""
        skipped = {"client", "index", "time", "prev", "policy_sha256"}
        return {name: value for name, value in _plain(self).items() if name not in skipped}


@dataclass(frozen=True, kw_only=True)
class Commit(Entry):
    """The point of no return of a reservation: from here on data may be touched, noise drawn."""

    state: ClassVar[str] = "commit"

    charge: int  # the index of its Reserve, as in the states below


@dataclass(frozen=True, kw_only=True)
class Released(Entry):
    """The noised update is kept under this hash, and may leave: these bytes, and no others."""

    state: ClassVar[str] = "released"

    charge: int
    artefact: str


@dataclass(frozen=True, kw_only=True)
class Abandoned(Entry):
    """Nothing of this charge will ever leave. It stays charged."""

    state: ClassVar[str] = "abandoned"

    charge: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Retired(Entry):
    """A block whose budget is spent: nothing is charged to it any more."""

    state: ClassVar[str] = "retired"

    dataset: str
    block: str


@dataclass(frozen=True, kw_only=True)
class Rekeyed(Entry):
    """The holder's next key, signed by the one before; `proof` is the next key's own signature."""

    state: ClassVar[str] = "rekeyed"

    public_key: str
    proof: str


STATES: Final[dict[str, type[Entry]]] = {
    cls.state: cls for cls in (Opened, Reserve, Commit, Released, Abandoned, Retired, Rekeyed)
}


@dataclass(frozen=True)
class Signed:
    """An entry with its holder's signature: one line of an export, one row of a ledger."""

    entry: Entry
    signature: str

    def line(self) -> bytes:
        """The only encoding, without a newline."""
        entry = self.entry
        return canonical.encode(
            {**entry.body(), "sha256": entry.sha256, "signature": self.signature}
        )


def parse_line(line: bytes) -> Signed:
    """Read a line, accepting exactly the bytes that `Signed.line` writes.

    The signature's form is checked here, and whether it holds where the key is known.

    Raises:
        LedgerError: Anything else.
    """
    try:
        values = canonical.decode(line)
    except ValueError as error:
        raise LedgerError(f"not an entry: {error}") from error
    claimed, signature = values.pop("sha256", None), values.pop("signature", None)
    if canonical.sha256_hex(canonical.encode(values)) != claimed:
        raise LedgerError("changed after it was written: its hash doesn't match")
    if not (isinstance(signature, str) and _HEX128.fullmatch(signature)):
        raise LedgerError("not an entry: the signature isn't 128 hexadecimal digits")
    if (values.pop("kind", None), values.pop("version", None)) != (KIND, VERSION):
        raise LedgerError(f"not a {KIND} entry of version {VERSION}")
    cls = STATES.get(str(values.pop("state", None)))
    if cls is None or {key: type(value) for key, value in values.items()} != _TYPES[cls]:
        raise LedgerError("fields are missing, unknown or of the wrong type")
    entry = cls(**values)
    check_values(entry)
    return Signed(entry, signature)


def check_values(entry: Entry) -> None:
    """Refuse values that no entry may have.

    Raises:
        LedgerError: Naming the field.
    """
    for name, value in vars(entry).items():
        rule = _RULES.get(name)
        if rule and isinstance(value, str) and not rule.fullmatch(value):
            raise LedgerError(expected(name, value, f"to match {rule.pattern}"))
        if name in _NOT_EMPTY and not value:
            raise LedgerError(expected(name, value, "not empty"))
        if isinstance(value, int) and value < (1 if name == "round" else 0):
            raise LedgerError(expected(name, value, "not below its first value"))
    try:
        datetime.fromisoformat(entry.time)
    except ValueError as error:
        raise LedgerError(expected("time", entry.time, "an ISO 8601 time")) from error


def against(
    charged: Sequence[Reserve], new: Reserve, unit: str | None = None
) -> tuple[Reserve, ...]:
    """The charges that add up with `new` for one unit: what a lifetime cap on it is about.

    Unit record: every charge of the same dataset whose time block overlaps (a record is in one
    block). Unit user: every charge of the device, for one user's data is in all of its blocks and
    datasets. Charges that protect the other unit are among them: what such an event costs this one
    is the accountant's to say.

    Args:
        charged: All charges of a device.
        new: The charge that they are to be added to.
        unit: Whose loss; None: that of the unit which `new` protects.
    """
    if (unit or new.unit) == "user":
        return tuple(charged)
    return tuple(
        entry
        for entry in charged
        if entry.dataset == new.dataset
        and (entry.block == new.block or WHOLE in (entry.block, new.block))
    )


def _plain(entry: Entry) -> dict[str, Any]:
    values = {field.name: getattr(entry, field.name) for field in fields(entry)}
    if "event" in values:
        values["event"] = dict(values["event"])
    return values


_RULES = {
    **dict.fromkeys(("prev", "plan_sha256", "artefact", "public_key"), _HEX64),
    "policy_sha256": re.compile(r"([0-9a-f]{64})?"),
    "proof": _HEX128,
    "reason": _WORD,
    "unit": re.compile(r"record|user"),
}
_NOT_EMPTY = {"client", "dataset", "block", "run_id", "neighbouring", "event"}
_KINDS = {"str": str, "int": int, "Fields": dict}  # annotations are strings here
_TYPES: dict[type[Entry], dict[str, type]] = {
    cls: {field.name: _KINDS[str(field.type)] for field in fields(cls)} for cls in STATES.values()
}


@dataclass(frozen=True, kw_only=True)
class Head:
    """Where a ledger stood once: kept by another party, it exposes a rollback."""

    client: str
    index: int
    sha256: str
    public_key: str

    def line(self) -> bytes:
        """Canonical JSON, without a newline."""
        return canonical.encode(asdict(self))

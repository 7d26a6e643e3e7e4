"""Ledgers as files that leave the device: exports (JSONL) and heads that another party keeps.

An export is the lines of one ledger or of several, client by client in the order of their names:
what a device signed, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.core import durable
from sordino.core.errors import LedgerError, expected
from sordino.privacy.ledger import database
from sordino.privacy.ledger.book import Book, naming, replay
from sordino.privacy.ledger.entries import Head, Reserve, parse_line
from sordino.privacy.ledger.writer import errors


@dataclass(frozen=True, kw_only=True)
class KeptHead:
    """What a party remembers of somebody's ledger: that it had this entry at this place.

    `client` and `public_key` are empty where that party never learnt them: a coordinator's receipts
    hold an index and a hash.
    """

    index: int
    sha256: str
    client: str = ""
    public_key: str = ""


def read_ledger(path: Path) -> dict[str, Book]:
    """Read and check a ledger, or an export of one or several; changes nothing.

    The hashes, the order and the heads' signatures are checked; `verify` checks all there is.

    Returns:
        Each client's book.

    Raises:
        LedgerError: The file can't be read, or an entry, which is named, is not what it should be.
    """
    books: dict[str, Book] = {}
    for client, lines in _by_client(read_lines(path), path).items():
        books[client] = Book()
        replay(lines, books[client], f"{path}: client {client},")
    return books


def read_charges(path: Path) -> dict[str, tuple[Reserve, ...]]:
    """Everything that each client was charged, oldest first; see `read_ledger`.

    Raises:
        LedgerError: As `read_ledger`.
    """
    return {client: book.reserved for client, book in read_ledger(path).items()}


def read_lines(path: Path) -> list[bytes]:
    """The lines of a ledger or an export, unchecked, without their newlines.

    Raises:
        LedgerError: The file can't be read, or its last line has no newline.
    """
    with errors("read", path):
        with path.open("rb") as file:
            is_database = file.read(len(database.MAGIC)) == database.MAGIC
        if is_database:
            return database.read(path)
        return split_lines(path.read_bytes(), str(path))


def split_lines(data: bytes, name: str) -> list[bytes]:
    """Cut an export into its lines.

    Raises:
        LedgerError: The last line has no newline.
    """
    lines = data.split(b"\n")
    if lines.pop():
        raise LedgerError(f"{name} line {len(lines) + 1}: torn, its newline is missing")
    return lines


def export_ledgers(paths: Iterable[Path], to: Path) -> tuple[Head, ...]:
    """Write several clients' checked ledgers as one file, by client id; returns their heads.

    Raises:
        LedgerError: A ledger is defective, two belong to one client, or the disk refuses.
    """
    merged: dict[str, list[bytes]] = {}
    heads = {}
    for path in paths:
        for client, lines in _by_client(read_lines(path), path).items():
            if client in merged:
                raise LedgerError(f"{path}: client {client} is already in another of the ledgers")
            book = Book()
            replay(lines, book, f"{path}: client {client},")
            merged[client], heads[client] = lines, book.head_to_keep()
    with errors("write", to):
        data = b"".join(line + b"\n" for client in sorted(merged) for line in merged[client])
        durable.write_whole(to, data)
    return tuple(heads[client] for client in sorted(heads))


def write_heads(heads: Iterable[Head], to: Path) -> None:
    """Write heads for another party to keep, a line of canonical JSON each.

    Raises:
        LedgerError: The disk refuses.
    """
    with errors("write", to):
        durable.write_whole(to, b"".join(head.line() + b"\n" for head in heads))


def read_heads(path: Path) -> tuple[KeptHead, ...]:
    """Read kept heads: JSON lines with `index` and `sha256`, maybe `client` and `public_key`.

    Raises:
        LedgerError: The file can't be read, or a line is something else.
    """
    with errors("read", path):
        lines = path.read_bytes().splitlines()
    heads = []
    for number, line in enumerate(lines, start=1):
        with naming(f"{path} line {number}"):
            heads.append(_kept_head(line))
    return tuple(heads)


def _kept_head(line: bytes) -> KeptHead:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise LedgerError(f"not JSON: {error}") from error
    kinds: Mapping[str, Any] = {"index": int, "sha256": str, "client": str, "public_key": str}
    known = isinstance(values, dict) and {"index", "sha256"} <= set(values) <= set(kinds)
    if not known or any(type(value) is not kinds[key] for key, value in values.items()):
        raise LedgerError(
            expected("a kept head", line[:80], "to have index, sha256, maybe client, public_key")
        )
    return KeptHead(**values)


def _by_client(lines: Iterable[bytes], path: Path) -> dict[str, list[bytes]]:
    """Each client's lines; a client's are together."""
    by_client: dict[str, list[bytes]] = {}
    last = None
    for number, line in enumerate(lines, start=1):
        with naming(f"{path} line {number}"):
            client = parse_line(line).entry.client
            if client != last and client in by_client:
                raise LedgerError(f"client {client} comes twice")
        by_client.setdefault(client, []).append(line)
        last = client
    return by_client

"""Messages ↔ bytes, and the small records that the larger ones are made of.

The same record always gives the same bytes, so that a hash of them names it. Decoding goes through
the gate first, then checks what no single field can show. Every refusal is a `ContractError` with a
stable word, and what is refused has changed nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from sordino.core import canonical
from sordino.core.contract import gate
from sordino.core.contract.records import Artefact, SignedHead
from sordino.core.errors import ConfigError, ContractError, WireError, expected
from sordino.core.records import Receipt
from sordino.protos.v1 import common_pb2

MessageT = TypeVar("MessageT", bound=Message)


def to_bytes(message: Message) -> bytes:
    """Encode a message; the same content gives the same bytes.

    Raises:
        ContractError: It is one that the gate would refuse: nothing is sent that isn't taken.
    """
    data: bytes = message.SerializeToString(deterministic=True)
    gate.check(data, message.DESCRIPTOR)
    return data


def from_bytes(data: bytes, kind: type[MessageT]) -> MessageT:
    """Decode a message, strictly.

    Raises:
        ContractError: As `gate.check`.
    """
    gate.check(data, kind.DESCRIPTOR)
    return parse(data, kind)


def parse(data: bytes | memoryview, kind: type[MessageT]) -> MessageT:
    """Let protobuf read bytes that passed the gate.

    Raises:
        ContractError: ``malformed``: the gate was wrong about them.
    """
    try:
        message: MessageT = kind.FromString(data)
    except DecodeError as error:
        raise ContractError("malformed", f"not a {kind.DESCRIPTOR.name}: {error}") from error
    return message


def head_message(head: SignedHead) -> common_pb2.LedgerHead:
    """A signed head as it travels."""
    return common_pb2.LedgerHead(
        entry_index=head.receipt.entry_index,
        entry_sha256=bytes.fromhex(head.receipt.ledger_head),
        public_key=bytes.fromhex(head.public_key),
        signature=bytes.fromhex(head.signature),
    )


def read_head(message: common_pb2.LedgerHead) -> SignedHead:
    """A signed head from a message that passed the gate."""
    return SignedHead(
        receipt=Receipt(ledger_head=message.entry_sha256.hex(), entry_index=message.entry_index),
        public_key=message.public_key.hex(),
        signature=message.signature.hex(),
    )


def artefact_message(artefact: Artefact, kind: common_pb2.ArtefactKind) -> common_pb2.Artefact:
    """A file's name as it travels."""
    return common_pb2.Artefact(sha256=bytes.fromhex(artefact.sha256), size=artefact.size, kind=kind)


def read_artefact(message: common_pb2.Artefact, *kinds: common_pb2.ArtefactKind) -> Artefact:
    """A file's name from a message that passed the gate; it must be of one of some kinds.

    Raises:
        ContractError: ``wrong-kind``: it is another kind of file.
    """
    if message.kind not in kinds:
        required = f"one of {', '.join(common_pb2.ArtefactKind.Name(kind) for kind in kinds)}"
        got = common_pb2.ArtefactKind.Name(message.kind)
        raise ContractError("wrong-kind", expected("kind of the artefact", got, required))
    return Artefact(sha256=message.sha256.hex(), size=message.size)


def require_hash(data: bytes, sha256: str) -> None:
    """Refuse bytes that aren't the ones that were named, as ``wrong-hash``."""
    if (found := canonical.sha256_hex(data)) != sha256:
        raise ContractError("wrong-hash", expected("sha256", found, f"= {sha256}"))


@contextmanager
def named(reason: str) -> Iterator[None]:
    """Give the refusals of the records' own checks their word."""
    try:
        yield
    except ContractError:
        raise
    except (ConfigError, WireError, ValueError) as error:
        raise ContractError(reason, str(error)) from error

"""Signed requests: what a device states with each call, over the very bytes that travel.

The key is that of the device's certificate: ECDSA over P-256, which the key stores of phones hold
in hardware and every TLS library takes for a client certificate.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf import message_factory
from google.protobuf.message import Message

from sordino.core.contract.codec import from_bytes, to_bytes
from sordino.core.errors import ContractError, expected
from sordino.protos.v1 import common_pb2, fleet_pb2, rules_pb2

PREFIX: Final = b"sordino request v1\0"
"""What a signature covers before the statement: no other signature of the key begins so."""

NONCE_BYTES: Final = 16
MAX_CLOCK_SKEW_MS: Final = 600_000
"""How far a device's clock, once corrected, may be off."""

ECDSA: Final = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A request whose signature holds. Its nonce is still to be remembered.

    Attributes:
        statement: What the device stated.
        statement_sha256: Hash of the statement's bytes: the same nonce with the same hash is a
            retry, with another a replay.
        body: The method's own request.
    """

    statement: common_pb2.Statement
    statement_sha256: str
    body: Message


def seal(
    key: ec.EllipticCurvePrivateKey,
    body: Message,
    *,
    device_id: str,
    method: str,
    now_unix_ms: int,
    run_id: str = "",
    round_number: int = 0,
) -> common_pb2.Signed:
    """Sign a request with a new nonce. A retry sends what this returned, not a second one.

    Args:
        key: The key of the device's certificate, P-256.
        body: The message that the method's `body` rule names.
        device_id: Who asks.
        method: Full path, ``/sordino.v1.Fleet/Hello``.
        now_unix_ms: The device's clock, corrected by the coordinator's.
        run_id: The run that it is about, if any.
        round_number: The round that it is about, if any.

    Raises:
        ContractError: The body isn't the method's, or something is beyond its rules.
    """
    if body.DESCRIPTOR != body_kind(method).DESCRIPTOR:
        raise ContractError("wrong-method", expected("body", body.DESCRIPTOR.name, f"of {method}"))
    encoded = to_bytes(body)
    statement = to_bytes(
        common_pb2.Statement(
            device_id=device_id,
            method=method,
            run_id=run_id,
            round=round_number,
            nonce=secrets.token_bytes(NONCE_BYTES),
            issued_at_unix_ms=now_unix_ms,
            body_sha256=hashlib.sha256(encoded).digest(),
        )
    )
    signature = key.sign(PREFIX + statement, ECDSA)
    return common_pb2.Signed(statement=statement, body=encoded, signature=signature)


def open_signed(
    data: bytes,
    key: ec.EllipticCurvePublicKey,
    *,
    device_id: str,
    method: str,
    now_unix_ms: int,
) -> Opened:
    """Check a signed request; the body is parsed only after the signature held.

    Args:
        data: The encoding of a `Signed`, as it came.
        key: The public key of the connection's certificate.
        device_id: Whose certificate it is.
        method: The method that was called.
        now_unix_ms: The coordinator's clock.

    Raises:
        ContractError: As `gate.check`, or with reason ``bad-signature``, ``wrong-device``,
            ``wrong-method``, ``wrong-body`` or ``clock-skew``.
    """
    signed = from_bytes(data, common_pb2.Signed)
    statement = from_bytes(signed.statement, common_pb2.Statement)
    try:
        key.verify(signed.signature, PREFIX + signed.statement, ECDSA)
    except InvalidSignature as error:
        raise ContractError("bad-signature", "the certificate's key didn't sign this") from error
    for word, got, wanted in (
        ("device", statement.device_id, device_id),
        ("method", statement.method, method),
    ):
        if got != wanted:
            raise ContractError(f"wrong-{word}", expected(word, got, f"= {wanted!r}"))
    if hashlib.sha256(signed.body).digest() != statement.body_sha256:
        raise ContractError("wrong-body", "the body is not the one that was signed")
    skew = statement.issued_at_unix_ms - now_unix_ms
    if abs(skew) > MAX_CLOCK_SKEW_MS:
        required = f"within {MAX_CLOCK_SKEW_MS} ms"
        raise ContractError("clock-skew", expected("clock", f"{skew:+} ms off", required))
    return Opened(
        statement=statement,
        statement_sha256=hashlib.sha256(signed.statement).hexdigest(),
        body=from_bytes(signed.body, body_kind(method)),
    )


@lru_cache(maxsize=64)
def body_kind(method: str) -> type[Message]:
    """The message that a method's signed body is.

    Raises:
        ContractError: ``wrong-method``: there is no such method, or its requests aren't signed.
    """
    service, _, name = method.removeprefix("/").partition("/")
    found = fleet_pb2.DESCRIPTOR.services_by_name["Fleet"]
    known = found.methods_by_name.get(name) if service == found.full_name else None
    rules = known.GetOptions().Extensions[rules_pb2.method_rules] if known else None
    if rules is None or not rules.body:
        raise ContractError("wrong-method", expected("method", method, "one with signed requests"))
    body = fleet_pb2.DESCRIPTOR.message_types_by_name[rules.body]
    kind: type[Message] = message_factory.GetMessageClass(body)
    return kind

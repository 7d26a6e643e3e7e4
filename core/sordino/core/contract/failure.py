"""Failures as they travel: a stable word, gRPC's code that follows from it, and what may be done.

They go in the trailing metadata `TRAILER`. docs/decisions/0020-contract.md says why they are a
message of our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from google.protobuf.message import DecodeError

from sordino.core.contract.codec import to_bytes
from sordino.core.errors import ContractError, expected
from sordino.protos.v1 import common_pb2

TRAILER: Final = "sordino-failure-bin"
MAX_FAILURE_BYTES: Final = 4096
"""gRPC's own limit of all metadata is 8192, of which base64 takes a third."""

Code = Literal[
    "INVALID_ARGUMENT",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "INTERNAL",
]
Retry = Literal["never", "same", "signed-anew", "resume"]


@dataclass(frozen=True)
class Reason:
    """What follows from a word: gRPC's status code, and what the caller may do."""

    code: Code
    retry: Retry


def _all(words: str, code: Code, retry: Retry) -> dict[str, Reason]:
    return dict.fromkeys(words.split(), Reason(code, retry))


REASONS: Final[dict[str, Reason]] = {
    # The bytes: `gate` and `codec`.
    **_all(
        "bad-manifest bad-number bad-settings bad-shape bad-text bad-value field-twice malformed "
        "missing-field too-long too-many truncated two-choices unknown-field unknown-value "
        "unknown-work unsorted-tensors wrong-adapter wrong-dtype wrong-hash wrong-kind "
        "wrong-key wrong-length wrong-receipt wrong-size wrong-type",
        "INVALID_ARGUMENT",
        "never",
    ),
    # Who asks.
    **_all("bad-signature no-certificate old-tls", "UNAUTHENTICATED", "never"),
    **_all("wrong-authority wrong-device", "UNAUTHENTICATED", "never"),
    **_all("wrong-body wrong-method", "UNAUTHENTICATED", "never"),
    **_all("clock-skew", "UNAUTHENTICATED", "signed-anew"),
    **_all("nonce-replayed", "UNAUTHENTICATED", "signed-anew"),
    **_all("bad-token certificate-expired token-used", "PERMISSION_DENIED", "never"),
    **_all("certificate-revoked not-permitted token-expired", "PERMISSION_DENIED", "never"),
    # What it is about.
    **_all("unknown-artefact unknown-device unknown-round", "NOT_FOUND", "never"),
    **_all("unknown-run unknown-task unknown-upload", "NOT_FOUND", "never"),
    **_all("another-answer another-request run-exists", "ALREADY_EXISTS", "never"),
    **_all("ledger-rolled-back revision-too-old", "FAILED_PRECONDITION", "never"),
    **_all("round-over run-not-paused run-over task-over", "FAILED_PRECONDITION", "never"),
    **_all("cohort-fixed", "FAILED_PRECONDITION", "never"),
    # An answer that the round or the look doesn't allow (`aggregate.validate_update`,
    # `metrics.validate_measurement`).
    **_all(
        "extra-tensor missing-tensor no-receipt not-finite out-of-range over-norm wrong-plan "
        "wrong-round wrong-run wrong-shape",
        "INVALID_ARGUMENT",
        "never",
    ),
    # Sending.
    **_all("wrong-offset", "OUT_OF_RANGE", "resume"),
    **_all("superseded", "ABORTED", "resume"),
    **_all("too-slow", "DEADLINE_EXCEEDED", "resume"),
    **_all("quota-full rate-limited too-many-uploads", "RESOURCE_EXHAUSTED", "same"),
    **_all("starting stopping storage-full", "UNAVAILABLE", "same"),
    **_all("internal", "INTERNAL", "same"),
}
"""Every word of a coordinator's failure. A device's refusals of tasks are words of their own."""

_RETRIES: Final[dict[Retry, common_pb2.Retry]] = {
    "never": common_pb2.RETRY_NEVER,
    "same": common_pb2.RETRY_SAME,
    "signed-anew": common_pb2.RETRY_SIGNED_ANEW,
    "resume": common_pb2.RETRY_RESUME,
}
_MOST_TEXT = 1024


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a call failed, as its caller reads it.

    Attributes:
        reason: The stable word.
        message: For people.
        retry: What may be done.
        retry_after_ms: Not before so many milliseconds.
        now_unix_ms: The coordinator's clock; 0 where it isn't said.
    """

    reason: str
    message: str
    retry: Retry
    retry_after_ms: int = 0
    now_unix_ms: int = 0


def encode_failure(
    reason: str, message: str, *, retry_after_ms: int = 0, now_unix_ms: int = 0
) -> bytes:
    """Encode a failure for the trailing metadata.

    Args:
        reason: One of `REASONS`.
        message: For people; what can't be printed is replaced, and what is too long is cut.
        retry_after_ms: Not before so many milliseconds.
        now_unix_ms: The coordinator's clock, for ``clock-skew``.

    Raises:
        ContractError: ``bad-value``: the word isn't in the table.
    """
    if reason not in REASONS:
        raise ContractError("bad-value", expected("reason", reason, "in the table of reasons"))
    line = "".join(c if c.isprintable() else " " for c in message)
    return to_bytes(
        common_pb2.Failure(
            reason=reason,
            message=line.encode()[:_MOST_TEXT].decode(errors="ignore"),
            retry=_RETRIES[REASONS[reason].retry],
            retry_after_ms=retry_after_ms,
            now_unix_ms=now_unix_ms,
        )
    )


def decode_failure(data: bytes) -> Failure:
    """Read a failure, which may be of a later revision: what isn't known is passed over.

    Raises:
        ContractError: ``malformed``: not a failure at all. The call failed all the same.
    """
    if len(data) > MAX_FAILURE_BYTES:
        required = f"<= {MAX_FAILURE_BYTES}"
        raise ContractError("malformed", expected("bytes of a failure", len(data), required))
    try:
        message = common_pb2.Failure.FromString(data)
    except DecodeError as error:
        raise ContractError("malformed", "not a failure") from error
    retries = {number: name for name, number in _RETRIES.items()}
    return Failure(
        reason=message.reason,
        message=message.message,
        retry=retries.get(message.retry, "never"),
        retry_after_ms=message.retry_after_ms,
        now_unix_ms=message.now_unix_ms,
    )

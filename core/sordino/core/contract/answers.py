"""What a device answers: updates and measurements, each with the receipt of its charge."""

from __future__ import annotations

from sordino.core.contract import gate
from sordino.core.contract.codec import (
    from_bytes,
    head_message,
    named,
    parse,
    read_head,
    to_bytes,
)
from sordino.core.contract.records import SignedHead
from sordino.core.contract.tensors import encode_tensors, read_tensors
from sordino.core.errors import ContractError, expected
from sordino.core.records import Measurement, Update
from sordino.protos.v1 import work_pb2


def encode_update(update: Update, head: SignedHead | None) -> bytes:
    """Encode an update.

    Args:
        update: With its receipt, but under a plan without privacy.
        head: The same receipt, signed; None where the update has none.

    Raises:
        ContractError: ``wrong-receipt``: the two differ; or the update is too large to travel.
    """
    _require_same(update, head)
    first = work_pb2.Update(
        run_id=update.run_id,
        round=update.round,
        plan_sha256=bytes.fromhex(update.plan_sha256),
    )
    last = work_pb2.Update(receipt=head_message(head) if head else None)
    parts = [
        first.SerializeToString(deterministic=True),
        *encode_tensors(work_pb2.Update, update.tensors),
        last.SerializeToString(deterministic=True),
    ]
    data = b"".join(parts)
    gate.check(data, work_pb2.Update.DESCRIPTOR)
    return data


def decode_update(data: bytes, *, at_most: int) -> tuple[Update, SignedHead | None]:
    """Decode an update. What depends on the round (names, shapes, finite, norm) is still to check.

    Args:
        data: All bytes of the upload.
        at_most: `max_answer_bytes` of its task.

    Raises:
        ContractError: As `gate.check`, or with reason ``unsorted-tensors``, ``bad-shape``,
            ``wrong-size`` or ``bad-value``.
    """
    if len(data) > at_most:
        raise ContractError("too-long", expected("bytes of the update", len(data), f"<= {at_most}"))
    gate.check(data, work_pb2.Update.DESCRIPTOR)
    rest, items = gate.cut_out(data, work_pb2.Update.TENSORS_FIELD_NUMBER)
    message = parse(rest, work_pb2.Update)
    with named("bad-value"):
        head = read_head(message.receipt) if message.HasField("receipt") else None
        update = Update(
            run_id=message.run_id,
            round=message.round,
            plan_sha256=message.plan_sha256.hex(),
            tensors=read_tensors(items),
            receipt=head.receipt if head else None,
        )
    return update, head


def encode_measurement(measurement: Measurement, head: SignedHead) -> bytes:
    """Encode an answer to a paid look.

    Args:
        measurement: With its receipt.
        head: The same receipt, signed.

    Raises:
        ContractError: ``wrong-receipt``: the two differ.
    """
    _require_same(measurement, head)
    message = work_pb2.Measurement(
        run_id=measurement.run_id,
        round=measurement.round,
        plan_sha256=bytes.fromhex(measurement.plan_sha256),
        value=measurement.value,
        receipt=head_message(head),
    )
    return to_bytes(message)


def decode_measurement(data: bytes) -> tuple[Measurement, SignedHead]:
    """Decode an answer to a paid look. That it is the look's, and its bounds, are still to check.

    Raises:
        ContractError: As `gate.check`, or with reason ``bad-value``.
    """
    message = from_bytes(data, work_pb2.Measurement)
    with named("bad-value"):
        head = read_head(message.receipt)
        measurement = Measurement(
            run_id=message.run_id,
            round=message.round,
            plan_sha256=message.plan_sha256.hex(),
            value=message.value,
            receipt=head.receipt,
        )
    return measurement, head


def _require_same(answer: Update | Measurement, head: SignedHead | None) -> None:
    if answer.receipt != (head.receipt if head else None):
        raise ContractError("wrong-receipt", "the signed head is not the answer's receipt")

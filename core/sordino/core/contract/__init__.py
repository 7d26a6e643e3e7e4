"""The fleet's contract in Python: records ↔ the bytes of ``sordino.v1``, signatures, failures.

docs/contract.md describes the protocol. Nothing here knows Flower or gRPC.
"""

from sordino.core.contract.answers import (
    decode_measurement,
    decode_update,
    encode_measurement,
    encode_update,
)
from sordino.core.contract.codec import (
    artefact_message,
    from_bytes,
    head_message,
    read_artefact,
    read_head,
    to_bytes,
)
from sordino.core.contract.failure import (
    REASONS,
    TRAILER,
    Failure,
    Reason,
    decode_failure,
    encode_failure,
)
from sordino.core.contract.records import REVISION, Artefact, BaseKind, SignedHead, TaskOrder
from sordino.core.contract.signing import MAX_CLOCK_SKEW_MS, Opened, body_kind, open_signed, seal
from sordino.core.contract.tasks import decode_task, encode_task, read_task, task_message
from sordino.core.contract.tensors import decode_adapter, decode_manifest, encode_adapter

__all__ = [
    "MAX_CLOCK_SKEW_MS",
    "REASONS",
    "REVISION",
    "TRAILER",
    "Artefact",
    "BaseKind",
    "Failure",
    "Opened",
    "Reason",
    "SignedHead",
    "TaskOrder",
    "artefact_message",
    "body_kind",
    "decode_adapter",
    "decode_failure",
    "decode_manifest",
    "decode_measurement",
    "decode_task",
    "decode_update",
    "encode_adapter",
    "encode_failure",
    "encode_measurement",
    "encode_task",
    "encode_update",
    "from_bytes",
    "head_message",
    "open_signed",
    "read_artefact",
    "read_head",
    "read_task",
    "seal",
    "task_message",
    "to_bytes",
]

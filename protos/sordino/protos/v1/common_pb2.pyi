from sordino.protos.v1 import rules_pb2 as _rules_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Retry(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RETRY_UNSPECIFIED: _ClassVar[Retry]
    RETRY_NEVER: _ClassVar[Retry]
    RETRY_SAME: _ClassVar[Retry]
    RETRY_SIGNED_ANEW: _ClassVar[Retry]
    RETRY_RESUME: _ClassVar[Retry]

class ArtefactKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ARTEFACT_KIND_UNSPECIFIED: _ClassVar[ArtefactKind]
    ARTEFACT_KIND_BASE_GGUF: _ClassVar[ArtefactKind]
    ARTEFACT_KIND_MANIFEST_JSON: _ClassVar[ArtefactKind]
    ARTEFACT_KIND_ADAPTER: _ClassVar[ArtefactKind]
    ARTEFACT_KIND_UPDATE: _ClassVar[ArtefactKind]
    ARTEFACT_KIND_RUN_ZIP: _ClassVar[ArtefactKind]
    ARTEFACT_KIND_PEFT_ZIP: _ClassVar[ArtefactKind]
    ARTEFACT_KIND_LEDGER_HEADS_JSONL: _ClassVar[ArtefactKind]
    ARTEFACT_KIND_MEASUREMENT: _ClassVar[ArtefactKind]
    ARTEFACT_KIND_BASE_FOLDER: _ClassVar[ArtefactKind]
RETRY_UNSPECIFIED: Retry
RETRY_NEVER: Retry
RETRY_SAME: Retry
RETRY_SIGNED_ANEW: Retry
RETRY_RESUME: Retry
ARTEFACT_KIND_UNSPECIFIED: ArtefactKind
ARTEFACT_KIND_BASE_GGUF: ArtefactKind
ARTEFACT_KIND_MANIFEST_JSON: ArtefactKind
ARTEFACT_KIND_ADAPTER: ArtefactKind
ARTEFACT_KIND_UPDATE: ArtefactKind
ARTEFACT_KIND_RUN_ZIP: ArtefactKind
ARTEFACT_KIND_PEFT_ZIP: ArtefactKind
ARTEFACT_KIND_LEDGER_HEADS_JSONL: ArtefactKind
ARTEFACT_KIND_MEASUREMENT: ArtefactKind
ARTEFACT_KIND_BASE_FOLDER: ArtefactKind

class Signed(_message.Message):
    __slots__ = ("statement", "body", "signature")
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    statement: bytes
    body: bytes
    signature: bytes
    def __init__(self, statement: _Optional[bytes] = ..., body: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Statement(_message.Message):
    __slots__ = ("device_id", "method", "run_id", "round", "nonce", "issued_at_unix_ms", "body_sha256")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    BODY_SHA256_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    method: str
    run_id: str
    round: int
    nonce: bytes
    issued_at_unix_ms: int
    body_sha256: bytes
    def __init__(self, device_id: _Optional[str] = ..., method: _Optional[str] = ..., run_id: _Optional[str] = ..., round: _Optional[int] = ..., nonce: _Optional[bytes] = ..., issued_at_unix_ms: _Optional[int] = ..., body_sha256: _Optional[bytes] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("reason", "message", "retry", "retry_after_ms", "now_unix_ms")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    NOW_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    retry: Retry
    retry_after_ms: int
    now_unix_ms: int
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., retry: _Optional[_Union[Retry, str]] = ..., retry_after_ms: _Optional[int] = ..., now_unix_ms: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Artefact(_message.Message):
    __slots__ = ("sha256", "size", "kind")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    size: int
    kind: ArtefactKind
    def __init__(self, sha256: _Optional[bytes] = ..., size: _Optional[int] = ..., kind: _Optional[_Union[ArtefactKind, str]] = ...) -> None: ...

class LedgerHead(_message.Message):
    __slots__ = ("entry_index", "entry_sha256", "public_key", "signature")
    ENTRY_INDEX_FIELD_NUMBER: _ClassVar[int]
    ENTRY_SHA256_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    entry_index: int
    entry_sha256: bytes
    public_key: bytes
    signature: bytes
    def __init__(self, entry_index: _Optional[int] = ..., entry_sha256: _Optional[bytes] = ..., public_key: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

from sordino.protos.v1 import common_pb2 as _common_pb2
from sordino.protos.v1 import rules_pb2 as _rules_pb2
from sordino.protos.v1 import work_pb2 as _work_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PowerSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POWER_SOURCE_UNSPECIFIED: _ClassVar[PowerSource]
    POWER_SOURCE_UNKNOWN: _ClassVar[PowerSource]
    POWER_SOURCE_MAINS: _ClassVar[PowerSource]
    POWER_SOURCE_BATTERY: _ClassVar[PowerSource]
    POWER_SOURCE_CHARGING: _ClassVar[PowerSource]

class EnergySource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENERGY_SOURCE_UNSPECIFIED: _ClassVar[EnergySource]
    ENERGY_SOURCE_UNAVAILABLE: _ClassVar[EnergySource]
    ENERGY_SOURCE_RAPL: _ClassVar[EnergySource]
    ENERGY_SOURCE_BATTERY: _ClassVar[EnergySource]
    ENERGY_SOURCE_INA: _ClassVar[EnergySource]
    ENERGY_SOURCE_ESTIMATED: _ClassVar[EnergySource]

class TaskState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_STATE_UNSPECIFIED: _ClassVar[TaskState]
    TASK_STATE_OFFERED: _ClassVar[TaskState]
    TASK_STATE_TAKEN: _ClassVar[TaskState]
    TASK_STATE_ANSWERED: _ClassVar[TaskState]
    TASK_STATE_DECLINED: _ClassVar[TaskState]
    TASK_STATE_EXPIRED: _ClassVar[TaskState]
    TASK_STATE_CANCELLED: _ClassVar[TaskState]
    TASK_STATE_REJECTED: _ClassVar[TaskState]

class UploadState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UPLOAD_STATE_UNSPECIFIED: _ClassVar[UploadState]
    UPLOAD_STATE_OPEN: _ClassVar[UploadState]
    UPLOAD_STATE_CHECKING: _ClassVar[UploadState]
    UPLOAD_STATE_ACCEPTED: _ClassVar[UploadState]
    UPLOAD_STATE_REJECTED: _ClassVar[UploadState]
    UPLOAD_STATE_DISCARDED: _ClassVar[UploadState]

class Activity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTIVITY_UNSPECIFIED: _ClassVar[Activity]
    ACTIVITY_IDLE: _ClassVar[Activity]
    ACTIVITY_WORKING: _ClassVar[Activity]
    ACTIVITY_NOT_NOW: _ClassVar[Activity]
POWER_SOURCE_UNSPECIFIED: PowerSource
POWER_SOURCE_UNKNOWN: PowerSource
POWER_SOURCE_MAINS: PowerSource
POWER_SOURCE_BATTERY: PowerSource
POWER_SOURCE_CHARGING: PowerSource
ENERGY_SOURCE_UNSPECIFIED: EnergySource
ENERGY_SOURCE_UNAVAILABLE: EnergySource
ENERGY_SOURCE_RAPL: EnergySource
ENERGY_SOURCE_BATTERY: EnergySource
ENERGY_SOURCE_INA: EnergySource
ENERGY_SOURCE_ESTIMATED: EnergySource
TASK_STATE_UNSPECIFIED: TaskState
TASK_STATE_OFFERED: TaskState
TASK_STATE_TAKEN: TaskState
TASK_STATE_ANSWERED: TaskState
TASK_STATE_DECLINED: TaskState
TASK_STATE_EXPIRED: TaskState
TASK_STATE_CANCELLED: TaskState
TASK_STATE_REJECTED: TaskState
UPLOAD_STATE_UNSPECIFIED: UploadState
UPLOAD_STATE_OPEN: UploadState
UPLOAD_STATE_CHECKING: UploadState
UPLOAD_STATE_ACCEPTED: UploadState
UPLOAD_STATE_REJECTED: UploadState
UPLOAD_STATE_DISCARDED: UploadState
ACTIVITY_UNSPECIFIED: Activity
ACTIVITY_IDLE: Activity
ACTIVITY_WORKING: Activity
ACTIVITY_NOT_NOW: Activity

class EnrollRequest(_message.Message):
    __slots__ = ("token", "certificate_request", "display_name")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    token: str
    certificate_request: bytes
    display_name: str
    def __init__(self, token: _Optional[str] = ..., certificate_request: _Optional[bytes] = ..., display_name: _Optional[str] = ...) -> None: ...

class EnrollResponse(_message.Message):
    __slots__ = ("device_id", "certificates", "authorities", "renew_after_unix_ms", "not_after_unix_ms")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATES_FIELD_NUMBER: _ClassVar[int]
    AUTHORITIES_FIELD_NUMBER: _ClassVar[int]
    RENEW_AFTER_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    certificates: _containers.RepeatedScalarFieldContainer[bytes]
    authorities: _containers.RepeatedScalarFieldContainer[bytes]
    renew_after_unix_ms: int
    not_after_unix_ms: int
    def __init__(self, device_id: _Optional[str] = ..., certificates: _Optional[_Iterable[bytes]] = ..., authorities: _Optional[_Iterable[bytes]] = ..., renew_after_unix_ms: _Optional[int] = ..., not_after_unix_ms: _Optional[int] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("certificate_request",)
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    certificate_request: bytes
    def __init__(self, certificate_request: _Optional[bytes] = ...) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ("certificates", "authorities", "renew_after_unix_ms", "not_after_unix_ms")
    CERTIFICATES_FIELD_NUMBER: _ClassVar[int]
    AUTHORITIES_FIELD_NUMBER: _ClassVar[int]
    RENEW_AFTER_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    certificates: _containers.RepeatedScalarFieldContainer[bytes]
    authorities: _containers.RepeatedScalarFieldContainer[bytes]
    renew_after_unix_ms: int
    not_after_unix_ms: int
    def __init__(self, certificates: _Optional[_Iterable[bytes]] = ..., authorities: _Optional[_Iterable[bytes]] = ..., renew_after_unix_ms: _Optional[int] = ..., not_after_unix_ms: _Optional[int] = ...) -> None: ...

class HelloRequest(_message.Message):
    __slots__ = ("revision", "software", "capabilities", "calibration", "ledger_head")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    LEDGER_HEAD_FIELD_NUMBER: _ClassVar[int]
    revision: int
    software: str
    capabilities: Capabilities
    calibration: Calibration
    ledger_head: _common_pb2.LedgerHead
    def __init__(self, revision: _Optional[int] = ..., software: _Optional[str] = ..., capabilities: _Optional[_Union[Capabilities, _Mapping]] = ..., calibration: _Optional[_Union[Calibration, _Mapping]] = ..., ledger_head: _Optional[_Union[_common_pb2.LedgerHead, _Mapping]] = ...) -> None: ...

class Capabilities(_message.Message):
    __slots__ = ("model_formats", "model_families", "memory_bytes", "storage_bytes", "accelerators", "cores", "architecture", "power")
    MODEL_FORMATS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FAMILIES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ACCELERATORS_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    POWER_FIELD_NUMBER: _ClassVar[int]
    model_formats: _containers.RepeatedScalarFieldContainer[str]
    model_families: _containers.RepeatedScalarFieldContainer[str]
    memory_bytes: int
    storage_bytes: int
    accelerators: _containers.RepeatedCompositeFieldContainer[Accelerator]
    cores: int
    architecture: str
    power: PowerSource
    def __init__(self, model_formats: _Optional[_Iterable[str]] = ..., model_families: _Optional[_Iterable[str]] = ..., memory_bytes: _Optional[int] = ..., storage_bytes: _Optional[int] = ..., accelerators: _Optional[_Iterable[_Union[Accelerator, _Mapping]]] = ..., cores: _Optional[int] = ..., architecture: _Optional[str] = ..., power: _Optional[_Union[PowerSource, str]] = ...) -> None: ...

class Accelerator(_message.Message):
    __slots__ = ("kind", "name", "memory_bytes")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    memory_bytes: int
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class Calibration(_message.Message):
    __slots__ = ("base_sha256", "tokens_per_second", "peak_memory_bytes", "joules_per_token", "energy_source", "idle_watts", "celsius")
    BASE_SHA256_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    JOULES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ENERGY_SOURCE_FIELD_NUMBER: _ClassVar[int]
    IDLE_WATTS_FIELD_NUMBER: _ClassVar[int]
    CELSIUS_FIELD_NUMBER: _ClassVar[int]
    base_sha256: bytes
    tokens_per_second: float
    peak_memory_bytes: int
    joules_per_token: float
    energy_source: EnergySource
    idle_watts: float
    celsius: float
    def __init__(self, base_sha256: _Optional[bytes] = ..., tokens_per_second: _Optional[float] = ..., peak_memory_bytes: _Optional[int] = ..., joules_per_token: _Optional[float] = ..., energy_source: _Optional[_Union[EnergySource, str]] = ..., idle_watts: _Optional[float] = ..., celsius: _Optional[float] = ...) -> None: ...

class HelloResponse(_message.Message):
    __slots__ = ("revision", "fleet", "now_unix_ms", "heartbeat_interval_ms", "max_wait_ms", "chunk_bytes", "max_calls_per_minute", "known_ledger_head")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FLEET_FIELD_NUMBER: _ClassVar[int]
    NOW_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_CALLS_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    KNOWN_LEDGER_HEAD_FIELD_NUMBER: _ClassVar[int]
    revision: int
    fleet: str
    now_unix_ms: int
    heartbeat_interval_ms: int
    max_wait_ms: int
    chunk_bytes: int
    max_calls_per_minute: int
    known_ledger_head: _common_pb2.LedgerHead
    def __init__(self, revision: _Optional[int] = ..., fleet: _Optional[str] = ..., now_unix_ms: _Optional[int] = ..., heartbeat_interval_ms: _Optional[int] = ..., max_wait_ms: _Optional[int] = ..., chunk_bytes: _Optional[int] = ..., max_calls_per_minute: _Optional[int] = ..., known_ledger_head: _Optional[_Union[_common_pb2.LedgerHead, _Mapping]] = ...) -> None: ...

class PullTaskRequest(_message.Message):
    __slots__ = ("wait_ms",)
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    wait_ms: int
    def __init__(self, wait_ms: _Optional[int] = ...) -> None: ...

class PullTaskResponse(_message.Message):
    __slots__ = ("task", "cancelled", "still_here")
    TASK_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    STILL_HERE_FIELD_NUMBER: _ClassVar[int]
    task: _work_pb2.Task
    cancelled: TaskCancelled
    still_here: StillHere
    def __init__(self, task: _Optional[_Union[_work_pb2.Task, _Mapping]] = ..., cancelled: _Optional[_Union[TaskCancelled, _Mapping]] = ..., still_here: _Optional[_Union[StillHere, _Mapping]] = ...) -> None: ...

class TaskCancelled(_message.Message):
    __slots__ = ("task_id", "reason")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    reason: str
    def __init__(self, task_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class StillHere(_message.Message):
    __slots__ = ("now_unix_ms", "rest_ms")
    NOW_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    REST_MS_FIELD_NUMBER: _ClassVar[int]
    now_unix_ms: int
    rest_ms: int
    def __init__(self, now_unix_ms: _Optional[int] = ..., rest_ms: _Optional[int] = ...) -> None: ...

class AcknowledgeRequest(_message.Message):
    __slots__ = ("task_id", "plan_sha256")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    PLAN_SHA256_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    plan_sha256: bytes
    def __init__(self, task_id: _Optional[str] = ..., plan_sha256: _Optional[bytes] = ...) -> None: ...

class AcknowledgeResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: TaskState
    def __init__(self, state: _Optional[_Union[TaskState, str]] = ...) -> None: ...

class DeclineRequest(_message.Message):
    __slots__ = ("task_id", "reason")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    reason: str
    def __init__(self, task_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class DeclineResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: TaskState
    def __init__(self, state: _Optional[_Union[TaskState, str]] = ...) -> None: ...

class FetchArtefactRequest(_message.Message):
    __slots__ = ("sha256", "offset")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    offset: int
    def __init__(self, sha256: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class FetchArtefactResponse(_message.Message):
    __slots__ = ("artefact", "chunk")
    ARTEFACT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    artefact: _common_pb2.Artefact
    chunk: _common_pb2.Chunk
    def __init__(self, artefact: _Optional[_Union[_common_pb2.Artefact, _Mapping]] = ..., chunk: _Optional[_Union[_common_pb2.Chunk, _Mapping]] = ...) -> None: ...

class OfferUploadRequest(_message.Message):
    __slots__ = ("task_id", "artefact")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ARTEFACT_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    artefact: _common_pb2.Artefact
    def __init__(self, task_id: _Optional[str] = ..., artefact: _Optional[_Union[_common_pb2.Artefact, _Mapping]] = ...) -> None: ...

class OfferUploadResponse(_message.Message):
    __slots__ = ("upload_id", "state", "offset", "reason")
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    upload_id: str
    state: UploadState
    offset: int
    reason: str
    def __init__(self, upload_id: _Optional[str] = ..., state: _Optional[_Union[UploadState, str]] = ..., offset: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class PushUpdateRequest(_message.Message):
    __slots__ = ("start", "chunk")
    START_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    start: _common_pb2.Signed
    chunk: _common_pb2.Chunk
    def __init__(self, start: _Optional[_Union[_common_pb2.Signed, _Mapping]] = ..., chunk: _Optional[_Union[_common_pb2.Chunk, _Mapping]] = ...) -> None: ...

class PushUpdateStart(_message.Message):
    __slots__ = ("upload_id", "sha256", "size", "offset")
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    upload_id: str
    sha256: bytes
    size: int
    offset: int
    def __init__(self, upload_id: _Optional[str] = ..., sha256: _Optional[bytes] = ..., size: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class PushUpdateResponse(_message.Message):
    __slots__ = ("state", "offset")
    STATE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    state: UploadState
    offset: int
    def __init__(self, state: _Optional[_Union[UploadState, str]] = ..., offset: _Optional[int] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("activity", "task_id")
    ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    activity: Activity
    task_id: str
    def __init__(self, activity: _Optional[_Union[Activity, str]] = ..., task_id: _Optional[str] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ("now_unix_ms", "cancelled", "renew_now")
    NOW_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    RENEW_NOW_FIELD_NUMBER: _ClassVar[int]
    now_unix_ms: int
    cancelled: TaskCancelled
    renew_now: bool
    def __init__(self, now_unix_ms: _Optional[int] = ..., cancelled: _Optional[_Union[TaskCancelled, _Mapping]] = ..., renew_now: bool = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class LeaveResponse(_message.Message):
    __slots__ = ("left_at_unix_ms",)
    LEFT_AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    left_at_unix_ms: int
    def __init__(self, left_at_unix_ms: _Optional[int] = ...) -> None: ...

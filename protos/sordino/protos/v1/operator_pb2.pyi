from sordino.protos.v1 import common_pb2 as _common_pb2
from sordino.protos.v1 import rules_pb2 as _rules_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_STATE_UNSPECIFIED: _ClassVar[RunState]
    RUN_STATE_RUNNING: _ClassVar[RunState]
    RUN_STATE_PAUSED: _ClassVar[RunState]
    RUN_STATE_DONE: _ClassVar[RunState]
    RUN_STATE_STOPPED: _ClassVar[RunState]
    RUN_STATE_FAILED: _ClassVar[RunState]

class RoundState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROUND_STATE_UNSPECIFIED: _ClassVar[RoundState]
    ROUND_STATE_OPEN: _ClassVar[RoundState]
    ROUND_STATE_CLOSING: _ClassVar[RoundState]
    ROUND_STATE_DONE: _ClassVar[RoundState]
    ROUND_STATE_FAILED: _ClassVar[RoundState]
    ROUND_STATE_GIVEN_UP: _ClassVar[RoundState]

class DeviceState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEVICE_STATE_UNSPECIFIED: _ClassVar[DeviceState]
    DEVICE_STATE_ONLINE: _ClassVar[DeviceState]
    DEVICE_STATE_OFFLINE: _ClassVar[DeviceState]
    DEVICE_STATE_RESTING: _ClassVar[DeviceState]
    DEVICE_STATE_SUSPECT: _ClassVar[DeviceState]
    DEVICE_STATE_REVOKED: _ClassVar[DeviceState]
    DEVICE_STATE_LEFT: _ClassVar[DeviceState]
RUN_STATE_UNSPECIFIED: RunState
RUN_STATE_RUNNING: RunState
RUN_STATE_PAUSED: RunState
RUN_STATE_DONE: RunState
RUN_STATE_STOPPED: RunState
RUN_STATE_FAILED: RunState
ROUND_STATE_UNSPECIFIED: RoundState
ROUND_STATE_OPEN: RoundState
ROUND_STATE_CLOSING: RoundState
ROUND_STATE_DONE: RoundState
ROUND_STATE_FAILED: RoundState
ROUND_STATE_GIVEN_UP: RoundState
DEVICE_STATE_UNSPECIFIED: DeviceState
DEVICE_STATE_ONLINE: DeviceState
DEVICE_STATE_OFFLINE: DeviceState
DEVICE_STATE_RESTING: DeviceState
DEVICE_STATE_SUSPECT: DeviceState
DEVICE_STATE_REVOKED: DeviceState
DEVICE_STATE_LEFT: DeviceState

class Page(_message.Message):
    __slots__ = ("size", "token")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    size: int
    token: str
    def __init__(self, size: _Optional[int] = ..., token: _Optional[str] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ("page",)
    PAGE_FIELD_NUMBER: _ClassVar[int]
    page: Page
    def __init__(self, page: _Optional[_Union[Page, _Mapping]] = ...) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs", "next")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    next: str
    def __init__(self, runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ..., next: _Optional[str] = ...) -> None: ...

class GetRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("run_id", "state", "rounds_done", "rounds_planned", "plan", "plan_sha256", "base", "adapter", "cohort", "min_updates", "started_at_unix_ms", "reason", "epsilon")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_DONE_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_PLANNED_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    PLAN_SHA256_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    MIN_UPDATES_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    state: RunState
    rounds_done: int
    rounds_planned: int
    plan: bytes
    plan_sha256: bytes
    base: _common_pb2.Artefact
    adapter: _common_pb2.Artefact
    cohort: int
    min_updates: int
    started_at_unix_ms: int
    reason: str
    epsilon: _containers.RepeatedCompositeFieldContainer[Epsilon]
    def __init__(self, run_id: _Optional[str] = ..., state: _Optional[_Union[RunState, str]] = ..., rounds_done: _Optional[int] = ..., rounds_planned: _Optional[int] = ..., plan: _Optional[bytes] = ..., plan_sha256: _Optional[bytes] = ..., base: _Optional[_Union[_common_pb2.Artefact, _Mapping]] = ..., adapter: _Optional[_Union[_common_pb2.Artefact, _Mapping]] = ..., cohort: _Optional[int] = ..., min_updates: _Optional[int] = ..., started_at_unix_ms: _Optional[int] = ..., reason: _Optional[str] = ..., epsilon: _Optional[_Iterable[_Union[Epsilon, _Mapping]]] = ...) -> None: ...

class Epsilon(_message.Message):
    __slots__ = ("epsilon", "delta", "unit", "neighbouring", "sampling", "accountant", "scope", "trust")
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOURING_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    ACCOUNTANT_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    TRUST_FIELD_NUMBER: _ClassVar[int]
    epsilon: float
    delta: float
    unit: str
    neighbouring: str
    sampling: str
    accountant: str
    scope: str
    trust: str
    def __init__(self, epsilon: _Optional[float] = ..., delta: _Optional[float] = ..., unit: _Optional[str] = ..., neighbouring: _Optional[str] = ..., sampling: _Optional[str] = ..., accountant: _Optional[str] = ..., scope: _Optional[str] = ..., trust: _Optional[str] = ...) -> None: ...

class ListRoundsRequest(_message.Message):
    __slots__ = ("run_id", "page")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    page: Page
    def __init__(self, run_id: _Optional[str] = ..., page: _Optional[_Union[Page, _Mapping]] = ...) -> None: ...

class ListRoundsResponse(_message.Message):
    __slots__ = ("rounds", "next")
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    rounds: _containers.RepeatedCompositeFieldContainer[Round]
    next: str
    def __init__(self, rounds: _Optional[_Iterable[_Union[Round, _Mapping]]] = ..., next: _Optional[str] = ...) -> None: ...

class Round(_message.Message):
    __slots__ = ("run_id", "round", "state", "asked", "received", "dropped", "bytes_down", "bytes_up", "opened_at_unix_ms", "closed_at_unix_ms", "adapter")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    BYTES_DOWN_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_FIELD_NUMBER: _ClassVar[int]
    OPENED_AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    CLOSED_AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    round: int
    state: RoundState
    asked: int
    received: int
    dropped: _containers.RepeatedCompositeFieldContainer[Dropped]
    bytes_down: int
    bytes_up: int
    opened_at_unix_ms: int
    closed_at_unix_ms: int
    adapter: _common_pb2.Artefact
    def __init__(self, run_id: _Optional[str] = ..., round: _Optional[int] = ..., state: _Optional[_Union[RoundState, str]] = ..., asked: _Optional[int] = ..., received: _Optional[int] = ..., dropped: _Optional[_Iterable[_Union[Dropped, _Mapping]]] = ..., bytes_down: _Optional[int] = ..., bytes_up: _Optional[int] = ..., opened_at_unix_ms: _Optional[int] = ..., closed_at_unix_ms: _Optional[int] = ..., adapter: _Optional[_Union[_common_pb2.Artefact, _Mapping]] = ...) -> None: ...

class Dropped(_message.Message):
    __slots__ = ("reason", "count")
    REASON_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    reason: str
    count: int
    def __init__(self, reason: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class ListDevicesRequest(_message.Message):
    __slots__ = ("page", "states")
    PAGE_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    page: Page
    states: _containers.RepeatedScalarFieldContainer[DeviceState]
    def __init__(self, page: _Optional[_Union[Page, _Mapping]] = ..., states: _Optional[_Iterable[_Union[DeviceState, str]]] = ...) -> None: ...

class ListDevicesResponse(_message.Message):
    __slots__ = ("devices", "next")
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    next: str
    def __init__(self, devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., next: _Optional[str] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("device_id", "display_name", "state", "software", "last_seen_unix_ms", "not_after_unix_ms", "accepted", "failures", "ledger_head")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    LEDGER_HEAD_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    display_name: str
    state: DeviceState
    software: str
    last_seen_unix_ms: int
    not_after_unix_ms: int
    accepted: int
    failures: int
    ledger_head: _common_pb2.LedgerHead
    def __init__(self, device_id: _Optional[str] = ..., display_name: _Optional[str] = ..., state: _Optional[_Union[DeviceState, str]] = ..., software: _Optional[str] = ..., last_seen_unix_ms: _Optional[int] = ..., not_after_unix_ms: _Optional[int] = ..., accepted: _Optional[int] = ..., failures: _Optional[int] = ..., ledger_head: _Optional[_Union[_common_pb2.LedgerHead, _Mapping]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("run_id", "after")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    after: int
    def __init__(self, run_id: _Optional[str] = ..., after: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("number", "at_unix_ms", "run", "round", "device", "alarm")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ALARM_FIELD_NUMBER: _ClassVar[int]
    number: int
    at_unix_ms: int
    run: Run
    round: Round
    device: Device
    alarm: Alarm
    def __init__(self, number: _Optional[int] = ..., at_unix_ms: _Optional[int] = ..., run: _Optional[_Union[Run, _Mapping]] = ..., round: _Optional[_Union[Round, _Mapping]] = ..., device: _Optional[_Union[Device, _Mapping]] = ..., alarm: _Optional[_Union[Alarm, _Mapping]] = ...) -> None: ...

class Alarm(_message.Message):
    __slots__ = ("reason", "message", "run_id", "device_id")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    run_id: str
    device_id: str
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., run_id: _Optional[str] = ..., device_id: _Optional[str] = ...) -> None: ...

class StartRunRequest(_message.Message):
    __slots__ = ("request_id", "run_id", "settings_toml", "cohort")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_TOML_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    run_id: str
    settings_toml: bytes
    cohort: int
    def __init__(self, request_id: _Optional[str] = ..., run_id: _Optional[str] = ..., settings_toml: _Optional[bytes] = ..., cohort: _Optional[int] = ...) -> None: ...

class RunCommand(_message.Message):
    __slots__ = ("request_id", "run_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    run_id: str
    def __init__(self, request_id: _Optional[str] = ..., run_id: _Optional[str] = ...) -> None: ...

class AddRoundsRequest(_message.Message):
    __slots__ = ("request_id", "run_id", "rounds")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    run_id: str
    rounds: int
    def __init__(self, request_id: _Optional[str] = ..., run_id: _Optional[str] = ..., rounds: _Optional[int] = ...) -> None: ...

class ChangeCohortRequest(_message.Message):
    __slots__ = ("request_id", "run_id", "cohort")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    run_id: str
    cohort: int
    def __init__(self, request_id: _Optional[str] = ..., run_id: _Optional[str] = ..., cohort: _Optional[int] = ...) -> None: ...

class RollBackRequest(_message.Message):
    __slots__ = ("request_id", "run_id", "round")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    run_id: str
    round: int
    def __init__(self, request_id: _Optional[str] = ..., run_id: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class RevokeDeviceRequest(_message.Message):
    __slots__ = ("request_id", "device_id", "reason")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    device_id: str
    reason: str
    def __init__(self, request_id: _Optional[str] = ..., device_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ListLedgerHeadsRequest(_message.Message):
    __slots__ = ("run_id", "page")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    page: Page
    def __init__(self, run_id: _Optional[str] = ..., page: _Optional[_Union[Page, _Mapping]] = ...) -> None: ...

class ListLedgerHeadsResponse(_message.Message):
    __slots__ = ("heads", "next")
    HEADS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    heads: _containers.RepeatedCompositeFieldContainer[DeviceLedgerHead]
    next: str
    def __init__(self, heads: _Optional[_Iterable[_Union[DeviceLedgerHead, _Mapping]]] = ..., next: _Optional[str] = ...) -> None: ...

class DeviceLedgerHead(_message.Message):
    __slots__ = ("device_id", "head", "received_at_unix_ms")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    head: _common_pb2.LedgerHead
    received_at_unix_ms: int
    def __init__(self, device_id: _Optional[str] = ..., head: _Optional[_Union[_common_pb2.LedgerHead, _Mapping]] = ..., received_at_unix_ms: _Optional[int] = ...) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ("run_id", "kind", "round", "sha256", "offset")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    kind: _common_pb2.ArtefactKind
    round: int
    sha256: bytes
    offset: int
    def __init__(self, run_id: _Optional[str] = ..., kind: _Optional[_Union[_common_pb2.ArtefactKind, str]] = ..., round: _Optional[int] = ..., sha256: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class ExportResponse(_message.Message):
    __slots__ = ("artefact", "chunk")
    ARTEFACT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    artefact: _common_pb2.Artefact
    chunk: _common_pb2.Chunk
    def __init__(self, artefact: _Optional[_Union[_common_pb2.Artefact, _Mapping]] = ..., chunk: _Optional[_Union[_common_pb2.Chunk, _Mapping]] = ...) -> None: ...

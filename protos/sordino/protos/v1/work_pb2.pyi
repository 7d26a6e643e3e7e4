from sordino.protos.v1 import common_pb2 as _common_pb2
from sordino.protos.v1 import rules_pb2 as _rules_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Aggregation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AGGREGATION_UNSPECIFIED: _ClassVar[Aggregation]
    AGGREGATION_FFA: _ClassVar[Aggregation]
    AGGREGATION_ROLORA: _ClassVar[Aggregation]
    AGGREGATION_FEDIT: _ClassVar[Aggregation]

class Schedule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCHEDULE_UNSPECIFIED: _ClassVar[Schedule]
    SCHEDULE_CONSTANT: _ClassVar[Schedule]
    SCHEDULE_LINEAR: _ClassVar[Schedule]
    SCHEDULE_COSINE: _ClassVar[Schedule]

class Optimizer(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPTIMIZER_UNSPECIFIED: _ClassVar[Optimizer]
    OPTIMIZER_SGD: _ClassVar[Optimizer]
    OPTIMIZER_ADAM: _ClassVar[Optimizer]

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    D_TYPE_UNSPECIFIED: _ClassVar[DType]
    D_TYPE_FLOAT32: _ClassVar[DType]
AGGREGATION_UNSPECIFIED: Aggregation
AGGREGATION_FFA: Aggregation
AGGREGATION_ROLORA: Aggregation
AGGREGATION_FEDIT: Aggregation
SCHEDULE_UNSPECIFIED: Schedule
SCHEDULE_CONSTANT: Schedule
SCHEDULE_LINEAR: Schedule
SCHEDULE_COSINE: Schedule
OPTIMIZER_UNSPECIFIED: Optimizer
OPTIMIZER_SGD: Optimizer
OPTIMIZER_ADAM: Optimizer
D_TYPE_UNSPECIFIED: DType
D_TYPE_FLOAT32: DType

class Task(_message.Message):
    __slots__ = ("task_id", "run_id", "round", "deadline_unix_ms", "expires_in_ms", "plan", "plan_sha256", "base", "train", "metric", "max_answer_bytes")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_MS_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    PLAN_SHA256_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    MAX_ANSWER_BYTES_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    run_id: str
    round: int
    deadline_unix_ms: int
    expires_in_ms: int
    plan: bytes
    plan_sha256: bytes
    base: _common_pb2.Artefact
    train: TrainWork
    metric: MetricWork
    max_answer_bytes: int
    def __init__(self, task_id: _Optional[str] = ..., run_id: _Optional[str] = ..., round: _Optional[int] = ..., deadline_unix_ms: _Optional[int] = ..., expires_in_ms: _Optional[int] = ..., plan: _Optional[bytes] = ..., plan_sha256: _Optional[bytes] = ..., base: _Optional[_Union[_common_pb2.Artefact, _Mapping]] = ..., train: _Optional[_Union[TrainWork, _Mapping]] = ..., metric: _Optional[_Union[MetricWork, _Mapping]] = ..., max_answer_bytes: _Optional[int] = ...) -> None: ...

class TrainWork(_message.Message):
    __slots__ = ("manifest", "adapter", "lora", "train")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    manifest: _common_pb2.Artefact
    adapter: _common_pb2.Artefact
    lora: LoraSettings
    train: TrainSettings
    def __init__(self, manifest: _Optional[_Union[_common_pb2.Artefact, _Mapping]] = ..., adapter: _Optional[_Union[_common_pb2.Artefact, _Mapping]] = ..., lora: _Optional[_Union[LoraSettings, _Mapping]] = ..., train: _Optional[_Union[TrainSettings, _Mapping]] = ...) -> None: ...

class MetricWork(_message.Message):
    __slots__ = ("manifest", "adapter", "lora")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    manifest: _common_pb2.Artefact
    adapter: _common_pb2.Artefact
    lora: LoraSettings
    def __init__(self, manifest: _Optional[_Union[_common_pb2.Artefact, _Mapping]] = ..., adapter: _Optional[_Union[_common_pb2.Artefact, _Mapping]] = ..., lora: _Optional[_Union[LoraSettings, _Mapping]] = ...) -> None: ...

class LoraSettings(_message.Message):
    __slots__ = ("aggregation", "rank", "alpha", "targets", "init_seed")
    AGGREGATION_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    INIT_SEED_FIELD_NUMBER: _ClassVar[int]
    aggregation: Aggregation
    rank: int
    alpha: float
    targets: _containers.RepeatedScalarFieldContainer[str]
    init_seed: int
    def __init__(self, aggregation: _Optional[_Union[Aggregation, str]] = ..., rank: _Optional[int] = ..., alpha: _Optional[float] = ..., targets: _Optional[_Iterable[str]] = ..., init_seed: _Optional[int] = ...) -> None: ...

class TrainSettings(_message.Message):
    __slots__ = ("optimizer", "learning_rate", "momentum", "local_steps", "schedule", "views")
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    LOCAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    optimizer: Optimizer
    learning_rate: float
    momentum: float
    local_steps: int
    schedule: RateSchedule
    views: RecordViews
    def __init__(self, optimizer: _Optional[_Union[Optimizer, str]] = ..., learning_rate: _Optional[float] = ..., momentum: _Optional[float] = ..., local_steps: _Optional[int] = ..., schedule: _Optional[_Union[RateSchedule, _Mapping]] = ..., views: _Optional[_Union[RecordViews, _Mapping]] = ...) -> None: ...

class RateSchedule(_message.Message):
    __slots__ = ("kind", "warmup")
    KIND_FIELD_NUMBER: _ClassVar[int]
    WARMUP_FIELD_NUMBER: _ClassVar[int]
    kind: Schedule
    warmup: float
    def __init__(self, kind: _Optional[_Union[Schedule, str]] = ..., warmup: _Optional[float] = ...) -> None: ...

class RecordViews(_message.Message):
    __slots__ = ("count", "dropout", "cut")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    count: int
    dropout: float
    cut: float
    def __init__(self, count: _Optional[int] = ..., dropout: _Optional[float] = ..., cut: _Optional[float] = ...) -> None: ...

class Adapter(_message.Message):
    __slots__ = ("tensors",)
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    def __init__(self, tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "dtype", "shape", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: DType
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[DType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Update(_message.Message):
    __slots__ = ("run_id", "round", "plan_sha256", "tensors", "receipt")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PLAN_SHA256_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    round: int
    plan_sha256: bytes
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    receipt: _common_pb2.LedgerHead
    def __init__(self, run_id: _Optional[str] = ..., round: _Optional[int] = ..., plan_sha256: _Optional[bytes] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., receipt: _Optional[_Union[_common_pb2.LedgerHead, _Mapping]] = ...) -> None: ...

class Measurement(_message.Message):
    __slots__ = ("run_id", "round", "plan_sha256", "value", "receipt")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PLAN_SHA256_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    round: int
    plan_sha256: bytes
    value: float
    receipt: _common_pb2.LedgerHead
    def __init__(self, run_id: _Optional[str] = ..., round: _Optional[int] = ..., plan_sha256: _Optional[bytes] = ..., value: _Optional[float] = ..., receipt: _Optional[_Union[_common_pb2.LedgerHead, _Mapping]] = ...) -> None: ...

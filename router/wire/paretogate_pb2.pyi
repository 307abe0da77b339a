from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StreamFrame(_message.Message):
    __slots__ = ("image", "name", "budget_ms")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    BUDGET_MS_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    name: str
    budget_ms: float
    def __init__(self, image: _Optional[bytes] = ..., name: _Optional[str] = ..., budget_ms: _Optional[float] = ...) -> None: ...

class StreamResult(_message.Message):
    __slots__ = ("number", "name", "answer", "problem", "dropped", "age_ms", "reused")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    REUSED_FIELD_NUMBER: _ClassVar[int]
    number: int
    name: str
    answer: DetectResponse
    problem: Problem
    dropped: int
    age_ms: float
    reused: Reused
    def __init__(self, number: _Optional[int] = ..., name: _Optional[str] = ..., answer: _Optional[_Union[DetectResponse, _Mapping]] = ..., problem: _Optional[_Union[Problem, _Mapping]] = ..., dropped: _Optional[int] = ..., age_ms: _Optional[float] = ..., reused: _Optional[_Union[Reused, _Mapping]] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ("slug", "title", "status", "detail", "retry_after_s")
    SLUG_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    slug: str
    title: str
    status: int
    detail: str
    retry_after_s: float
    def __init__(self, slug: _Optional[str] = ..., title: _Optional[str] = ..., status: _Optional[int] = ..., detail: _Optional[str] = ..., retry_after_s: _Optional[float] = ...) -> None: ...

class Reused(_message.Message):
    __slots__ = ("number", "difference")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    number: int
    difference: float
    def __init__(self, number: _Optional[int] = ..., difference: _Optional[float] = ...) -> None: ...

class DetectRequest(_message.Message):
    __slots__ = ("image", "operating_point", "request_id")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    OPERATING_POINT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    operating_point: str
    request_id: str
    def __init__(self, image: _Optional[bytes] = ..., operating_point: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class DetectedObject(_message.Message):
    __slots__ = ("x1", "y1", "x2", "y2", "label", "class_id", "score")
    X1_FIELD_NUMBER: _ClassVar[int]
    Y1_FIELD_NUMBER: _ClassVar[int]
    X2_FIELD_NUMBER: _ClassVar[int]
    Y2_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    CLASS_ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    x1: float
    y1: float
    x2: float
    y2: float
    label: str
    class_id: int
    score: float
    def __init__(self, x1: _Optional[float] = ..., y1: _Optional[float] = ..., x2: _Optional[float] = ..., y2: _Optional[float] = ..., label: _Optional[str] = ..., class_id: _Optional[int] = ..., score: _Optional[float] = ...) -> None: ...

class Stage(_message.Message):
    __slots__ = ("variant", "latency_ms")
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    variant: str
    latency_ms: float
    def __init__(self, variant: _Optional[str] = ..., latency_ms: _Optional[float] = ...) -> None: ...

class Cut(_message.Message):
    __slots__ = ("stage", "plan", "reason", "needed_ms", "left_ms")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    NEEDED_MS_FIELD_NUMBER: _ClassVar[int]
    LEFT_MS_FIELD_NUMBER: _ClassVar[int]
    stage: str
    plan: str
    reason: str
    needed_ms: float
    left_ms: float
    def __init__(self, stage: _Optional[str] = ..., plan: _Optional[str] = ..., reason: _Optional[str] = ..., needed_ms: _Optional[float] = ..., left_ms: _Optional[float] = ...) -> None: ...

class Certificate(_message.Message):
    __slots__ = ("loss", "images", "epsilon", "delta", "bound", "empirical")
    LOSS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    BOUND_FIELD_NUMBER: _ClassVar[int]
    EMPIRICAL_FIELD_NUMBER: _ClassVar[int]
    loss: str
    images: int
    epsilon: float
    delta: float
    bound: float
    empirical: float
    def __init__(self, loss: _Optional[str] = ..., images: _Optional[int] = ..., epsilon: _Optional[float] = ..., delta: _Optional[float] = ..., bound: _Optional[float] = ..., empirical: _Optional[float] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_ms", "decode_ms", "total_ms")
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    queue_ms: float
    decode_ms: float
    total_ms: float
    def __init__(self, queue_ms: _Optional[float] = ..., decode_ms: _Optional[float] = ..., total_ms: _Optional[float] = ...) -> None: ...

class DetectResponse(_message.Message):
    __slots__ = ("request_id", "detections", "image_width", "image_height", "operating_point", "plan", "stages", "cut", "certificate", "timing", "arm")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    IMAGE_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    OPERATING_POINT_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    detections: _containers.RepeatedCompositeFieldContainer[DetectedObject]
    image_width: int
    image_height: int
    operating_point: str
    plan: str
    stages: _containers.RepeatedCompositeFieldContainer[Stage]
    cut: Cut
    certificate: Certificate
    timing: Timing
    arm: str
    def __init__(self, request_id: _Optional[str] = ..., detections: _Optional[_Iterable[_Union[DetectedObject, _Mapping]]] = ..., image_width: _Optional[int] = ..., image_height: _Optional[int] = ..., operating_point: _Optional[str] = ..., plan: _Optional[str] = ..., stages: _Optional[_Iterable[_Union[Stage, _Mapping]]] = ..., cut: _Optional[_Union[Cut, _Mapping]] = ..., certificate: _Optional[_Union[Certificate, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., arm: _Optional[str] = ...) -> None: ...

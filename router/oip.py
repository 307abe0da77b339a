"""The Open Inference Protocol (KServe v2) as both of its transports need it: models, tensors, statistics.

The gateway is one model, `paretogate`: an encoded image or a frame of pixels in, detections out, by the plan
that the gateway chooses within the request's budget. Every variant in service is a model of its own name with
the same inputs and outputs, answered by that variant or not at all. Nothing is batched, and there is one
version, 1.

Inputs, of which a request gives one:

    image         BYTES [1]             a JPEG or PNG; in JSON's `data`, which holds text, as base64
    frame         UINT8 [h, w, 3]       RGB; a leading 1 is taken as well

Outputs, n detections under aligned scores, best first:

    boxes         FP32 [n, 4]           x1, y1, x2, y2 in pixels of what was sent
    scores        FP32 [n]
    class_ids     INT32 [n]             0-based index into the data set's classes
    labels        BYTES [n]             their names
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from router.budget import MAX_BUDGET_MS
from router.errors import MalformedBudget, MalformedRequest, TooLarge, UnknownModel
from router.execution import Answer, Frame
from router.headers import Headers
from router.service import Service
from router.wishes import Wishes

CASCADE = "paretogate"
VERSION = "1"
SERVER = "paretogate"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "parameters", "statistics")
NO_SHARED_MEMORY = "shared memory is not offered: send tensors in the request"
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a model's signature; -1 stands for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False

    @property
    def config_type(self) -> str:
        """Return the data type as a model configuration spells it."""
        return "TYPE_STRING" if self.datatype == "BYTES" else f"TYPE_{self.datatype}"


INPUTS = (
    TensorSpec("image", "BYTES", (1,), optional=True),
    TensorSpec("frame", "UINT8", (-1, -1, 3), optional=True),
)
OUTPUTS = (
    TensorSpec("boxes", "FP32", (-1, 4)),
    TensorSpec("scores", "FP32", (-1,)),
    TensorSpec("class_ids", "INT32", (-1,)),
    TensorSpec("labels", "BYTES", (-1,)),
)
_OUTPUT_NAMES = tuple(spec.name for spec in OUTPUTS)
Parameter = bool | int | float | str


@dataclass(frozen=True, slots=True)
class GivenTensor:
    """An input as a request gives it: `raw` in the protocol's binary form, little-endian."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes


@dataclass(frozen=True, slots=True)
class Question:
    """What a request asks for: a frame, within a time, of a model, and which outputs."""

    frame: Frame
    wishes: Wishes
    timeout_s: float | None
    outputs: tuple[str, ...]


def question(
    model: str,
    given: Sequence[GivenTensor],
    parameters: Mapping[str, Parameter],
    outputs: Sequence[str],
    headers: Headers,
    *,
    max_pixels: int,
) -> Question:
    """Read a request; raises MalformedRequest, MalformedBudget or TooLarge, which name what is wrong.

    parameters: `timeout` is the budget in microseconds, `operating_point` as the header of that name.
    """
    for name in parameters:
        if name.startswith("sequence_"):
            raise MalformedRequest(f"parameters.{name}: requests are independent, there are no sequences")
    point = parameters.get("operating_point")
    if point is not None and not isinstance(point, str):
        raise MalformedRequest(f"parameters.operating_point: expected text, got {point!r}")
    if model != CASCADE and point is not None:
        raise MalformedRequest(f"parameters.operating_point: {model} is one model, not a set of plans")
    unknown = [name for name in outputs if name not in _OUTPUT_NAMES]
    if unknown:
        raise MalformedRequest(f"outputs: {unknown[0][:80]!r} is none of {', '.join(_OUTPUT_NAMES)}")
    wishes = Wishes.of(headers, operating_point=point)
    if model != CASCADE:
        wishes = Wishes(
            priority=wishes.priority, min_score=wishes.min_score, model=model, session=wishes.session
        )
    return Question(
        _frame(given, max_pixels),
        wishes,
        _timeout_s(parameters.get("timeout")),
        tuple(outputs) or _OUTPUT_NAMES,
    )


def _timeout_s(timeout: Parameter | None) -> float | None:
    if timeout is None or timeout == 0:  # 0 is what clients send for none
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int):
        raise MalformedBudget(f"parameters.timeout: {timeout!r} is not a whole number of microseconds")
    if not 0 < timeout <= MAX_BUDGET_MS * 1e3:
        raise MalformedBudget(
            f"parameters.timeout: {timeout} lies outside (0, {MAX_BUDGET_MS * 1e3:.0f}] microseconds"
        )
    return timeout / 1e6


def _frame(given: Sequence[GivenTensor], max_pixels: int) -> Frame:
    if len(given) != 1:
        raise MalformedRequest(f"inputs: {len(given)} are given, expected one, image or frame")
    tensor = given[0]
    spec = next((spec for spec in INPUTS if spec.name == tensor.name), None)
    if spec is None:
        raise MalformedRequest(f"inputs: {tensor.name[:80]!r} is neither image nor frame")
    if tensor.datatype != spec.datatype:
        raise MalformedRequest(
            f"inputs.{spec.name}: datatype {tensor.datatype[:20]!r}, expected {spec.datatype}"
        )
    if spec.name == "image":
        if math.prod(tensor.shape) != 1:
            raise MalformedRequest(f"inputs.image: shape {list(tensor.shape)}, expected [1]")
        return one_of_bytes(tensor.raw)
    shape = tensor.shape[1:] if len(tensor.shape) == 4 and tensor.shape[0] == 1 else tensor.shape
    if len(shape) != 3 or shape[2] != 3 or min(shape) < 1:
        raise MalformedRequest(f"inputs.frame: shape {list(tensor.shape)}, expected [height, width, 3]")
    if shape[0] * shape[1] > max_pixels:
        raise TooLarge(f"{shape[1]}x{shape[0]} pixels, the limit is {max_pixels} in all")
    if len(tensor.raw) != math.prod(shape):
        raise MalformedRequest(
            f"inputs.frame: {len(tensor.raw)} bytes, shape {list(tensor.shape)} has {math.prod(shape)}"
        )
    return np.frombuffer(tensor.raw, dtype=np.uint8).reshape(shape)


def one_of_bytes(raw: bytes) -> bytes:
    """Return the one element of a BYTES tensor in binary form; raises MalformedRequest."""
    if len(raw) < _LENGTH.size or _LENGTH.unpack_from(raw)[0] != len(raw) - _LENGTH.size:
        raise MalformedRequest("inputs.image: expected one element, its length in 4 bytes before it")
    return raw[_LENGTH.size :]


def as_bytes_tensor(elements: Sequence[bytes]) -> bytes:
    """Return a BYTES tensor in binary form."""
    return b"".join(_LENGTH.pack(len(element)) + element for element in elements)


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """An output: `values` as JSON has it, `raw` in the protocol's binary form."""

    spec: TensorSpec
    shape: tuple[int, ...]
    values: NDArray[np.float32] | NDArray[np.int32] | list[str]

    @property
    def raw(self) -> bytes:
        """Return the binary form."""
        if isinstance(self.values, list):
            return as_bytes_tensor([value.encode() for value in self.values])
        return self.values.tobytes()


def outputs_of(answer: Answer, names: Sequence[str]) -> list[OutputTensor]:
    """Return the asked outputs of an answer, in the order asked."""
    found = answer.detections
    count = len(found)
    made: dict[str, tuple[tuple[int, ...], NDArray[np.float32] | NDArray[np.int32] | list[str]]] = {
        "boxes": ((count, 4), found.xyxy.astype("<f4")),
        "scores": ((count,), found.score.astype("<f4")),
        "class_ids": ((count,), found.label.astype("<i4")),
        "labels": ((count,), [answer.classes[label] for label in found.label.tolist()]),
    }
    specs = {spec.name: spec for spec in OUTPUTS}
    return [OutputTensor(specs[name], *made[name]) for name in names]


def parameters_of(answer: Answer) -> dict[str, Parameter]:
    """Return what an answer says beside its tensors."""
    told: dict[str, Parameter] = {
        "operating_point": answer.operating_point,
        "plan": answer.plan.name,
        "total_ms": round(answer.total_ms, 3),
        "certified": answer.certificate is not None,
    }
    if answer.cut is not None:
        told["cut"] = f"{answer.cut.stage}: {answer.cut.reason}"
    if answer.arm is not None:
        told["arm"] = answer.arm
    return told


@dataclass(slots=True)
class Duration:
    """How many, and how long together."""

    count: int = 0
    ns: int = 0

    def add(self, ms: float) -> None:
        """Add one."""
        self.count += 1
        self.ns += max(round(ms * 1e6), 0)


@dataclass(slots=True)
class ModelStatistics:
    """What a model has been asked since the gateway started."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    last_ms: int = 0

    def answered(self, answer: Answer, at_ms: int) -> None:
        """Count an answer; `at_ms` since 1970. Decoding is input, stages are inference."""
        stages_ms = sum(stage.latency_ms for stage in answer.stages)
        self.success.add(answer.total_ms)
        self.queue.add(answer.queue_ms)
        self.compute_input.add(answer.decode_ms)
        self.compute_infer.add(stages_ms)
        self.compute_output.add(answer.total_ms - answer.queue_ms - answer.decode_ms - stages_ms)
        self.last_ms = at_ms

    def failed(self, ms: float) -> None:
        """Count a request that got no answer."""
        self.fail.add(ms)


class Models:
    """The models that the sets in force offer, and what they were asked."""

    def __init__(self, service: Service, version: str, max_pixels: int) -> None:
        """version: of this server. max_pixels: of a frame that comes as pixels."""
        self._service = service
        self.version, self.max_pixels = version, max_pixels
        self._statistics: dict[str, ModelStatistics] = {}

    @property
    def ready(self) -> bool:
        """Return whether they can expect to answer."""
        return self._service.ready

    @property
    def live(self) -> bool:
        """Return whether the process works."""
        return self._service.alive

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all models, the cascade first."""
        return (CASCADE, *sorted({name for one in self._service.answering for name in one.fleet.variants}))

    def check(self, name: str, version: str = "") -> None:
        """Raise UnknownModel unless there is such a model in such a version; empty for any."""
        if name not in self.names:
            raise UnknownModel(f"{name[:80]!r} is none of {', '.join(self.names)}")
        if version not in ("", VERSION):
            raise UnknownModel(f"{name} has no version {version[:20]!r}, only {VERSION}")

    def statistics(self, name: str) -> ModelStatistics:
        """Return a model's statistics, to read or to add to."""
        return self._statistics.setdefault(name, ModelStatistics())

    def platform(self, name: str) -> str:
        """Return what runs a model."""
        sources = (one.fleet.source for one in self._service.answering if name in one.fleet.variants)
        return f"paretogate_{next(sources, 'cascade')}"

    def config(self, name: str) -> dict[str, object]:
        """Return a model's configuration with the fields of Triton's `ModelConfig`, JSON's types."""
        return {
            "name": name,
            "platform": self.platform(name),
            "backend": "paretogate",
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": 0,
            "input": [
                {
                    "name": spec.name,
                    "data_type": spec.config_type,
                    "dims": list(spec.shape),
                    "optional": spec.optional,
                }
                for spec in INPUTS
            ],
            "output": [
                {"name": spec.name, "data_type": spec.config_type, "dims": list(spec.shape)}
                for spec in OUTPUTS
            ],
        }

"""The Open Inference Protocol over gRPC, with the messages that tritonclient ships."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeAlias

import grpc
from google.protobuf.json_format import ParseDict
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from router.access import Access, entered, limited
from router.admission import Shed
from router.budget import Budgets, Clock
from router.errors import MalformedRequest, RouterError
from router.execution import Answer
from router.grpc_reply import abort, grouped, outcome_of
from router.http_reply import request_id_of
from router.metrics import Metrics
from router.oip import (
    EXTENSIONS,
    INPUTS,
    NO_SHARED_MEMORY,
    OUTPUTS,
    SERVER,
    VERSION,
    GivenTensor,
    Models,
    Parameter,
    TensorSpec,
    as_bytes_tensor,
    outputs_of,
    parameters_of,
    question,
)
from router.problems import Problem, problem_of
from router.service import Service

OIP_SERVICE = "inference.GRPCInferenceService"
# protobuf's generated classes have no types.
Message = Any  # Any: see above
Context: TypeAlias = grpc.aio.ServicerContext


class InferenceServicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answer the protocol's calls."""

    def __init__(
        self,
        service: Service,
        models: Models,
        budgets: Budgets,
        metrics: Metrics,
        clock: Clock,
        access: Access | None = None,
    ) -> None:
        self._service, self._models, self._budgets = service, models, budgets
        self._metrics, self._clock, self._access = metrics, clock, access

    async def ServerLive(self, request: Message, context: Context) -> Message:
        """Say whether the process works."""
        return service_pb2.ServerLiveResponse(live=self._models.live)

    async def ServerReady(self, request: Message, context: Context) -> Message:
        """Say whether requests can expect answers."""
        return service_pb2.ServerReadyResponse(ready=self._models.ready)

    async def ModelReady(self, request: Message, context: Context) -> Message:
        """Say whether a model can expect to answer."""
        await self._check(request.name, request.version, context)
        return service_pb2.ModelReadyResponse(ready=self._models.ready)

    async def ServerMetadata(self, request: Message, context: Context) -> Message:
        """Describe the server."""
        return service_pb2.ServerMetadataResponse(
            name=SERVER, version=self._models.version, extensions=EXTENSIONS
        )

    async def ModelMetadata(self, request: Message, context: Context) -> Message:
        """Describe a model."""
        await self._check(request.name, request.version, context)
        return service_pb2.ModelMetadataResponse(
            name=request.name,
            versions=[VERSION],
            platform=self._models.platform(request.name),
            inputs=[_described(spec) for spec in INPUTS],
            outputs=[_described(spec) for spec in OUTPUTS],
        )

    async def ModelConfig(self, request: Message, context: Context) -> Message:
        """Return a model's configuration."""
        await self._check(request.name, request.version, context)
        config = ParseDict(self._models.config(request.name), model_config_pb2.ModelConfig())
        return service_pb2.ModelConfigResponse(config=config)

    async def ModelStatistics(self, request: Message, context: Context) -> Message:
        """Return the statistics of a model, or of all."""
        if request.name:
            await self._check(request.name, request.version, context)
        names = [request.name] if request.name else self._models.names
        return service_pb2.ModelStatisticsResponse(model_stats=[self._counted(name) for name in names])

    async def RepositoryIndex(self, request: Message, context: Context) -> Message:
        """List the models."""
        kind = service_pb2.RepositoryIndexResponse.ModelIndex
        return service_pb2.RepositoryIndexResponse(
            models=[kind(name=name, version=VERSION, state="READY") for name in self._models.names]
        )

    async def ModelInfer(self, request: Message, context: Context) -> Message:
        """Answer one frame."""
        answered = await self._infer(request, context)
        if isinstance(answered, Problem):
            return await abort(context, answered, request.id)
        return answered

    async def ModelStreamInfer(
        self, requests: AsyncIterator[Message], context: Context
    ) -> AsyncIterator[Message]:
        """Answer frames one after another; one without an answer is told and does not end the stream."""
        kind = service_pb2.ModelStreamInferResponse
        async for request in requests:
            answered = await self._infer(request, context)
            if isinstance(answered, Problem):
                refused = service_pb2.ModelInferResponse(
                    model_name=request.model_name, model_version=VERSION, id=request.id
                )
                yield kind(error_message=f"{answered.title}: {answered.detail}", infer_response=refused)
            else:
                yield kind(infer_response=answered)

    async def SystemSharedMemoryStatus(self, request: Message, context: Context) -> Message:
        """Return that nothing is registered."""
        return service_pb2.SystemSharedMemoryStatusResponse()

    async def CudaSharedMemoryStatus(self, request: Message, context: Context) -> Message:
        """Return that nothing is registered."""
        return service_pb2.CudaSharedMemoryStatusResponse()

    async def SystemSharedMemoryRegister(self, request: Message, context: Context) -> Message:
        """Refuse."""
        return await context.abort(grpc.StatusCode.UNIMPLEMENTED, NO_SHARED_MEMORY)

    async def CudaSharedMemoryRegister(self, request: Message, context: Context) -> Message:
        """Refuse."""
        return await context.abort(grpc.StatusCode.UNIMPLEMENTED, NO_SHARED_MEMORY)

    async def SystemSharedMemoryUnregister(self, request: Message, context: Context) -> Message:
        """Do nothing: nothing is registered, and clients clean up before they begin."""
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryUnregister(self, request: Message, context: Context) -> Message:
        """Do nothing, as `SystemSharedMemoryUnregister`."""
        return service_pb2.CudaSharedMemoryUnregisterResponse()

    async def _check(self, name: str, version: str, context: Context) -> None:
        try:
            self._models.check(name, version)
        except RouterError as error:
            await abort(context, problem_of(error), "")

    async def _infer(self, request: Message, context: Context) -> Message:
        """Return the response to one frame, or the Problem that took its place."""
        arrived_ns = self._clock.now_ns()
        headers = grouped(context.invocation_metadata())
        arrival = self._metrics.arrived("grpc", headers)
        request_id = request_id_of([request.id.encode()])
        written: list[Message] = []

        async def work() -> Answer | Shed:
            with entered(self._access, headers) as stay:
                self._models.check(request.model_name, request.model_version)
                asked = question(
                    request.model_name,
                    _given(request),
                    _parameters(request.parameters),
                    [output.name for output in request.outputs],
                    headers,
                    max_pixels=self._models.max_pixels,
                )
                left = [left for left in (context.time_remaining(), asked.timeout_s) if left is not None]
                return await self._service.detect(
                    asked.frame,
                    self._budgets.deadline(headers, arrived_ns, call_s=min(left, default=None)),
                    limited(stay, asked.wishes),
                    arrived_ns=arrived_ns,
                    traceparent=arrival.traceparent,
                    finish=_writer(request, asked.outputs, written),
                )

        ended = await outcome_of(work(), arrival, request_id)
        if isinstance(ended, Answer):
            self._models.statistics(request.model_name).answered(ended, time.time_ns() // 1_000_000)
            return written[0]
        if request.model_name in self._models.names:
            self._models.statistics(request.model_name).failed((self._clock.now_ns() - arrived_ns) / 1e6)
        return ended

    def _counted(self, name: str) -> Message:
        counted = self._models.statistics(name)
        kind = service_pb2.StatisticDuration
        durations = {
            what: kind(count=getattr(counted, what).count, ns=getattr(counted, what).ns)
            for what in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        }
        return service_pb2.ModelStatistics(
            name=name,
            version=VERSION,
            last_inference=counted.last_ms,
            inference_count=counted.success.count,
            execution_count=counted.success.count,
            inference_stats=service_pb2.InferStatistics(**durations),
        )


def _described(spec: TensorSpec) -> Message:
    kind = service_pb2.ModelMetadataResponse.TensorMetadata
    return kind(name=spec.name, datatype=spec.datatype, shape=spec.shape)


def _given(request: Message) -> list[GivenTensor]:
    """Return a request's inputs in binary form, however they were sent."""
    for tensor in (*request.inputs, *request.outputs):
        if any(name.startswith("shared_memory") for name in tensor.parameters):
            raise MalformedRequest(f"{tensor.name[:80]}: {NO_SHARED_MEMORY}")
    raws = list(request.raw_input_contents)
    if raws and len(raws) != len(request.inputs):
        raise MalformedRequest(f"raw_input_contents: {len(raws)} for {len(request.inputs)} inputs")
    return [
        GivenTensor(
            tensor.name,
            tensor.datatype,
            tuple(tensor.shape),
            raws[index] if raws else _typed(tensor),
        )
        for index, tensor in enumerate(request.inputs)
    ]


def _typed(tensor: Message) -> bytes:
    contents = tensor.contents
    if tensor.datatype == "BYTES":
        return as_bytes_tensor(list(contents.bytes_contents))
    try:
        return bytes(contents.uint_contents)
    except ValueError as error:
        raise MalformedRequest(f"inputs.{tensor.name[:80]}: a value is no UINT8") from error


def _parameters(given: Mapping[str, Message]) -> dict[str, Parameter]:
    return {
        name: getattr(value, which)
        for name, value in given.items()
        if (which := value.WhichOneof("parameter_choice")) is not None
    }


def _writer(request: Message, names: tuple[str, ...], into: list[Message]) -> Callable[[Answer], None]:
    """Return what writes the response to a request."""

    def write(answer: Answer) -> None:
        tensors = outputs_of(answer, names)
        kind = service_pb2.ModelInferResponse.InferOutputTensor
        into.append(
            service_pb2.ModelInferResponse(
                model_name=request.model_name,
                model_version=VERSION,
                id=request.id,
                parameters={name: _parameter(value) for name, value in parameters_of(answer).items()},
                outputs=[
                    kind(name=tensor.spec.name, datatype=tensor.spec.datatype, shape=tensor.shape)
                    for tensor in tensors
                ],
                raw_output_contents=[tensor.raw for tensor in tensors],
            )
        )

    return write


def _parameter(value: Parameter) -> Message:
    kind = service_pb2.InferParameter
    if isinstance(value, bool):
        return kind(bool_param=value)
    if isinstance(value, int):
        return kind(int64_param=value)
    return kind(double_param=value) if isinstance(value, float) else kind(string_param=value)

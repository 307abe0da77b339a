"""Bytes that are no message: told to their sender as a malformed request.

gRPC's own answer is UNKNOWN with a traceback in the log, which anybody could fill.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from router.errors import MalformedRequest
from router.grpc_reply import abort
from router.http_reply import request_id_of
from router.problems import problem_of

Handler: TypeAlias = grpc.RpcMethodHandler
Message = Any  # Any: protobuf's generated classes have no common type


class TolerantServer:
    """What generated code registers services with: hands their methods on to a server, parsing with care."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, _: tuple[grpc.GenericRpcHandler, ...]) -> None:
        """Do nothing: the same methods come as registered ones."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Register a service's methods."""
        tolerant = {name: _tolerant(handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, tolerant),))


class _Undecodable:
    """Stands for bytes that are no message."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def _tolerant(handler: Handler) -> Handler:
    parse, write = handler.request_deserializer, handler.response_serializer

    def deserialize(data: bytes) -> Message:
        try:
            return parse(data)
        except DecodeError as error:
            return _Undecodable(str(error))

    if handler.request_streaming:
        make, inner = grpc.stream_stream_rpc_method_handler, handler.stream_stream
        answer = _streaming(inner) if inspect.isasyncgenfunction(inner) else _conversing(inner)
    else:
        make, answer = grpc.unary_unary_rpc_method_handler, _single(handler.unary_unary)
    return make(answer, deserialize, write)


def _single(inner: Callable[..., Any]) -> Callable[..., Any]:  # Any: a method as gRPC takes it
    async def answer(request: Message, context: grpc.aio.ServicerContext) -> Message:
        if isinstance(request, _Undecodable):
            await abort(context, problem_of(_error(request)), request_id_of(()))
        return await inner(request, context)

    return answer


def _conversing(inner: Callable[..., Any]) -> Callable[..., Any]:  # Any: as above
    async def answer(requests: AsyncIterator[Message], context: grpc.aio.ServicerContext) -> None:
        try:
            await inner(_checked(requests), context)
        except MalformedRequest as error:
            await abort(context, problem_of(error), request_id_of(()))

    return answer


def _streaming(inner: Callable[..., Any]) -> Callable[..., Any]:  # Any: as above
    async def answer(
        requests: AsyncIterator[Message], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Message]:
        try:
            async for message in inner(_checked(requests), context):
                yield message
        except MalformedRequest as error:
            await abort(context, problem_of(error), request_id_of(()))

    return answer


async def _checked(requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
    async for request in requests:
        if isinstance(request, _Undecodable):
            raise _error(request)
        yield request


def _error(request: _Undecodable) -> MalformedRequest:
    return MalformedRequest(f"the call's bytes are no message: {request.reason}")

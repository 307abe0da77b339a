"""Keys over gRPC: asked for before a call's message is read, of every service but health."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health

from router.access import Access
from router.errors import RouterError
from router.grpc_reply import abort, grouped
from router.http_reply import request_id_of
from router.problems import Problem, problem_of

_OPEN = f"/{health.SERVICE_NAME}/"

Handler: TypeAlias = grpc.RpcMethodHandler
Details: TypeAlias = grpc.HandlerCallDetails


class KeyInterceptor(grpc.aio.ServerInterceptor):
    """Refuse calls without a key that holds; what the key allows is for the services to ask."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(
        self, continuation: Callable[[Details], Awaitable[Handler | None]], details: Details
    ) -> Handler | None:
        """Return the call's own handler, or one that ends it."""
        if not details.method.startswith(_OPEN):
            try:
                self._access.account(grouped(details.invocation_metadata))
            except RouterError as error:
                return _refusing(problem_of(error))
        return await continuation(details)


def _refusing(problem: Problem) -> Handler:
    async def refuse(_: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        await abort(context, problem, request_id_of(()))
        yield  # what makes it a stream, which is never reached

    # Of a stream: the handler of a single message would first wait for that message.
    return grpc.stream_stream_rpc_method_handler(refuse)

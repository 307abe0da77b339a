"""The gRPC edge of streams: `DetectStream`, see `router.stream`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from router.errors import RouterError
from router.grpc_reply import abort, encode_answer, grouped
from router.http_body import SenderLeft
from router.http_reply import request_id_in
from router.problems import problem_of
from router.stream import Result, Streams
from router.wire import paretogate_pb2 as wire


async def serve_stream(
    streams: Streams, frames: AsyncIterator[wire.StreamFrame], context: grpc.aio.ServicerContext
) -> None:
    """Answer a call's frames until its sender has no more, has left, or the gateway drains.

    Reading goes on while answers are made: that is what tells that a frame is not the newest any more.
    """
    headers = grouped(context.invocation_metadata())
    request_id = request_id_in(headers)

    # One after another, as gRPC wants them; several may be in flight.
    writing = asyncio.Lock()

    async def send(result: Result[wire.DetectResponse]) -> None:
        async with writing:
            try:
                await context.write(encode_result(result))
            except (grpc.RpcError, asyncio.InvalidStateError) as error:
                raise SenderLeft from error

    async def read() -> None:
        async for frame in frames:
            budget_ms = frame.budget_ms if frame.HasField("budget_ms") else None
            stream.offer(frame.image, name=frame.name, budget_ms=budget_ms)

    try:
        stream = streams.open("grpc-stream", streams.wishes(headers), encode_answer, send, request_id)
    except RouterError as error:
        await abort(context, problem_of(error), request_id)
    try:
        await stream.run(read())
    except SenderLeft:
        return
    counts = (("paretogate-frames", str(stream.arrived)), ("paretogate-dropped", str(stream.dropped)))
    if stream.ended_by is not None:
        await abort(context, problem_of(stream.ended_by), request_id, counts)
    context.set_trailing_metadata(counts)


def encode_result(result: Result[wire.DetectResponse]) -> wire.StreamResult:
    """Return the message of a result."""
    message = wire.StreamResult(
        number=result.number, name=result.name, dropped=result.dropped, age_ms=result.age_ms
    )
    problem = result.problem
    if problem is not None:
        message.problem.CopyFrom(
            wire.Problem(
                slug=problem.slug,
                title=problem.title,
                status=problem.status,
                detail=problem.detail,
                retry_after_s=problem.retry_after_s,
            )
        )
    elif result.written is not None:
        message.answer.CopyFrom(result.written)
    if result.reused is not None:
        message.reused.CopyFrom(wire.Reused(number=result.reused.number, difference=result.reused.difference))
    return message

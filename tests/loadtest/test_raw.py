"""The light target: what servers do to connections that are kept."""

from __future__ import annotations

import asyncio

from loadtest.raw import RawTarget
from loadtest.sample import Reply

BODY = b'{"plan":"p","stages":[],"cut":null,"detections":[]}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)


def test_a_connection_that_the_server_closed_meanwhile_is_not_used_again() -> None:
    """A server may close what is idle: the next frame goes over a new connection and is answered."""
    accepted = 0

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]))
        writer.write(ANSWER)
        await writer.drain()
        writer.close()

    async def ask() -> list[Reply]:
        async with await asyncio.start_server(answer_once, "127.0.0.1", 0) as server:
            target = RawTarget(server.sockets[0].getsockname()[1])
            replies = []
            for _ in range(3):
                replies.append(await target.send(b"frame", None, None))
                await asyncio.sleep(0.05)
            await target.close()
            return replies

    replies = asyncio.run(ask())
    assert [reply.outcome for reply in replies] == ["answered"] * 3
    assert accepted == 3

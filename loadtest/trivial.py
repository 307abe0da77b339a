"""A server that does next to nothing: it speaks as much of the gateway's HTTP as a load needs, and answers
every frame with the same detections at once. What a load through it costs is the generator's own.

`python -m loadtest.trivial --port 0` prints the port that it listens on. `--stall-ms 200 --stall-at 500`
makes it stop once, for 200 ms, with its 500th frame: nothing is read and nothing is answered meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import time

CLASSES = ("thing",)
_DETECTIONS = 20
_HEAD_END = b"\r\n\r\n"


def _body(document: object) -> bytes:
    content = json.dumps(document).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        len(content),
        content,
    )


_POINTS = _body(
    {
        "dataset": "none",
        "classes": CLASSES,
        "runtime": "none",
        "runtime_version": "0",
        "manifest": "0",
        "profiles": "published",
        "in_force": "only",
        "operating_points": [],
    }
)
_ANSWER = _body(
    {
        "plan": "none",
        "stages": [{"variant": "none", "latency_ms": 0.0}],
        "cut": None,
        "detections": [
            {
                "box": {"x1": 10.0, "y1": 10.0, "x2": 60.5, "y2": 60.5},
                "label": CLASSES[0],
                "class_id": 0,
                "score": round(0.9 - number / 100, 6),
            }
            for number in range(_DETECTIONS)
        ],
    }
)


class Stall:
    """Stop the whole process once, with a frame of some number, counted from 1; 0 for never."""

    def __init__(self, at: int, ms: float) -> None:
        self._at, self._ms, self._frames = at, ms, 0

    def count(self) -> None:
        """Count a frame, and stop when its turn has come."""
        self._frames += 1
        if self._frames == self._at:
            time.sleep(self._ms / 1e3)


class Answering(asyncio.Protocol):
    """One connection."""

    def __init__(self, stall: Stall) -> None:
        self._stall, self._got = stall, bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where answers go."""
        assert isinstance(transport, asyncio.Transport), "a socket that can be written to"
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole."""
        self._got += data
        while (end := self._got.find(_HEAD_END)) >= 0:
            head = bytes(self._got[:end]).lower()
            _, _, told = head.partition(b"content-length:")
            length = int(told.split(b"\r\n", 1)[0]) if told else 0
            if len(self._got) < end + len(_HEAD_END) + length:
                return
            del self._got[: end + len(_HEAD_END) + length]
            if head.startswith(b"get "):
                self._transport.write(_POINTS)
            else:
                self._stall.count()
                self._transport.write(_ANSWER)


async def serve(port: int, stall: Stall) -> asyncio.Server:
    """Listen on a port of 127.0.0.1; 0 takes a free one."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: Answering(stall), "127.0.0.1", port, backlog=1024)


async def _run(port: int, stall: Stall) -> None:
    server = await serve(port, stall)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--stall-at", type=int, default=0)
    parser.add_argument("--stall-ms", type=float, default=200.0)
    given = parser.parse_args()
    asyncio.run(_run(given.port, Stall(given.stall_at, given.stall_ms)))


if __name__ == "__main__":
    main()

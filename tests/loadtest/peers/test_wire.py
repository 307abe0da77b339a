"""Speaking HTTP to peers: answers with a length and in chunks, errors, detections."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from loadtest.closed import ConversationError
from loadtest.peers.wire import HttpLoop, HttpTarget, detections_of, request_head
from loadtest.sample import Reply

ROWS = np.array([[1, 2, 3, 4, 0.5, 1], [5, 6, 7, 8, 0.25, 0]], dtype=np.float32)
FRAMES = (b"plain", b"chunked", b"broken", b"odd")
HEAD = request_head("/detect", "application/octet-stream", [("X-Wish", "much")])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        content = b"\0" * 20 if asked == b"odd" else ROWS.tobytes()
        if asked == b"broken" or self.headers["X-Wish"] != "much":
            self.send_response(500)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"oops")
            return
        self.send_response(200)
        if asked == b"chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (content[:10], content[10:]):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    """Serve rows on a free port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_a_loop_reads_both_kinds_of_answers(port: int) -> None:
    """One connection reads an answer with a length, one in chunks, and a refusal, one after the other."""
    loop = HttpLoop(port, HEAD)
    assert loop.exchange(b"plain") == ROWS.tobytes()
    assert loop.exchange(b"chunked") == ROWS.tobytes()
    with pytest.raises(ConversationError, match="500"):
        loop.ask(b"broken")
    assert loop.exchange(b"chunked") == ROWS.tobytes()
    loop.close()


def test_a_lost_server_is_no_conversation() -> None:
    """A connection that ends within an answer is the server's fault, whatever it raises."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        loop = HttpLoop(listener.getsockname()[1], HEAD)
        listener.accept()[0].close()
        with pytest.raises(ConversationError, match=r"closed the connection|connection broke"):
            loop.ask(b"plain")
        loop.close()


def test_a_target_makes_every_answer_a_reply(port: int) -> None:
    """Rows become detections in either form; what fails is a reply that says so, a lost server too."""

    async def ask(to: int) -> list[Reply]:
        target = HttpTarget(to, HEAD, ("nut", "bolt"))
        try:
            return [await target.send(frame, 50.0, None) for frame in FRAMES]
        finally:
            await target.close()

    plain, chunked, broken, odd = asyncio.run(ask(port))
    for reply in (plain, chunked):
        assert reply.outcome == "answered"
        assert np.array_equal(reply.detections.xyxy, ROWS[:, :4])
        assert reply.detections.label.tolist() == [1, 0]
    assert (broken.outcome, broken.detail) == ("failed", "status 500")
    assert odd.outcome == "failed"
    assert {reply.outcome for reply in asyncio.run(ask(1))} == {"failed"}


def test_bytes_that_are_no_rows_are_refused() -> None:
    """An answer of a wrong size is an error, not a short list."""
    with pytest.raises(ValueError, match="reshape"):
        detections_of(b"\0" * 20)

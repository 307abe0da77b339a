"""Every protocol against a real gateway: the same boxes, and what is no answer has one outcome."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import trustme

from loadtest.gateway import PROTOCOLS, Protocol, connect
from loadtest.process import free_port, gateway
from loadtest.raw import RawTarget
from loadtest.sample import Reply
from loadtest.target import Target, TargetError
from router.client import ClientTls
from tests.fakes import CLASSES, Square, encode_image, squares_frame, tiny_repository

FRAME = encode_image(squares_frame([Square(0, 0, 0), Square(2, 1, 1)], (256, 256)))
OWN = tuple(protocol for protocol in PROTOCOLS if protocol != "triton")


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a gateway is reached."""

    url: str
    grpc_address: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """Run a gateway on a tiny repository."""
    folder = tmp_path_factory.mktemp("targets")
    repository = tiny_repository(folder / "repository")
    port, grpc_port = free_port(), free_port()
    options = ("--measure", "never", "--grpc-port", str(grpc_port), "--max-queue", "1000")
    with gateway(repository.root, port, folder / "gateway.log", *options, "--max-wait-ms", "60000"):
        yield Addresses(f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc_port}")


def ask(at: Addresses, protocol: Protocol, do: Callable[[Target], Awaitable[list[Reply]]]) -> list[Reply]:
    """Connect, do something, close."""

    async def run() -> list[Reply]:
        target = connect(at.url, protocol, grpc_address=at.grpc_address, timeout_s=60.0)
        try:
            return await do(target)
        finally:
            await target.close()

    return asyncio.run(run())


@pytest.mark.parametrize("protocol", OWN)
def test_all_protocols_give_the_same_boxes(served: Addresses, protocol: Protocol) -> None:
    """Two frames one after another are answered with the plan and the boxes of the point asked for."""

    async def twice(target: Target) -> list[Reply]:
        described = await target.describe()
        assert described.classes == CLASSES
        assert described.operating_points == ("fast", "balanced", "accurate")
        return [await target.send(FRAME, 30_000.0, "fast") for _ in range(2)]

    for reply in ask(served, protocol, twice):
        assert (reply.outcome, reply.detail) == ("answered", None)
        assert reply.plan == "tiny-0"
        # The Open Inference Protocol says nothing of stages.
        assert reply.stages == (() if protocol.startswith("oip") else ("tiny-0",))
        assert sorted(reply.detections.label.tolist()) == [0, 1]
        first = reply.detections.xyxy[reply.detections.label == 0][0]
        np.testing.assert_allclose(first, (0, 0, 64, 64), atol=1.0)


@pytest.mark.parametrize("protocol", OWN)
def test_what_is_no_answer_has_one_outcome(served: Addresses, protocol: Protocol) -> None:
    """A broken image and a budget that nothing can meet are rejected with a reason; the target goes on."""

    async def some(target: Target) -> list[Reply]:
        return [
            await target.send(b"no image", None, None),
            await target.send(FRAME, 0.01, None),
            await target.send(FRAME, None, None),
        ]

    broken, hopeless, fine = ask(served, protocol, some)
    assert broken.outcome == "rejected"
    # Over gRPC the deadline can pass on this side first.
    assert hopeless.outcome in ("rejected", "timed_out")
    assert broken.detail
    assert hopeless.detail
    assert fine.outcome == "answered"


@pytest.mark.parametrize("protocol", OWN)
def test_nobody_there_is_a_failure_and_cannot_be_described(protocol: Protocol) -> None:
    """A connection that is refused is a Reply, and asking what is served a TargetError."""
    nowhere = Addresses(f"http://127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")

    async def once(target: Target) -> list[Reply]:
        with pytest.raises(TargetError):
            await target.describe()
        return [await target.send(FRAME, 1_000.0, None)]

    (reply,) = ask(nowhere, protocol, once)
    assert reply.outcome in ("failed", "timed_out")
    assert reply.detail


def test_of_frames_that_come_at_once_the_newest_wins(served: Addresses) -> None:
    """In a stream frames are answered or dropped, each is accounted for, and the last is answered."""

    async def burst(target: Target) -> list[Reply]:
        await target.send(FRAME, None, "accurate")
        return list(await asyncio.gather(*(target.send(FRAME, None, "accurate") for _ in range(30))))

    outcomes = [reply.outcome for reply in ask(served, "stream", burst)]
    assert set(outcomes) == {"answered", "dropped"}
    assert outcomes[-1] == "answered"


def test_cameras_share_the_frames(served: Addresses) -> None:
    """With as many cameras as frames at once nothing is dropped: no frame has a newer one on its stream."""

    async def run() -> list[Reply]:
        target = connect(served.url, "stream", cameras=8, timeout_s=60.0)
        try:
            return list(await asyncio.gather(*(target.send(FRAME, None, "fast") for _ in range(8))))
        finally:
            await target.close()

    assert [reply.outcome for reply in asyncio.run(run())] == ["answered"] * 8


def test_https_is_trusted_by_its_ca_and_shown_the_key(tmp_path: Path) -> None:
    """The light target speaks TLS, shows its key, keeps an address's path, and does not trust strangers."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        await reader.readexactly(5)
        body = b'{"plan":"p","stages":[],"cut":null,"detections":[]}'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    async def ask_both() -> list[Reply]:
        async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
            url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/behind"
            replies = []
            for tls in (ClientTls(tmp_path / "ca.pem"), None):
                target = RawTarget.at(url, api_key="pg_secret", tls=tls)
                replies.append(await target.send(b"frame", None, None))
                await target.close()
            return replies

    trusted, stranger = asyncio.run(ask_both())
    assert trusted.outcome == "answered"
    assert stranger.outcome == "failed"
    assert heads[0].startswith(b"POST /behind/v1/detect HTTP/1.1\r\n")
    assert b"Authorization: Bearer pg_secret\r\n" in heads[0]


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", "failed"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "failed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "failed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nword", "failed"),
        (b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 5\r\n\r\nproxy", "failed"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "rejected"),
        (b"HTTP/1.1 429 Too Many\r\ncontent-length: 0\r\n\r\n", "shed"),
    ],
)
def test_what_is_not_the_gateways_answer_is_a_reply(answer: bytes, outcome: str) -> None:
    """Whatever listens there, the generator goes on and says that it failed."""

    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def once() -> Reply:
        async with await asyncio.start_server(tell, "127.0.0.1", 0) as server:
            target = RawTarget(server.sockets[0].getsockname()[1])
            reply = await target.send(b"frame", None, None)
            await target.close()
            return reply

    assert asyncio.run(once()).outcome == outcome


def test_an_address_that_is_none_is_refused(tmp_path: Path) -> None:
    """What cannot be connected to is said before anything is sent."""
    with pytest.raises(ValueError, match="expected an address"):
        RawTarget.at("127.0.0.1:8080")
    with pytest.raises(ValueError, match="published repository"):
        connect("", "triton", grpc_address="127.0.0.1:1", timeout_s=1.0)
    with pytest.raises(TargetError, match="No such file"):
        connect("", "triton", grpc_address="127.0.0.1:1", repo=tmp_path / "none", timeout_s=1.0)
    with pytest.raises(ValueError, match="at least one camera"):
        connect("http://127.0.0.1:1", "stream", cameras=0, timeout_s=1.0)

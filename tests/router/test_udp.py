"""Cameras over UDP, through real sockets, to a gateway whose engine is scripted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from model_repo.publish import Repository
from router.bootstrap import Gateway
from router.client import CameraResult, GatewayFailed, UdpCamera
from router.config import Config
from router.datagrams import datagrams
from router.documents import AnswerDocument
from router.encoding import answer_json
from router.engines import StartupError
from router.reassembly import IDLE_NS
from router.stream import StreamWishes
from router.udp import LONGEST_ANSWER, Address, UdpIngest, bind_udp, datagram_json, receiving
from router.wishes import Wishes
from tests.fakes import FakeClock, FakeEngine
from tests.router.conftest import LARGE, SURE, Bench, sample
from tests.router.test_encoding import answer_of
from tests.router.test_jpeg import jpeg_of, picture
from tests.router.test_service import Held, until

pytestmark = pytest.mark.anyio
JPEG = jpeg_of(picture((64, 64)))
CAMERA: Address = ("127.0.0.1", 5004)


@contextlib.asynccontextmanager
async def listening(gateway: Gateway, **settings: object) -> AsyncIterator[str]:
    """Take datagrams on a free port."""
    config = Config.model_validate({"repo": "unused", "udp_port": 0, **settings})
    async with receiving(config, 0, gateway.streams, gateway.metrics) as address:
        yield address


@dataclass
class Ingest:
    """The edge without a socket: datagrams go in by a call, and results are kept."""

    gateway: Gateway
    edge: UdpIngest
    told: list[tuple[Address, str, dict[str, object]]]

    def send(self, frame: bytes, number: int, *, sender: Address = CAMERA, stream: int = 7) -> None:
        """Have all datagrams of a frame arrive."""
        for datagram in datagrams(frame, stream=stream, frame=number):
            self.edge.datagram_received(datagram, sender)

    def datagrams(self, fate: str) -> float:
        return sample(self.gateway, "paretogate_udp_datagrams_total", fate=fate)

    @property
    def streams(self) -> float:
        return sample(self.gateway, "paretogate_streams", protocol="udp")


def ingest(gateway: Gateway, allow: str = "127.0.0.0/8", most_streams: int = 2) -> Ingest:
    told: list[tuple[Address, str, dict[str, object]]] = []
    networks = Config.model_validate({"repo": "unused", "udp_allow": allow}).udp_networks
    edge = UdpIngest(
        gateway.streams,
        gateway.metrics,
        StreamWishes({}, Wishes(), 1, None),
        networks,
        most_streams=most_streams,
        frame_bytes=1_000_000,
        tell=lambda address, name, body: told.append((address, name, json.loads(body))),
    )
    return Ingest(gateway, edge, told)


async def answered(camera: UdpCamera, frame: bytes, **said: float) -> CameraResult:
    """Send a frame and return its result."""
    number = camera.send(frame, **said)
    result = await asyncio.to_thread(camera.receive, 30)
    assert result is not None
    assert result.frame == number
    return result


@pytest.mark.parametrize("rtp", [False, True])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_camera_gets_a_result_for_its_frame(bench: Bench, rtp: bool, host: str) -> None:
    """In both formats: the answer that every other edge gives, under the frame's own number."""
    engine = FakeEngine(rows={"tiny-0": SURE, "tiny-1": LARGE})
    gateway = bench(engine)
    async with listening(gateway, host=host, udp_query="operating_point=accurate") as address:
        with UdpCamera(address, rtp=rtp, datagram_bytes=300) as camera:
            for _ in range(3):
                result = await answered(camera, JPEG)
                assert result.problem is None
                assert result.answer is not None
                assert result.answer.operating_point == "accurate"
                assert (result.answer.image.width, len(result.answer.detections)) == (64, 1)
                assert (result.dropped, result.left_out) == (0, 0)
    assert engine.calls == ["tiny-1"] * 3
    assert sample(gateway, "paretogate_requests_total", protocol="udp", outcome="answered") == 3
    assert sample(gateway, "paretogate_udp_frames_total", fate="whole") == 3
    assert sample(gateway, "paretogate_udp_results_total", fate="sent") == 3
    assert sample(gateway, "paretogate_streams", protocol="udp") == 0


async def test_a_png_goes_in_our_own_format(bench: Bench, frame: bytes) -> None:
    """With a budget of its own; what is wrong with a frame is told as a problem."""
    async with listening(bench()) as address:
        with UdpCamera(address) as camera:
            assert (await answered(camera, frame, budget_ms=20_000)).answer is not None
            small = await answered(camera, frame, budget_ms=0.5)
            broken = await answered(camera, b"GIF89a")
        with UdpCamera(address, rtp=True) as rtp:
            with pytest.raises(ValueError, match="no JPEG"):
                rtp.send(frame)
            with pytest.raises(ValueError, match="--udp-query"):
                rtp.send(JPEG, budget_ms=50)
    assert small.problem is not None
    assert small.problem.type.endswith("unmeetable-budget")
    assert broken.problem is not None
    assert broken.problem.status == 415


async def test_of_frames_that_lose_datagrams_the_whole_ones_are_answered(bench: Bench) -> None:
    """A fifth of all datagrams lost and the rest shuffled: the others' results are as they were."""
    edge = ingest(bench())
    rng = random.Random(5)
    whole = []
    for number in range(40):
        cut = datagrams(JPEG, stream=7, frame=number, most_bytes=400)
        kept = [datagram for datagram in cut if rng.random() >= 0.2]
        rng.shuffle(kept)
        for datagram in kept:
            edge.edge.datagram_received(datagram, CAMERA)
        if len(kept) == len(cut):
            whole.append(number)
            await until(lambda: len(edge.told) == len(whole))
    assert 0 < len(whole) < 40
    assert [said["name"] for _, _, said in edge.told] == [f"127.0.0.1:5004/7/{number}" for number in whole]
    assert all("answer" in said for _, _, said in edge.told)
    await edge.edge.drain(30)


async def test_senders_from_elsewhere_are_not_heard(bench: Bench) -> None:
    """Nothing but counting is done for them; IPv4 through an IPv6 socket is IPv4."""
    edge = ingest(bench(), allow="10.0.0.0/8, fd00::/8,192.168.1.7")
    for host in ("127.0.0.1", "11.0.0.1", "192.168.1.8", "fe80::1%eth0", "::ffff:11.0.0.1"):
        edge.send(JPEG, 1, sender=(host, 5004))
    count = len(datagrams(JPEG, stream=1, frame=1))
    assert edge.datagrams("foreign") == 5 * count
    assert edge.streams == 0
    for place, host in enumerate(("10.1.2.3", "fd00::1", "192.168.1.7", "::ffff:10.0.0.1")):
        edge.send(JPEG, 1, sender=(host, 5004))
        assert edge.datagrams("taken") == (place + 1) * count
    await edge.edge.drain(30)


async def test_a_stream_ends_when_it_is_idle_and_begins_again(bench: Bench) -> None:
    """After ten seconds without a whole frame; there is room for another then."""
    clock = FakeClock()
    edge = ingest(bench(clock=clock), most_streams=1)
    edge.send(JPEG, 5)
    edge.send(JPEG, 5, stream=8)
    assert edge.streams == 1
    assert sample(edge.gateway, "paretogate_udp_frames_total", fate="refused") == 1
    await until(lambda: len(edge.told) == 1)
    clock.sleep(IDLE_NS / 1e9 + 1)
    edge.edge.sweep()
    await until(lambda: edge.streams == 0)
    edge.send(JPEG, 1, stream=8)
    await until(lambda: len(edge.told) == 2)
    assert edge.told[1][:2] == (CAMERA, "127.0.0.1:5004/8")
    await edge.edge.drain(30)


async def test_where_the_gateway_has_no_more_streams_the_frame_is_refused(bench: Bench) -> None:
    """As every request that arrives it ends in one outcome; the next frame tries again."""
    gateway = bench(max_streams=1)
    edge = ingest(gateway)
    edge.send(JPEG, 1)
    edge.send(JPEG, 1, stream=8)
    refused = {"protocol": "udp", "outcome": "failed"}
    assert sample(gateway, "paretogate_requests_total", **refused) == 1
    await edge.edge.drain(30)
    edge.send(JPEG, 2, stream=8)
    assert sample(gateway, "paretogate_requests_total", **refused) == 1
    await edge.edge.drain(30)
    assert [name for _, name, _ in edge.told] == ["127.0.0.1:5004/7", "127.0.0.1:5004/8"]


async def test_the_newest_frame_wins(bench: Bench) -> None:
    """Whole frames that come while one is answered are dropped but for the last."""
    held = Held()
    edge = ingest(bench(FakeEngine(rows={"tiny-0": held, "tiny-1": LARGE})))
    edge.send(JPEG, 0)
    await held.wait_until_busy()
    for number in range(1, 10):
        edge.send(JPEG, number)
    held.open()
    await edge.edge.drain(30)
    assert [(said["name"], said["dropped"]) for _, _, said in edge.told] == [
        ("127.0.0.1:5004/7/0", 8),
        ("127.0.0.1:5004/7/9", 8),
    ]


async def test_draining_answers_what_was_taken(bench: Bench) -> None:
    """And takes no more; a frame that takes too long is given up."""
    held = Held()
    edge = ingest(bench(FakeEngine(rows={"tiny-0": held, "tiny-1": LARGE})))
    edge.send(JPEG, 0)
    await held.wait_until_busy()
    edge.gateway.streams.drain()
    edge.send(JPEG, 1)
    await edge.edge.drain(0.01)
    held.open()
    assert edge.told == []
    assert edge.streams == 0
    assert sample(edge.gateway, "paretogate_requests_total", protocol="udp", outcome="superseded") == 1


async def test_hostile_datagrams_make_nothing(bench: Bench) -> None:
    """Arbitrary bytes under both formats' heads are counted, and the next camera is answered."""
    edge = ingest(bench())
    rng = random.Random(3)
    heads = [
        b"",
        b"\x80\x1a",
        b"\x80\x9a",
        b"PGF\x01",
        b"PGF\x02",
        datagrams(JPEG, stream=1, frame=1)[0][:20],
    ]
    for _ in range(2000):
        junk = rng.choice(heads) + rng.randbytes(rng.randrange(60))
        edge.edge.datagram_received(junk, ("127.0.0.1", rng.randrange(1, 65536)))
    assert edge.datagrams("malformed") > 500
    edge.send(JPEG, 1)
    await edge.edge.drain(30)
    assert "answer" in edge.told[-1][2]


async def test_an_answer_that_no_datagram_holds_is_without_its_least_certain(repository: Repository) -> None:
    """It says how many those are; what fits is as it always is."""
    found = [(0.0, 0.0, 8.0, 8.0, place / 100, place % 2) for place in range(100)]
    answer = answer_of(repository, found)
    assert datagram_json(answer, "id") == answer_json(answer, "id")
    wordy = replace(answer, classes=("red" * 400, "green" * 400))
    body = datagram_json(wordy, "id")
    said = json.loads(body)
    kept = len(said["detections"])
    assert len(body) < LONGEST_ANSWER + 20
    assert 20 < kept < 60
    assert said["left_out"] == 100 - kept
    assert [one["score"] for one in said["detections"]] == [
        pytest.approx((99 - place) / 100, abs=1e-6) for place in range(kept)
    ]
    assert AnswerDocument.model_validate(said).as_detections().score[0] == pytest.approx(0.99)


async def test_results_go_to_the_callback_where_there_is_one(bench: Bench) -> None:
    """Each as JSON with the frame's name; the sender gets none."""
    got = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        got.set_result(json.loads(await reader.readexactly(length)))
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    gateway = bench()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/results"
    async with server, listening(gateway, udp_callback=url) as address:
        with UdpCamera(address) as camera:
            camera.send(JPEG)
            said = await asyncio.wait_for(got, 30)
            assert await asyncio.to_thread(camera.receive, 0) is None
    assert said["name"].startswith("127.0.0.1:")
    assert said["name"].endswith("/0")
    assert AnswerDocument.model_validate(said["answer"]).detections
    assert sample(gateway, "paretogate_udp_results_total", fate="sent") == 1


def test_a_port_is_had_once_and_one_without_a_gateway_refuses() -> None:
    """A taken port is an error in words; the camera raises what the other machine says."""
    with bind_udp("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=f"cannot listen on 127.0.0.1:{port}"):
            bind_udp("127.0.0.1", port)
    with UdpCamera(f"127.0.0.1:{port}", datagram_bytes=60_000) as camera:
        camera.send(JPEG)
        with pytest.raises(GatewayFailed, match="refused"):
            camera.receive(30)
    with pytest.raises(GatewayFailed):
        UdpCamera("127.0.0.1:no-port")


async def test_what_streams_cannot_ask_for_is_told_at_start(bench: Bench) -> None:
    """As the query of /v1/stream would be; the message names the option."""
    for query, words in (("budget=4", "budget"), ("operating_point=nope", "nope"), ("budget_ms=x", "Budget")):
        with pytest.raises(StartupError, match=f"--udp-query: .*{words}"):
            async with listening(bench(), udp_query=query):
                raise AssertionError("it began")

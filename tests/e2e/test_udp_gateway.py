"""Cameras over UDP, to the gateway as a process."""

from __future__ import annotations

import random
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from router.client import GatewayClient, UdpCamera
from router.datagrams import datagrams
from router.rtp_jpeg import packets
from tests.e2e.gateway_process import GatewayProcess, gateway_process
from tests.e2e.test_router_server import wait_until
from tests.fakes import Square, encode_image, squares_frame, tiny_repository

JPEG = encode_image(squares_frame([Square(0, 0, 0), Square(2, 1, 1, 200)], (256, 192)), ".jpg")
HOSTILE = 10_000


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A running gateway that takes datagrams."""
    published = tiny_repository(tmp_path_factory.mktemp("published") / "repository")
    with gateway_process(published.root, "--udp-port", "0") as process:
        yield process


def series(gateway: GatewayProcess, name: str, **labels: str) -> float:
    """Return a counter's value, summed over the labels that are not given."""
    total = 0.0
    for line in httpx.get(f"{gateway.admin_url}/metrics").text.splitlines():
        found = re.fullmatch(rf"{name}\{{(.*)\}} (\S+)", line)
        if found and all(f'{label}="{value}"' in found[1] for label, value in labels.items()):
            total += float(found[2])
    return total


@pytest.mark.parametrize("rtp", [False, True])
def test_over_udp_the_answer_is_that_of_http(gateway: GatewayProcess, rtp: bool) -> None:
    """The same detections for the same picture, in both formats."""
    with GatewayClient(gateway.url) as client:
        expected = client.detect(JPEG)
    with UdpCamera(gateway.udp_address, rtp=rtp) as camera:
        number = camera.send(JPEG)
        result = camera.receive(60)
    assert result is not None
    assert result.frame == number
    assert result.answer is not None
    assert len(result.answer.detections) >= 2
    assert result.answer.detections == expected.detections


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed: apt-get install ffmpeg")
def test_what_ffmpeg_streams_is_answered(gateway: GatewayProcess) -> None:
    """Every frame of its test picture comes whole, and ends answered or because a newer one came."""

    def ended() -> float:
        return sum(
            series(gateway, "paretogate_requests_total", protocol="udp", outcome=outcome)
            for outcome in ("answered", "superseded")
        )

    before = ended()
    subprocess.run(
        ["ffmpeg", "-hide_banner", "-loglevel", "error", "-re", "-f", "lavfi",
         "-i", "testsrc=size=640x480:rate=10", "-frames:v", "20", "-c:v", "mjpeg", "-huffman", "default",
         "-pix_fmt", "yuvj420p", "-f", "rtp", f"rtp://{gateway.udp_address}"],
        check=True, timeout=120,
    )  # fmt: skip
    wait_until(lambda: ended() == before + 20)
    assert series(gateway, "paretogate_requests_total", protocol="udp", outcome="failed") == 0


def test_hostile_datagrams_change_nothing(gateway: GatewayProcess) -> None:
    """Ten thousand of them, from many senders: no crash, no growth of memory, and a camera is answered."""
    rng = random.Random(20_261_123)
    valid = [
        *datagrams(JPEG, stream=1, frame=1),
        *packets(JPEG, ssrc=1, timestamp=1, sequence=1),
    ]

    def hostile() -> bytes:
        kind = rng.randrange(4)
        if kind == 0:
            return rng.randbytes(rng.randrange(1500))
        datagram = bytearray(rng.choice(valid))
        if kind == 1:
            del datagram[rng.randrange(len(datagram)) :]
        if kind == 2:
            # Of a stream and a frame of its own, so that it waits for the rest.
            datagram[4:12] = rng.randbytes(8)
        for _ in range(rng.randrange(1, 9)):
            if datagram:
                datagram[rng.randrange(min(len(datagram), 40))] = rng.randrange(256)
        return bytes(datagram)

    def arrived() -> float:
        return series(gateway, "paretogate_udp_datagrams_total")

    def reached(count: float) -> bool:
        return arrived() >= count

    senders = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(50)]
    host, _, port = gateway.udp_address.rpartition(":")

    def send(count: int) -> None:
        # In portions that the receive buffer holds: what is lost there would not have been tried.
        for _ in range(count // 500):
            before = arrived()
            for _ in range(500):
                rng.choice(senders).sendto(hostile(), (host, int(port)))
            wait_until(partial(reached, before + 500))

    try:
        send(HOSTILE // 5)
        early = resident_mib(gateway)
        send(HOSTILE * 4 // 5)
        late = resident_mib(gateway)
    finally:
        for sender in senders:
            sender.close()
    assert late - early < 32
    assert series(gateway, "paretogate_udp_datagrams_total", fate="malformed") > HOSTILE / 10
    assert series(gateway, "paretogate_udp_datagrams_total", fate="taken") > HOSTILE / 10
    with UdpCamera(gateway.udp_address) as camera:
        # All streams may be somebody's who sent a whole frame: until he has sent none for ten seconds.
        for _ in range(30):
            camera.send(JPEG)
            result = camera.receive(1)
            if result is not None:
                break
    assert result is not None
    assert result.answer is not None
    assert gateway.alive
    assert "Traceback" not in "".join(gateway.log)


def resident_mib(gateway: GatewayProcess) -> float:
    """Return the process's resident memory."""
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024

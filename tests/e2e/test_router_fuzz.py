"""A thousand malformed requests leave the gateway serving.

Each is drawn from a seeded generator and sent over its own socket: fuzzed headers, truncated and corrupted
images, decompression bombs, empty and huge bodies, broken forms, and bytes that are no HTTP at all; every
tenth request is well formed. Malformed ones must get a 4xx (or, where the bytes happen to make sense still,
2xx), well-formed ones a 2xx; 429 and 503 are allowed with Retry-After; nothing may leave a traceback.
"""

from __future__ import annotations

import random
import re
import socket
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import pytest

from model_repo.publish import Repository
from tests.e2e.gateway_process import gateway_process
from tests.fakes import Square, encode_image, squares_frame

REQUESTS = 1000
SEED = 20_260_701
MAX_BYTES = 200_000
_IMAGE = squares_frame([Square(0, 0, 0), Square(2, 1, 1, 200)], (160, 120))
PNG, JPEG = encode_image(_IMAGE), encode_image(_IMAGE, ".jpg")


@dataclass(frozen=True, slots=True)
class Case:
    """Bytes for one connection; `well_formed` demands a 2xx, `hang_up` closes without reading."""

    kind: str
    data: bytes
    well_formed: bool = False
    hang_up: bool = False


Rng = random.Random


def request(body: bytes, *headers: bytes, method: bytes = b"POST", path: bytes = b"/v1/detect") -> bytes:
    """Return a whole HTTP/1.1 request with its true length that closes the connection."""
    lines = [method + b" " + path + b" HTTP/1.1", b"Host: gateway", b"Connection: close", *headers]
    if not any(line.lower().startswith((b"content-length", b"transfer-encoding")) for line in headers):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def some_type(rng: Rng) -> bytes:
    return b"Content-Type: " + rng.choice([b"image/jpeg", b"image/png", b"application/octet-stream"])


def noise(rng: Rng, most: int) -> bytes:
    return rng.randbytes(rng.randrange(most))


def line_noise(rng: Rng, most: int) -> bytes:
    """Return bytes that may stand in a header's value."""
    return bytes(rng.choice(range(0x21, 0xFF)) for _ in range(rng.randrange(1, most)))


def valid(rng: Rng) -> bytes:
    body = rng.choice([PNG, JPEG])
    headers = [some_type(rng)]
    if rng.random() < 0.5:
        headers.append(b"X-Latency-Budget-Ms: %d" % rng.randrange(20_000, 60_000))
    if rng.random() < 0.5:
        headers.append(b"X-Operating-Point: " + rng.choice([b"fast", b"balanced", b"accurate"]))
    if rng.random() < 0.3:
        form = (
            b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            + body
            + b"\r\n--B--\r\n"
        )
        return request(form, b"Content-Type: multipart/form-data; boundary=B", *headers[1:])
    if rng.random() < 0.2:
        chunked = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in (body[:50], body[50:])) + b"0\r\n\r\n"
        return request(chunked, *headers, b"Transfer-Encoding: chunked")
    return request(body, *headers)


def truncated(rng: Rng) -> bytes:
    body = rng.choice([PNG, JPEG])
    return request(body[: rng.randrange(len(body) - 12)], some_type(rng))


def corrupted(rng: Rng) -> bytes:
    body = bytearray(rng.choice([PNG, JPEG]))
    for _ in range(rng.randrange(1, 40)):
        body[rng.randrange(len(body))] = rng.randrange(256)
    return request(bytes(body), some_type(rng))


def png_of(width: int, height: int, content: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


_BOMB = zlib.compress(b"\0" * 30_000_000, 9)


def bomb(rng: Rng) -> bytes:
    """Return an image of a few kilobytes that claims, or has, far more pixels than are allowed."""
    side = rng.choice([10_000, 50_000, 65_535, 2**31 - 1])
    if rng.random() < 0.5:
        return request(png_of(side, side, _BOMB), some_type(rng))
    at = JPEG.index(b"\xff\xc0")
    huge = JPEG[: at + 5] + struct.pack(">HH", min(side, 65_535), min(side, 65_535)) + JPEG[at + 9 :]
    return request(huge, some_type(rng))


def empty(rng: Rng) -> bytes:
    return request(b"", some_type(rng))


def huge(rng: Rng) -> bytes:
    if rng.random() < 0.5:
        return request(b"x" * (MAX_BYTES + rng.randrange(1, MAX_BYTES)), some_type(rng))
    return request(b"xyz", some_type(rng), b"Content-Length: %d" % rng.choice([10**9, 10**15, 10**18]))


def chunked_huge(rng: Rng) -> bytes:
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    return request(
        chunk * (rng.randrange(8, 20)) + b"0\r\n\r\n", some_type(rng), b"Transfer-Encoding: chunked"
    )


def wrong_type(rng: Rng) -> bytes:
    kind = rng.choice(
        [b"text/plain", b"image/gif", line_noise(rng, 60), b"multipart/mixed; boundary=B", b";;;=;"]
    )
    return request(PNG, b"Content-Type: " + kind)


def no_type(rng: Rng) -> bytes:
    return request(rng.choice([PNG, b"{}"]))


def bad_budget(rng: Rng) -> bytes:
    value = rng.choice([b"-1", b"0", b"nan", b"inf", b"1e9", b"1_0", b"", line_noise(rng, 2000), b"9" * 400])
    return request(PNG, some_type(rng), b"X-Latency-Budget-Ms: " + value)


def two_budgets(rng: Rng) -> bytes:
    return request(PNG, some_type(rng), b"X-Latency-Budget-Ms: 100", b"x-latency-budget-ms: 200")


def bad_point(rng: Rng) -> bytes:
    return request(
        PNG, some_type(rng), b"X-Operating-Point: " + rng.choice([b"nope", b"../../x", line_noise(rng, 900)])
    )


def bad_form(rng: Rng) -> bytes:
    start = b'--B\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
    body = rng.choice([
        start + PNG, start + PNG + b"\r\n--B", noise(rng, 3000), start * 50, b"--B--\r\n",
        b"--B\r\n" + b"x" * 10_000, start + noise(rng, 500) + b"\r\n--B--\r\n",
        b'--B\r\nContent-Disposition: form-data; name="other"\r\n\r\n' + PNG + b"\r\n--B--\r\n",
    ])  # fmt: skip
    boundary = rng.choice([b"B", b"B", b"B", b"", b'"', line_noise(rng, 300)])
    return request(body, b"Content-Type: multipart/form-data; boundary=" + boundary)


def random_body(rng: Rng) -> bytes:
    magic = rng.choice([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\x00\x10JFIF"])
    return request(magic + noise(rng, 5000), some_type(rng))


def many_headers(rng: Rng) -> bytes:
    headers = [b"X-%d: %b" % (index, line_noise(rng, 30)) for index in range(rng.randrange(200, 2000))]
    return request(PNG, some_type(rng), *headers)


def huge_header(rng: Rng) -> bytes:
    return request(PNG, some_type(rng), b"X-Huge: " + b"h" * rng.randrange(100_000, 1_000_000))


def bad_length(rng: Rng) -> bytes:
    value = rng.choice([b"-5", b"abc", b"1, 2", b"0x10", b"9" * 40])
    return request(PNG, some_type(rng), b"Content-Length: " + value)


def smuggled(rng: Rng) -> bytes:
    return request(PNG, some_type(rng), b"Content-Length: 5", b"Transfer-Encoding: chunked")


def bad_chunks(rng: Rng) -> bytes:
    body = rng.choice(
        [b"zz\r\nhello\r\n", b"-1\r\n\r\n", b"ffffffffffffffffff\r\nx", noise(rng, 200) + b"\r\n"]
    )
    return request(body, some_type(rng), b"Transfer-Encoding: chunked")


def wrong_path(rng: Rng) -> bytes:
    path = rng.choice(
        [b"/", b"/v1/detect/", b"/v1/detect/../../etc/passwd", b"/%00", b"/" + b"a" * 5000, b"/v2/detect"]
    )
    return request(PNG, some_type(rng), path=path)


def wrong_method(rng: Rng) -> bytes:
    return request(b"", method=rng.choice([b"GET", b"PUT", b"DELETE", b"PATCH", b"OPTIONS"]))


def no_http(rng: Rng) -> bytes:
    return rng.choice(
        [noise(rng, 500) or b"\0", b"GET\r\n\r\n", b"POST /v1/detect HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\0"]
    )


MALFORMED: tuple[Callable[[Rng], bytes], ...] = (
    truncated, corrupted, bomb, empty, huge, chunked_huge, wrong_type, no_type, bad_budget, two_budgets,
    bad_point, bad_form, random_body, many_headers, huge_header, bad_length, smuggled, bad_chunks,
    wrong_path, wrong_method, no_http,
)  # fmt: skip
# A flipped byte may leave an image that decodes.
MAY_SUCCEED = frozenset({"corrupted"})
# Bytes that are no request need no response: closing the connection is one.
MAY_BE_SILENT = frozenset({"no_http", "bad_chunks", "hang_up"})


def cases() -> list[Case]:
    """Return the thousand malformed requests and, between them, a hundred well-formed ones."""
    rng = random.Random(SEED)
    drawn = []
    for index in range(REQUESTS):
        if index % 10 == 0:
            drawn.append(Case("valid", valid(rng), well_formed=True))
        if rng.random() < 0.04:
            data = valid(rng)
            drawn.append(Case("hang_up", data[: rng.randrange(len(data) - 1)], hang_up=True))
            continue
        make = rng.choice(MALFORMED)
        drawn.append(Case(make.__name__, make(rng)))
    return drawn


def send(port: int, case: Case) -> bytes:
    """Send a case on its own connection and return all that comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        try:
            connection.sendall(case.data)
            if case.hang_up:
                return b""
            if case.kind in MAY_BE_SILENT:
                # It may look like the beginning of a request that goes on; say that it does not.
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            # Refused while still sending: what was answered may be there all the same.
            pass
        received = b""
        try:
            while chunk := connection.recv(65536):
                received += chunk
        except ConnectionResetError:
            return received
        return received


def fault(case: Case, response: bytes) -> str | None:
    """Say what is wrong with a response, None when it is as it should be."""
    if case.hang_up or (not response and case.kind in MAY_BE_SILENT):
        return None
    head = response.split(b"\r\n\r\n", 1)[0].decode("latin-1")
    found = re.match(r"HTTP/1\.[01] (\d{3}) ", head)
    if not found:
        return f"no response: {response[:100]!r}"
    status = int(found[1])
    if status in (429, 503):
        return None if re.search(r"(?mi)^retry-after: \d+\r?$", head) else "no Retry-After"
    if case.well_formed:
        return None if status == 200 else f"{status} for a well-formed request"
    allowed = 400 <= status < 500 or (status == 200 and case.kind in MAY_SUCCEED)
    return None if allowed else f"{status} for a malformed request"


@pytest.mark.timeout(300)
def test_a_thousand_malformed_requests_leave_the_gateway_serving(repository: Repository) -> None:
    """4xx for what is malformed, 2xx for what is not, no traceback, and every request has one outcome."""
    drawn = cases()
    assert sum(not case.well_formed for case in drawn) == REQUESTS
    with gateway_process(
        repository.root, "--max-bytes", str(MAX_BYTES), "--max-pixels", "4000000", "--body-timeout-s", "3"
    ) as gateway:
        with ThreadPoolExecutor(8) as threads:
            responses = list(threads.map(lambda case: send(gateway.port, case), drawn))
        faults = [
            (case.kind, said, case.data[:200])
            for case, response in zip(drawn, responses, strict=True)
            if (said := fault(case, response)) is not None
        ]
        assert not faults, (Counter((kind, said) for kind, said, _ in faults), faults[:5])
        assert gateway.alive
        answer = httpx.post(f"{gateway.url}/v1/detect", content=PNG, headers={"Content-Type": "image/png"})
        assert answer.status_code == 200
        assert answer.json()["detections"]
        assert httpx.get(f"{gateway.url}/readyz").status_code == 200
        counts = {
            (name, outcome): float(value)
            for name, outcome, value in re.findall(
                r'(?m)^paretogate_(arrivals|requests)_total\{(?:outcome="(\w+)",)?protocol="http"\} (\S+)$',
                httpx.get(f"{gateway.admin_url}/metrics").text,
            )
        }
        assert gateway.terminate() == 0
    ended = sum(count for (name, _), count in counts.items() if name == "requests")
    # Those that the parser refuses never arrive.
    assert counts["arrivals", ""] == ended > REQUESTS / 2
    assert counts["requests", "failed"] == 0
    log = "".join(gateway.log)
    assert "Traceback" not in log
    assert not re.search(r"^\S+ \S+ (ERROR|CRITICAL)", log, re.MULTILINE), log[-2000:]

"""Reading bodies: forms, limits, time."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import BodyTimeout, MalformedRequest, Rejected, TooLarge, UnsupportedType
from router.http_body import Bodies, BodyLimits, SenderLeft

pytestmark = pytest.mark.anyio
LIMITS = BodyLimits(max_bytes=1000, max_buffered_bytes=100_000, timeout_s=5.0)
FORM = b"multipart/form-data; boundary=B"


class Chunks:
    """A body as ASGI delivers it; after the last chunk the sender has left."""

    def __init__(self, *chunks: bytes, whole: bool = True) -> None:
        self._messages: list[MutableMapping[str, Any]] = [  # Any: as ASGI defines its messages
            {"type": "http.request", "body": chunk, "more_body": not whole or index < len(chunks) - 1}
            for index, chunk in enumerate(chunks)
        ]

    async def __call__(self) -> MutableMapping[str, Any]:  # Any: as ASGI defines its messages
        return self._messages.pop(0) if self._messages else {"type": "http.disconnect"}


def part(name: str, content: bytes) -> bytes:
    """Return one part of a form."""
    return (
        b'--B\r\nContent-Disposition: form-data; name="%s"; filename="f"\r\n\r\n%b\r\n'
        % (name.encode(), content)
    )  # fmt: skip


async def test_chunks_are_joined() -> None:
    """A raw body is its chunks in order, and nothing stays counted."""
    bodies = Bodies(LIMITS)
    assert await bodies.read(b"image/png", None, Chunks(b"ab", b"", b"c")) == b"abc"
    assert bodies.buffered_bytes == 0


async def test_the_image_of_a_form_is_found_among_other_fields() -> None:
    """Fields around the image are skipped, however the form is cut into chunks."""
    form = (
        part("note", b"x" * 50) + part("image", b"\r\n--the image--\r\n") + part("more", b"") + b"--B--\r\n"
    )
    for size in (1, 7, len(form)):
        chunks = [form[at : at + size] for at in range(0, len(form), size)]
        assert await Bodies(LIMITS).read(FORM, None, Chunks(*chunks)) == b"\r\n--the image--\r\n"


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (part("other", b"x") + b"--B--\r\n", "no field named file or image"),
        (part("file", b"x") + part("image", b"x") + b"--B--\r\n", "more than one image"),
        (part("file", b"x"), "ends before its last boundary"),
        (part("note", b"x") * 9 + b"--B--\r\n", "more than 8 parts"),
        (b"not a form at all", "multipart body"),
        (b"--B\r\n" + b"X: " + b"y" * 20_000, "multipart body"),
        (b"", "ends before"),
    ],
)
async def test_other_forms_are_malformed(form: bytes, text: str) -> None:
    """A form without one image, or no form at all, is told what is wrong with it."""
    with pytest.raises(MalformedRequest, match=text):
        await Bodies(LIMITS).read(FORM, None, Chunks(form))


@pytest.mark.parametrize("kind", [b"multipart/form-data", b"multipart/form-data; boundary=" + b"x" * 300])
async def test_a_form_needs_a_boundary(kind: bytes) -> None:
    """Without a usable boundary a form cannot be read."""
    with pytest.raises(MalformedRequest):
        await Bodies(LIMITS).read(kind, None, Chunks(b""))


async def test_limits_hold_for_declared_and_for_actual_lengths() -> None:
    """A length that is declared or reached above the limit is too large, in a form's field as well."""
    bodies = Bodies(LIMITS)
    with pytest.raises(TooLarge):
        await bodies.read(b"image/png", b"1001", Chunks(b""))
    with pytest.raises(TooLarge):
        await bodies.read(b"image/png", None, Chunks(b"x" * 600, b"x" * 600))
    with pytest.raises(TooLarge):
        await bodies.read(FORM, None, Chunks(part("file", b"x" * 1001) + b"--B--\r\n"))
    assert bodies.buffered_bytes == 0


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"abc", b"9" * 30, b""])
async def test_a_length_that_is_no_number_is_malformed(length: bytes) -> None:
    """Content-Length must be digits."""
    with pytest.raises(MalformedRequest, match="Content-Length"):
        await Bodies(LIMITS).read(b"image/png", length, Chunks(b""))


async def test_a_sender_who_leaves_is_noticed() -> None:
    """A body that is cut off ends in SenderLeft, not in half an image."""
    with pytest.raises(SenderLeft):
        await Bodies(LIMITS).read(b"image/png", None, Chunks(b"half", whole=False))


async def test_a_body_that_does_not_come_times_out() -> None:
    """A sender who stops sending does not hold the gateway for ever."""

    async def never() -> MutableMapping[str, Any]:  # Any: as ASGI defines its messages
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    with pytest.raises(BodyTimeout):
        await Bodies(BodyLimits(1000, 5000, timeout_s=0.01)).read(b"image/png", None, never)


@given(kind=st.binary(max_size=60), body=st.binary(max_size=300))
def test_any_content_type_with_any_body_is_read_or_rejected(kind: bytes, body: bytes) -> None:
    """Nothing but the gateway's own rejections comes out of a hostile content type."""

    async def read() -> None:
        try:
            await Bodies(LIMITS).read(kind, None, Chunks(body))
        except Rejected:
            return

    asyncio.run(read())


@given(body=st.binary(max_size=400))
def test_any_bytes_are_a_form_or_malformed(body: bytes) -> None:
    """No body makes the form parser raise anything of its own."""

    async def read() -> None:
        try:
            await Bodies(LIMITS).read(FORM, None, Chunks(b"--B\r\n" + body))
        except (MalformedRequest, UnsupportedType):
            return

    asyncio.run(read())

"""A plain Triton under load: the caller does what the gateway would, and finds the same boxes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from loadtest.gateway import connect
from loadtest.sample import Reply
from loadtest.target import TargetError
from model_repo import triton
from model_repo.runtime.engine import answer_frame
from model_repo.runtime.openvino import OpenVinoEngine
from tests.e2e.triton_server import run_triton
from tests.fakes import CLASSES, Square, encode_image, squares_frame, tiny_repository

IMAGE = squares_frame([Square(0, 0, 0), Square(2, 1, 1, 200)], (256, 192))


def test_a_plain_triton_is_asked_as_its_users_would(triton_env: Path, tmp_path: Path) -> None:
    """Each variant's boxes and aligned scores are the embedded engine's; a broken image is the caller's own;
    without a variant's name there is nothing to ask."""
    repository = tiny_repository(tmp_path / "repository")
    rendered = triton.render_repository(repository, "python", tmp_path / "rendered")
    names = [variant.name for variant in repository.frontier.variants]

    async def ask(address: str) -> tuple[list[Reply], Reply]:
        target = connect("", "triton", grpc_address=address, repo=repository.root, timeout_s=60.0)
        try:
            described = await target.describe()
            assert described.classes == CLASSES
            assert described.operating_points == tuple(names)
            with pytest.raises(TargetError, match="name a variant"):
                await target.send(encode_image(IMAGE), None, None)
            replies = [await target.send(encode_image(IMAGE), 50.0, name) for name in names]
            return replies, await target.send(b"no image", None, names[0])
        finally:
            await target.close()

    with run_triton(triton_env, rendered, tmp_path / "log") as server:
        replies, broken = asyncio.run(ask(server.url))
    assert broken.outcome == "rejected"
    engine = OpenVinoEngine()
    for variant, reply in zip(repository.frontier.variants, replies, strict=True):
        assert (reply.outcome, reply.plan, reply.stages) == ("answered", variant.name, (variant.name,))
        engine.load(repository.root, variant)
        raw = answer_frame(engine, variant, IMAGE).detections
        ours = variant.on("triton").alignment.apply(raw).top()
        np.testing.assert_allclose(reply.detections.xyxy, ours.xyxy, atol=0.02)
        np.testing.assert_allclose(reply.detections.score, ours.score, atol=1e-4)
    engine.close()

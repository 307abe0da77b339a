"""The benches' own parts: cheap targets, the bare server, edited manifests. No timing is asserted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from loadtest.bench_change import (
    MANIFEST,
    _cheaper_half,
    straight_to,
    with_only,
    write_manifest,
)
from loadtest.bench_load import _recovered_s
from loadtest.bench_overhead import bare_server
from loadtest.closed import (
    BareConversation,
    ConversationError,
    HttpConversation,
    latencies_ms,
    saturated_per_s,
)
from loadtest.process import free_port, gateway
from loadtest.raw import BareTarget, RawTarget
from loadtest.sample import Reply, Sample
from model_repo import codec
from model_repo.publish import Repository, read
from tests.fakes import CLASSES, Square, encode_image, squares_frame, tiny_repository

FRAME = encode_image(squares_frame([Square(0, 0, 0), Square(2, 1, 1)], (256, 256)))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return tiny_repository(tmp_path_factory.mktemp("bench") / "repository", variants=3)


@pytest.fixture(scope="module")
def ports(repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Start a gateway and a bare server on one repository; return their ports."""
    port, log = free_port(), tmp_path_factory.mktemp("bench") / "gateway.log"
    with (
        gateway(repository.root, port, log, "--measure", "never") as _,
        bare_server(repository.root, "fast", core=0) as bare_port,
    ):
        yield port, bare_port


def test_both_servers_answer_alike(ports: tuple[int, int]) -> None:
    """The bare server's detections are the gateway's, for the plan that it serves."""

    async def ask() -> tuple[Reply, Reply]:
        raw, bare = RawTarget(ports[0]), BareTarget(ports[1], CLASSES)
        described = await raw.describe()
        assert described.classes == CLASSES
        assert described.operating_points == ("fast", "balanced", "accurate")
        # Twice, so that the second one uses a kept connection.
        replies = [(await raw.send(FRAME, 5_000.0, "fast"), await bare.send(FRAME, None, None)) for _ in "12"]
        await raw.close()
        await bare.close()
        return replies[-1]

    raw, bare = asyncio.run(ask())
    assert (raw.outcome, bare.outcome) == ("answered", "answered")
    assert raw.stages == ("tiny-0",)
    assert len(raw.detections) == 2
    np.testing.assert_allclose(raw.detections.xyxy, bare.detections.xyxy, atol=0.01)
    np.testing.assert_allclose(raw.detections.score, bare.detections.score, atol=1e-5)
    np.testing.assert_array_equal(raw.detections.label, bare.detections.label)


def test_what_went_wrong_is_a_reply(ports: tuple[int, int]) -> None:
    """A broken frame is rejected, nobody there is a failure, and the target goes on."""

    async def ask() -> list[Reply]:
        target, nobody = RawTarget(ports[0]), RawTarget(free_port())
        replies = [
            await target.send(b"no image", None, None),
            await target.send(FRAME, 0.001, None),
            await nobody.send(FRAME, None, None),
            await target.send(FRAME, None, None),
        ]
        await target.close()
        return replies

    outcomes = [reply.outcome for reply in asyncio.run(ask())]
    assert outcomes == ["rejected", "rejected", "failed", "answered"]


def test_closed_loops_count_answers(ports: tuple[int, int]) -> None:
    """One client gives a latency per request, several give a rate; an error is not counted as an answer."""
    for connect in (
        lambda: HttpConversation(ports[0], (("X-Operating-Point", "fast"),)),
        lambda: BareConversation(ports[1]),
    ):
        conversation = connect()
        assert (latencies_ms(conversation, [FRAME], 3) > 0).all()
        conversation.close()
        assert saturated_per_s(connect, [FRAME], clients=2, seconds=0.3) > 0
    with pytest.raises(ConversationError, match="422"):
        saturated_per_s(lambda: HttpConversation(ports[0]), [FRAME[:60]], clients=1, seconds=0.3)


def test_edited_manifests_are_manifests(repository: Repository, tmp_path: Path) -> None:
    """What the benches publish is valid: one model alone under every point, and the cheaper half."""
    document = json.loads((repository.root / MANIFEST).read_text())
    for variant in document["variants"]:
        alone = codec.decode(json.dumps(with_only(document, straight_to(document, variant))))
        assert [plan.stages[0].variant for plan in alone.plans] == [variant["name"]]
        assert {point.plan for point in alone.operating_points} == {variant["name"]}
    half = codec.decode(json.dumps(_cheaper_half(document)))
    assert {stage.variant for plan in half.plans for stage in plan.stages} == {"tiny-0"}
    assert [point.name for point in half.operating_points] == ["fast", "balanced", "accurate"]
    copy = tiny_repository(tmp_path / "copy", variants=3).root
    write_manifest(copy, _cheaper_half(document))
    assert len(read(copy).frontier.plans) == 1


def test_recovery_is_the_end_of_the_last_bad_second() -> None:
    """Normal service begins after the last second in which too many were late."""

    def samples(late_until_s: float) -> list[Sample]:
        out = []
        for number in range(800):
            due_ns = number * 10_000_000
            took_ns = 50_000_000 if due_ns < late_until_s * 1e9 else 1_000_000
            out.append(Sample(due_ns, due_ns, due_ns + took_ns, 0, Reply("answered")))
        return out

    assert _recovered_s(samples(0.0), 10.0) == 0.0
    assert _recovered_s(samples(2.5), 10.0) == 3.0
    assert _recovered_s(samples(8.0), 10.0) == float("inf")

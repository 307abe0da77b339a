"""The least server that answers frames: what a gateway is compared with.

Length-prefixed frames over TCP, a thread per connection, the same decoding, engine with all the same models
loaded, and cascade; no HTTP, no JSON, no deadlines, no admission, no metrics. A request is a big-endian
32-bit length and an encoded image, the answer a length and the detections as float32 rows x1, y1, x2, y2,
score, class.

`python -m loadtest.bare --repo REPO --point fast --port 0` prints the port that it listens on.
"""

from __future__ import annotations

import argparse
import os
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from model_repo import publish
from model_repo.alignment import Alignment
from model_repo.detections import Detections
from model_repo.escalation import CompiledGain, features
from model_repo.frame import FrameLimits, decode
from model_repo.frontier import Variant
from model_repo.fusion import Fusion, fuse
from model_repo.runtime.engine import Engine, answer_frame
from model_repo.runtime.select import default_runtime, make_engine

_LENGTH = struct.Struct(">I")
_LIMITS = FrameLimits(16 << 20, 40_000_000)


@dataclass(frozen=True, slots=True)
class _Stage:
    variant: Variant
    alignment: Alignment
    rule: tuple[CompiledGain, float] | None


class BareServer:
    """Answer frames with one plan."""

    def __init__(self, repo: Path, point: str, listener: socket.socket, *, min_score: float = 0.0) -> None:
        repository = publish.read(repo)
        plan = repository.frontier.plan_of(point)
        runtime = default_runtime()
        cores = len(os.sched_getaffinity(0))
        self._engine: Engine = make_engine(runtime, threads=1, parallelism=cores)
        self._fusion: Fusion = plan.fusion
        # All of them, as in the gateway: how fast one runs depends on what else the process holds.
        for variant in repository.frontier.variants:
            self._engine.load(repository.root, variant)
        self._stages: list[_Stage] = []
        for stage in plan.stages:
            variant = repository.frontier.variant(stage.variant)
            rule = None if stage.rule is None else (stage.rule.gain.compiled(), stage.rule.threshold)
            self._stages.append(_Stage(variant, variant.on(runtime).alignment, rule))
        self._listener, self._min_score = listener, min_score
        # As in the gateway: rows that an answer will not contain are left out where nobody else looks.
        alone = len(self._stages) == 1 and min_score > 0.0
        self._least = self._stages[0].alignment.raw_at_least(min_score) if alone else None

    def serve(self) -> None:
        """Accept connections for ever."""
        while True:
            connection, _ = self._listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        with connection:
            while True:
                head = _exactly(connection, _LENGTH.size)
                if head is None:
                    return
                frame = _exactly(connection, _LENGTH.unpack(head)[0])
                if frame is None:
                    return
                answer = self._answer(frame)
                connection.sendall(_LENGTH.pack(len(answer)) + answer)

    def _answer(self, frame: bytes) -> bytes:
        image = decode(frame, _LIMITS)
        found: Detections | None = None
        for stage in self._stages:
            raw = answer_frame(self._engine, stage.variant, image, least=self._least).detections
            aligned = stage.alignment.apply(raw)
            found = aligned.top() if found is None else fuse(found, aligned, self._fusion)
            if stage.rule is None:
                break
            gain, threshold = stage.rule
            if gain.predict(features(aligned, image)[None])[0] < threshold:
                break
        assert found is not None, "a plan has at least one stage"
        return _rows(found.at_least(self._min_score)).tobytes()


def _rows(found: Detections) -> NDArray[np.float32]:
    return np.concatenate((found.xyxy, found.score[:, None], found.label[:, None]), axis=1).astype(np.float32)


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    """Read so many bytes, None when the other side has closed."""
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(min(count - len(parts), 1 << 16))
        if not part:
            return None
        parts += part
    return bytes(parts)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repo", type=Path, required=True)
    parser.add_argument("--point", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--min-score", type=float, default=0.0)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    with socket.create_server(("127.0.0.1", given.port), backlog=256) as listener:
        server = BareServer(given.repo, given.point, listener, min_score=given.min_score)
        print(listener.getsockname()[1], flush=True)
        server.serve()


if __name__ == "__main__":
    main()

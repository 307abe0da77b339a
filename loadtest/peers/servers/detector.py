"""The same detection behind every peer: the gateway's decoder, engine, suppression and published artifact."""

from __future__ import annotations

import cv2
import numpy as np

from loadtest.peers.servers.serving import Serving
from model_repo import publish
from model_repo.detections import Detections
from model_repo.frame import FrameLimits, decode
from model_repo.runtime.engine import answer_frame
from model_repo.runtime.select import default_runtime, make_engine

_LIMITS = FrameLimits(16 << 20, 40_000_000)


class Detector:
    """Answer encoded frames with one variant, or with two and a threshold between them."""

    def __init__(self, serving: Serving) -> None:
        cv2.setNumThreads(1)
        repository = publish.read(serving.repo)
        runtime = default_runtime()
        # One inference at a time on one core: what the gateway does on the core that it has here.
        self._engine = make_engine(runtime, threads=1, parallelism=1)
        names = [serving.model, *([] if serving.escalate_to is None else [serving.escalate_to])]
        self._variants = [repository.frontier.variant(name) for name in names]
        for variant in self._variants:
            self._engine.load(repository.root, variant)
        self._least = [
            variant.on(runtime).alignment.raw_at_least(serving.min_score) for variant in self._variants
        ]
        self._threshold = serving.threshold

    def rows(self, frame: bytes) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """Return the detections of an encoded frame, float32 [n, 6]: x1, y1, x2, y2, score, class.

        Raises FrameError for what is no image.
        """
        image = decode(frame, _LIMITS)
        found = Detections.empty()
        for variant, least in zip(self._variants, self._least, strict=True):
            found = answer_frame(self._engine, variant, image, least=least).detections
            if len(found) and found.score.max() >= self._threshold:
                break
        return np.concatenate((found.xyxy, found.score[:, None], found.label[:, None]), axis=1).astype(
            np.float32
        )

    def answer(self, frame: bytes) -> bytes:
        """Return `rows` as bytes, which is how every HTTP peer answers."""
        return self.rows(frame).tobytes()


def make_detector() -> Detector:
    """Make the detector that the environment asks for."""
    return Detector(Serving.from_environment())

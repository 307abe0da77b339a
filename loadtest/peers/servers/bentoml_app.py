"""BentoML: a service with one worker. `bentoml serve loadtest.peers.servers.bentoml_app:DetectionService`.

Sources: docs.bentoml.com, "Create online API Services", "Define input and output types" (a root input is the
body as it is, handed over as a file), "Configurations" (workers, threads, metrics).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import bentoml
from bentoml.validators import ContentType

from loadtest.peers.servers.detector import make_detector


@bentoml.service(
    name="detection",
    workers=1,
    threads=1,
    traffic={"timeout": 60},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class DetectionService:
    """Frames as files in, rows as bytes out."""

    def __init__(self) -> None:
        self._detector = make_detector()

    @bentoml.api(route="/detect")  # type: ignore[untyped-decorator]  # the package is not here
    def detect(
        self, frame: Annotated[Path, ContentType("image/jpeg")], /
    ) -> Annotated[bytes, ContentType("application/octet-stream")]:
        """Answer a frame."""
        return self._detector.answer(frame.read_bytes())

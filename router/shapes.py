"""How an answer is written: the gateway's own JSON, COCO results, or the frame with its boxes drawn on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl

import cv2

from model_repo.drawing import drawn
from model_repo.frame import FrameLimits, decode
from router.encoding import answer_json, coco_json
from router.errors import MalformedRequest
from router.execution import Answer

_JPEG_QUALITY = 90
_MOST_FIELDS = 16
# Where a request says no least score: what is less sure than this is not worth drawing.
DRAWN_FROM = 0.25


@dataclass(frozen=True, slots=True)
class Shape:
    """What a request's query asks for; image_id is that of COCO results."""

    format: Literal["json", "coco"] = "json"
    render: bool = False
    image_id: int = 0

    def written(self, answer: Answer, request_id: str, frame: bytes) -> tuple[bytes, bytes]:
        """Return the content type and the body of an answer to an encoded frame."""
        if self.render:
            # It was decoded before, so it can be again.
            image = drawn(decode(frame, FrameLimits()), answer.detections, answer.classes, DRAWN_FROM)
            _, data = cv2.imencode(
                ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
            )
            return b"image/jpeg", data.tobytes()
        if self.format == "coco":
            return b"application/json", coco_json(answer, self.image_id)
        return b"application/json", answer_json(answer, request_id)


PLAIN = Shape()


def fields_of(query: bytes) -> list[tuple[str, str]]:
    """Return a query's names and values; raises MalformedRequest when there are too many."""
    try:
        return parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError as error:
        raise MalformedRequest(f"the query has more than {_MOST_FIELDS} fields") from error


def shape_of(query: bytes) -> Shape:
    """Read a query; raises MalformedRequest, which names the parameter."""
    if not query:
        return PLAIN
    said: dict[str, str] = {}
    for name, value in fields_of(query):
        if name not in ("format", "render", "image_id"):
            raise MalformedRequest(f"?{name[:40]}: unknown; there are format, render and image_id")
        if name in said:
            raise MalformedRequest(f"?{name} stands twice")
        said[name] = value
    form = said.get("format", "json")
    if form not in ("json", "coco"):
        raise MalformedRequest(f"?format={form[:40]}: expected json or coco")
    render = said.get("render", "0")
    if render not in ("0", "1"):
        raise MalformedRequest(f"?render={render[:40]}: expected 1 or 0")
    image_id = said.get("image_id", "0")
    if not image_id.isascii() or not image_id.isdigit() or len(image_id) > 15:
        raise MalformedRequest(f"?image_id={image_id[:40]}: expected a whole number")
    if render == "1" and form == "coco":
        raise MalformedRequest("?render=1 and ?format=coco exclude each other")
    return Shape("coco" if form == "coco" else "json", render == "1", int(image_id))

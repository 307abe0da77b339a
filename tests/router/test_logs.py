"""Logs as lines of JSON."""

from __future__ import annotations

import json
import logging

from router.logs import JsonFormatter


def test_a_line_is_json_with_what_was_given() -> None:
    """Message, level and logger, the request's id, and a traceback when there is one; never two lines."""
    record = logging.makeLogRecord(
        {"name": "router.x", "levelname": "WARNING", "msg": "request %s\nfailed", "args": ("id-1",),
         "request_id": "id-1", "created": 0.0}
    )  # fmt: skip
    text = JsonFormatter().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert line["time"] == "1970-01-01T00:00:00.000+00:00"
    assert (line["level"], line["logger"], line["request_id"]) == ("warning", "router.x", "id-1")
    assert line["message"] == "request id-1\nfailed"
    try:
        raise ValueError("broken")
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    assert "ValueError: broken" in json.loads(JsonFormatter().format(record))["exception"]

"""The manifest's one way between JSON and values: strict, versioned, errors that name the field."""

from __future__ import annotations

import json

from pydantic import ValidationError

from model_repo.frontier import SCHEMA_VERSION, Frontier


class ManifestError(ValueError):
    """The manifest cannot be read; the message names the field's path."""


def encode(frontier: Frontier) -> str:
    """Return the manifest's text: indented two levels deep, so that a change of one variant reads as one."""
    document = frontier.model_dump(mode="json")
    parts = []
    for key, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n    ".join(json.dumps(row, ensure_ascii=False) for row in value)
            parts.append(f"  {json.dumps(key)}: [\n    {rows}\n  ]")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def decode(text: str | bytes, *, source: str = "frontier.json") -> Frontier:
    """Read a manifest; raises ManifestError that names `source` and every wrong field by its path."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{source}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ManifestError(f"{source}: expected an object, got {type(document).__name__}")
    version = document.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise ManifestError(
            f"{source}: schema_version: this version reads {SCHEMA_VERSION}, the file says {version!r}"
        )
    try:
        return Frontier.model_validate_json(text)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in problem['loc']) or '(the whole)'}: {problem['msg']}"
            for problem in error.errors(include_url=False)
        ]
        raise ManifestError(f"{source}: " + "; ".join(problems)) from error

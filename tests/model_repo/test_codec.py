"""The manifest's text and its values are the same thing, and a wrong field is named by its path."""

from __future__ import annotations

import json
from typing import Any  # The documents that are broken on purpose are plain JSON.

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_repo import codec
from model_repo.latency import Histogram
from model_repo.publish import Repository


def test_round_trip(repository: Repository) -> None:
    """Encoding and decoding gives the same values, and encoding those the same text."""
    text = codec.encode(repository.frontier)
    again = codec.decode(text)
    assert again == repository.frontier
    assert codec.encode(again) == text


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=20))
def test_numbers_are_exact(repository: Repository, samples: list[float]) -> None:
    """Floating-point numbers come back to the last bit."""
    changed = repository.frontier.model_copy(update={"decode": Histogram.of(samples)})
    assert codec.decode(codec.encode(changed)).decode == changed.decode


def _broken(repository: Repository, path: tuple[str | int, ...], value: object) -> str:
    document = repository.frontier.model_dump(mode="json")
    place: Any = document
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("variants", 1, "segments", 0, "sha256"), "xyz", "variants.1.segments.0.sha256"),
        (("variants", 0, "parameters"), "6", "variants.0.parameters"),
        (("variants", 0, "parameters"), 6.5, "variants.0.parameters"),
        (("variants", 0, "measurements", 0, "accuracy", 0, "map"), 1.5, "accuracy.0.map"),
        (("variants", 0, "measurements", 0, "runtime"), "tpu", "variants.0.measurements.0.runtime"),
        (("plans", 2, "stages", 0, "rule", "threshold"), "high", "plans.2.stages.0.rule.threshold"),
        (("plans", 0, "stages"), [], "plans.0.stages"),
        (("plans", 0, "surprise"), 1, "plans.0.surprise"),
        (("surprise",), 1, "surprise"),
        (("dataset", "name"), None, "dataset.name"),
        (("variants", 0, "name"), "../x", "variants.0.name"),
        (("decode", "mean_ms"), float("nan"), "."),
    ],
)  # fmt: skip
def test_wrong_fields_are_named(
    repository: Repository, path: tuple[str | int, ...], value: object, named: str
) -> None:
    """A wrong, unknown or missing field is refused under its path, with the file."""
    with pytest.raises(codec.ManifestError) as caught:
        codec.decode(_broken(repository, path, value), source="the file")
    assert named in str(caught.value)
    assert "the file" in str(caught.value)


def test_missing_field(repository: Repository) -> None:
    """A field that is missing is named."""
    document = repository.frontier.model_dump(mode="json")
    del document["variants"][0]["architecture"]
    with pytest.raises(codec.ManifestError, match=r"variants\.0\.architecture"):
        codec.decode(json.dumps(document))


@pytest.mark.parametrize("version", [0, 2, "1", None, True, 1.5])
def test_other_versions_are_refused(repository: Repository, version: object) -> None:
    """Only this schema version is read, and the message says so."""
    with pytest.raises(codec.ManifestError, match="schema_version"):
        codec.decode(_broken(repository, ("schema_version",), version))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "1", "null", b"\xff\xfe", "[" * 100_000, '{"schema_version": 1}']
)
def test_what_is_no_manifest(text: str | bytes) -> None:
    """Anything else is a ManifestError too."""
    with pytest.raises(codec.ManifestError):
        codec.decode(text)

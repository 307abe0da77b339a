"""The command line against a real gateway process on a tiny repository."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import loadtest.__main__
from loadtest.frames import ANNOTATIONS
from loadtest.process import free_port
from tests.fakes import CLASSES, GRID, Square, encode_image, squares_frame, tiny_repository

ROOT = Path(__file__).parents[2]
SIDE = 256
COUNT = 12


@dataclass(frozen=True, slots=True)
class Served:
    """A running gateway: its HTTP and gRPC addresses."""

    url: str
    grpc_address: str


def write_frames(folder: Path) -> Path:
    """Write frames with coloured squares that the tiny detectors find exactly."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    cell = SIDE // GRID
    for number in range(COUNT):
        squares = [
            Square(int(place) % GRID, int(place) // GRID, int(rng.integers(2)))
            for place in rng.choice(GRID * GRID, 3, replace=False)
        ]
        name = f"{number}.png"
        (folder / name).write_bytes(encode_image(squares_frame(squares, (SIDE, SIDE))))
        images.append({"id": number, "file_name": name})
        annotations += [
            {"image_id": number, "category_id": s.label, "bbox": [s.column * cell, s.row * cell, cell, cell]}
            for s in squares
        ]
    categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / ANNOTATIONS).write_text(json.dumps(document))
    return folder


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the load test as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "loadtest", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of labelled frames."""
    return write_frames(tmp_path_factory.mktemp("load") / "frames")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny published repository."""
    return tiny_repository(tmp_path_factory.mktemp("load") / "repository").root


@pytest.fixture(scope="module")
def served(repository: Path) -> Iterator[Served]:
    """Start a gateway and stop it by its PID."""
    port, grpc_port = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "router", "--repo", str(repository), "--port", str(port),
        "--grpc-port", str(grpc_port), "--admin-port", "0", "--measure", "never",
        "--max-queue", "10000", "--max-wait-ms", "60000",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/readyz", timeout=5.0).close()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, "the gateway ended"
                time.sleep(0.1)
        yield Served(url, f"127.0.0.1:{grpc_port}")
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("protocol", ["http", "grpc", "oip-http", "oip-grpc"])
def test_a_load_on_a_real_gateway_is_answered_and_judged(
    served: Served, frames: Path, tmp_path: Path, protocol: str
) -> None:
    """Every frame is answered with the right boxes over both protocols, and too few requests are INVALID."""
    page, document = tmp_path / "report.html", tmp_path / "report.json"
    done = run(
        "run", "--frames", str(frames), "--url", served.url, "--grpc-address", served.grpc_address,
        "--protocol", protocol, "--rate", "20", "--duration", "1", "--schedule", "constant",
        "--budget-ms", "60000", "--timeout-s", "60", "--operating-point", "fast",
        "--report", str(page), "--json", str(document),
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "20 requests are too few" in done.stdout
    verdict = json.loads(document.read_text())["verdict"]
    assert verdict["outcomes"] == [["answered", 20]]
    assert verdict["attainment"] == 1.0
    assert verdict["accuracy"]["map"] == pytest.approx(1.0, abs=0.01)
    assert page.read_text().startswith("<!doctype html>")


def test_a_valid_run_ends_with_status_0(served: Served, frames: Path) -> None:
    """Enough requests answered in time, sent in time, are VALID."""
    done = run(
        "run", "--frames", str(frames), "--url", served.url, "--rate", "100", "--duration", "5",
        "--schedule", "constant", "--budget-ms", "60000", "--timeout-s", "60",
        "--issue-delay-ms", "60000", "--operating-point", "fast",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "VALID" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--operating-point", "nope"), "there are fast, balanced, accurate"),
        (("--budget-ms", "-1"), "budget must be positive"),
        (("--rate", "0"), "rate must be positive"),
    ],
)
def test_a_run_that_cannot_be_made_ends_with_status_2(
    served: Served, frames: Path, arguments: tuple[str, ...], message: str
) -> None:
    """What is wrong with the request for a run is said on the standard error, with status 2."""
    done = run("run", "--frames", str(frames), "--url", served.url, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr


def test_a_fault_of_the_load_test_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error that nobody expected is shown whole and ends with 2: 1 would read as INVALID."""

    def broken() -> None:
        raise ExceptionGroup("a bug", [KeyError("somewhere")])

    monkeypatch.setattr(loadtest.__main__, "app", broken)
    with pytest.raises(SystemExit) as ended:
        loadtest.__main__.main()
    assert ended.value.code == 2
    assert "somewhere" in capsys.readouterr().err


def test_frames_with_unknown_classes_end_with_status_2(served: Served, tmp_path: Path) -> None:
    """Frames of another data set are refused before the load starts."""
    folder = write_frames(tmp_path / "frames")
    document = folder / ANNOTATIONS
    document.write_text(document.read_text().replace('"green"', '"blue"'))
    done = run("run", "--frames", str(folder), "--url", served.url)
    assert done.returncode == 2
    assert "the gateway has no class 'blue'" in done.stderr


def test_the_demonstration_shows_every_operating_point_and_stops_its_gateway(
    repository: Path, frames: Path
) -> None:
    """`demo --exit` prints a row per operating point and leaves no gateway behind."""
    done = run("demo", "--exit", "--repo", str(repository), "--frames", str(frames), "--count", "6")
    assert done.returncode == 0, done.stdout + done.stderr
    for point in ("fast", "balanced", "accurate"):
        assert point in done.stdout
    pid = int(done.stdout.split("pid ")[1].split(",")[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_demonstration_left_running_stops_its_gateway_when_it_is_told_to(
    repository: Path, frames: Path, number: signal.Signals, status: int
) -> None:
    """Ctrl-C ends it in order, SIGTERM as a termination, and neither leaves the gateway behind."""
    command = [sys.executable, "-m", "loadtest", "demo", "--repo", str(repository)]
    process = subprocess.Popen(
        [*command, "--frames", str(frames), "--count", "2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    with process, process.stdout:
        seen: list[str] = []
        for line in process.stdout:
            seen.append(line)
            if "Ctrl-C ends it" in line:
                process.send_signal(number)
        assert process.wait(60) == status, seen
    pid = int("".join(seen).split("pid ")[1].split(",")[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_demonstration_without_a_repository_says_why(tmp_path: Path, frames: Path) -> None:
    """The gateway's own last words are shown when it does not start."""
    done = run("demo", "--exit", "--repo", str(tmp_path / "nowhere"), "--frames", str(frames))
    assert done.returncode == 2
    assert "the gateway ended with status" in done.stderr
    assert "nowhere" in done.stderr


def test_a_run_is_recorded_replayed_and_held_against_a_baseline(
    served: Served, frames: Path, tmp_path: Path
) -> None:
    """A valid run becomes the baseline and leaves a trace; the same again is compared and passes; a replay of
    the trace is another schedule, which the baseline refuses."""
    trace, baseline, junit = (tmp_path / name for name in ("trace.jsonl", "baseline.json", "junit.xml"))
    common = (
        "run", "--frames", str(frames), "--url", served.url, "--budget-ms", "60000", "--timeout-s", "60",
        "--issue-delay-ms", "60000", "--operating-point", "fast", "--baseline", str(baseline),
        "--drift-margin", "1000", "--junit", str(junit), "--save-baseline",
    )  # fmt: skip
    stepped = ("--schedule", "step:1x/3x", "--rate", "60", "--duration", "5", "--seed", "3")
    first = run(*common, *stepped, "--record", str(trace))
    assert first.returncode == 0, first.stdout + first.stderr
    assert f"{baseline.name} was written" in first.stdout.replace("\n", "")
    again = run(*common, *stepped)
    assert again.returncode == 0, again.stdout + again.stderr
    cases = ElementTree.parse(junit).findall("testsuite/testcase")
    assert [case.attrib["name"] for case in cases] == [
        "generator", "samples", "latency", "baseline p50", "baseline p99",
    ]  # fmt: skip
    recorded = [json.loads(line) for line in trace.read_text().splitlines()]
    assert [row["frame"] for row in recorded[:3]] == ["0.png", "1.png", "2.png"]
    assert {row["budget_ms"] for row in recorded} == {60000.0}
    refused = run(*common, "--schedule", f"replay:{trace}")
    assert refused.returncode == 2
    assert "is of another setting: schedule 'step:levels=1x/3x'" in refused.stderr


def test_a_trace_is_replayed_over_a_stream_by_several_senders(
    served: Served, frames: Path, tmp_path: Path
) -> None:
    """The trace's own moments, frames and budgets are sent, and dropped frames count as such."""
    trace, document = tmp_path / "trace.csv", tmp_path / "out.json"
    rows = "\n".join(f"{0.05 * number:.3f},{number % 3}.png,60000" for number in range(30))
    trace.write_text(f"at_s,frame,budget_ms\n{rows}\n")
    done = run(
        "run", "--frames", str(frames), "--url", served.url, "--protocol", "stream", "--cameras", "2",
        "--senders", "2", "--schedule", f"replay:{trace}", "--budget-ms", "60000", "--timeout-s", "60",
        "--operating-point", "fast", "--json", str(document),
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "30 requests are too few" in done.stdout
    said = json.loads(document.read_text())
    outcomes = dict(said["verdict"]["outcomes"])
    assert set(outcomes) <= {"answered", "dropped"}
    assert sum(outcomes.values()) == 30
    assert said["load"]["senders"] == 2


def test_capacity_and_frontier_write_what_they_find(served: Served, frames: Path, tmp_path: Path) -> None:
    """Both end, name every way to ask, and write page, picture and JSON; without a gateway they say so."""
    patient = ("--budget-ms", "60000", "--timeout-s", "60", "--issue-delay-ms", "60000")
    common = ("--frames", str(frames), "--url", served.url, *patient, "--points", "fast,adaptive")
    found = run(
        "capacity", *common, "--start", "20", "--most", "20", "--requests", "60", "--curve", "2",
        "--curve-s", "1", "--quantile", "0.5", "--confidence", "0.9",
        "--report", str(tmp_path / "c.html"), "--json", str(tmp_path / "c.json"),
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    said = json.loads((tmp_path / "c.json").read_text())["capacity"]
    assert [(one["name"], one["held_hz"], one["ended_by"]) for one in said] == [
        ("fast", 20.0, "most"), ("adaptive", 20.0, "most"),
    ]  # fmt: skip
    assert len(said[0]["curve"]) == 2
    drawn = run(
        "frontier", *common, "--rate", "20", "--duration", "1", "--report", str(tmp_path / "f.html"),
        "--svg", str(tmp_path / "f.svg"), "--json", str(tmp_path / "f.json"),
    )  # fmt: skip
    assert drawn.returncode == 0, drawn.stdout + drawn.stderr
    assert "adaptive" in drawn.stdout
    ElementTree.parse(tmp_path / "f.svg")
    served_map = json.loads((tmp_path / "f.json").read_text())["frontier"][0]["verdict"]["effective"]["map"]
    assert served_map == pytest.approx(1.0, abs=0.01)
    for page in ("c.html", "f.html"):
        assert (tmp_path / page).read_text().startswith("<!doctype html>")
    nobody = run("frontier", "--frames", str(frames), "--url", f"http://127.0.0.1:{free_port()}")
    assert nobody.returncode == 2
    assert "cannot be reached" in nobody.stderr

"""Configuration, command line, wiring."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer import Typer
from typer.testing import CliRunner

from model_repo.codec import encode
from model_repo.publish import MANIFEST, Repository, read
from model_repo.runtime.select import environment
from router import __main__ as cli
from router.bootstrap import build
from router.config import Config
from router.engines import StartupError
from router.running import bind, check_exposure
from tests.fakes import FakeEngine, tiny_repository
from tests.router.conftest import Bench


def invoke(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, list[Config]]:
    """Run the command line without serving; return exit status, output, and what would have been served."""
    seen: list[Config] = []
    monkeypatch.setattr(cli, "run", seen.append)
    app = Typer()
    app.command()(cli.command)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output, seen


def test_flags_become_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every flag lands in the field of its name."""
    status, _, seen = invoke(
        monkeypatch, "--repo", "somewhere", "--port", "0", "--runtime", "onnxruntime", "--threads", "2",
        "--operating-point", "fast", "--max-queue", "7", "--no-grpc",
    )  # fmt: skip
    assert status == 0
    assert seen == [
        Config(
            repo=Path("somewhere"), port=0, runtime="onnxruntime", threads=2, operating_point="fast",
            max_queue=7, grpc=False,
        )
    ]  # fmt: skip


def test_variables_become_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """PARETOGATE_* variables stand in for flags, and flags win."""
    monkeypatch.setenv("PARETOGATE_OPERATING_POINT", "accurate")
    monkeypatch.setenv("PARETOGATE_PORT", "9000")
    _, _, seen = invoke(monkeypatch, "--port", "9001")
    assert (seen[0].operating_point, seen[0].port) == ("accurate", 9001)


def test_every_field_has_a_flag() -> None:
    """What can be configured can be configured from the command line."""
    assert set(Config.model_fields) == set(cli.command.__annotations__) - {"return"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--runtime", "tensorflow"], "--runtime"),
        (["--port", "70000"], "--port"),
        (["--runtime", "triton"], "--triton-url"),
        (["--threads", "0"], "--threads"),
        (["--challenger-share", "1.1"], "--challenger-share"),
        (["--challenger-mode", "canary"], "--challenger-mode"),
        (["--udp-port", "0", "--host", "0.0.0.0"], "--udp-allow"),
        (["--udp-allow", "10.0.0.0/99"], "--udp-allow"),
        (["--udp-callback", "file:///etc"], "--udp-callback"),
        (["--udp-callback", "http://127.0.0.1:99999/x"], "--udp-callback"),
        (["--udp-callback", "http://[::1"], "--udp-callback"),
        (["--tls-cert", "chain.pem"], "--tls-key"),
        (["--tls-client-ca", "ca.pem"], "--tls-cert"),
    ],
)
def test_a_bad_flag_is_named(monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str) -> None:
    """Exit status 2 and the name of the flag, no traceback."""
    status, output, seen = invoke(monkeypatch, *arguments)
    assert status == 2
    assert said in output
    assert seen == []


def test_a_configuration_is_frozen(tmp_path: Path) -> None:
    """It is read once."""
    config = Config(repo=tmp_path)
    with pytest.raises(ValidationError):
        setattr(config, "port", 1)  # noqa: B010 - a plain assignment is what the type checker refuses


def test_a_missing_repository_is_an_error_in_words(tmp_path: Path) -> None:
    """The command exits with 1 and says what is missing."""
    app = Typer()
    app.command()(cli.command)
    result = CliRunner().invoke(app, ["--repo", str(tmp_path / "nope"), "--port", "0"])
    assert result.exit_code == 1
    assert "frontier.json" in result.output


def test_an_unknown_home_is_an_error_in_words(repository: Repository) -> None:
    """The default operating point must be published, and the engine is let go of."""
    engine = FakeEngine()
    with pytest.raises(StartupError, match="no operating point 'nope' is published; known are fast"):
        build(Config(repo=repository.root, operating_point="nope", measure="never"), engine=engine)
    assert engine.closed


def test_a_taken_port_is_an_error_in_words() -> None:
    """Two gateways on one port: the second one says so."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(StartupError, match="cannot listen"):
            bind("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.3.2.1"])
def test_loopback_needs_nothing(host: str) -> None:
    """No key, no certificate, no word about them."""
    check_exposure(Config(repo=Path("repo"), host=host, admin_host=host))


@pytest.mark.parametrize(
    ("settings", "lacking"),
    [
        ({"host": "0.0.0.0"}, {"API keys", "TLS"}),
        ({"host": "::"}, {"API keys", "TLS"}),
        ({"host": "gateway.example"}, {"API keys", "TLS"}),
        ({"host": "192.168.0.4", "keys": "keys.json"}, {"TLS"}),
        ({"host": "192.168.0.4", "tls_cert": "c.pem", "tls_key": "k.pem"}, {"API keys"}),
        ({"admin_host": "0.0.0.0"}, {"API keys", "TLS"}),
        ({"admin_host": "0.0.0.0", "admin": False}, set()),
        ({"host": "::", "keys": "keys.json", "tls_cert": "c.pem", "tls_key": "k.pem"}, set()),
    ],
)
def test_beyond_loopback_keys_and_tls_are_needed(
    settings: dict[str, object], lacking: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The gateway refuses to start and names what is missing and how to get it; --insecure only warns."""
    config = Config.model_validate({"repo": "repo", **settings})
    if lacking:
        with pytest.raises(StartupError) as caught:
            check_exposure(config)
        said = str(caught.value)
        assert {what for what in ("API keys", "TLS") if what in said} == lacking
        assert "--insecure" in said
        assert ("python -m router.keys add" in said) == ("API keys" in lacking)
        assert ("--tls-cert" in said) == ("TLS" in lacking)
    check_exposure(config.model_copy(update={"insecure": True}))
    assert {what for what in ("API keys", "TLS") if what in caplog.text} == lacking


def test_the_command_refuses_before_it_loads_anything(tmp_path: Path) -> None:
    """Exit status 1 and a sentence, even where there is no repository."""
    app = Typer()
    app.command()(cli.command)
    result = CliRunner().invoke(app, ["--repo", str(tmp_path / "nope"), "--host", "0.0.0.0"])
    assert result.exit_code == 1
    assert "API keys" in result.output


def test_a_broken_file_of_keys_is_an_error_in_words(repository: Repository, tmp_path: Path) -> None:
    """The gateway does not start, and says which file it is."""
    for path in (tmp_path / "nope.json", tmp_path):
        with pytest.raises(StartupError, match=f"--keys: {path}"):
            build(Config(repo=repository.root, keys=path, measure="never"), engine=FakeEngine())


def test_published_latencies_of_another_machine_are_measured_again(bench: Bench) -> None:
    """The tiny repository was measured on a test bench: auto measures, and the gateway says so."""
    assert bench(measure="auto").service.serving.fleet.measured_here
    assert not bench(measure="never").service.serving.fleet.measured_here


def _measured_on(repository: Repository, device: str) -> Repository:
    """Return a repository whose measurements on Triton are of this machine and a device."""
    stamp = {"environment": environment(device), "runtime_version": FakeEngine().version}
    variants = []
    for variant in repository.frontier.variants:
        measured = variant.on("triton")
        latency = tuple(profile.model_copy(update=stamp) for profile in measured.latency)
        through_triton = measured.model_copy(update={"latency": latency})
        variants.append(variant.model_copy(update={"measurements": (through_triton,)}))
    only = {"runtime": "triton", "engines": ("triton",)}
    plans = tuple(plan.model_copy(update=only) for plan in repository.frontier.plans)
    frontier = repository.frontier.model_copy(update={"variants": tuple(variants), "plans": plans})
    (repository.root / MANIFEST).write_text(encode(frontier))
    return read(repository.root)


@pytest.mark.parametrize(
    ("device", "again"),
    [("triton a:8001, python", False), ("triton b:8001, python", True), ("triton a:8001, onnxruntime", True)],
)
def test_what_was_measured_through_a_triton_holds_in_front_of_it(
    tmp_path: Path, device: str, again: bool
) -> None:
    """Plans, alignments and latencies are used as published; another server or backend is measured again."""
    repository = _measured_on(tiny_repository(tmp_path / "repo"), "triton a:8001, python")
    config = Config(repo=repository.root, threads=1, workers=1, cache=tmp_path / "cache")
    gateway = build(config, engine=FakeEngine(name="triton", device=device))
    try:
        fleet = gateway.service.serving.fleet
        assert fleet.source == "triton"
        assert fleet.measured_here == again
    finally:
        gateway.close()

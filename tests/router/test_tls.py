"""TLS over HTTP and gRPC, with certificates made for the test."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import trustme

from router.client import AsyncGatewayClient, AsyncGrpcGatewayClient, ClientTls, GatewayClient, GatewayFailed
from router.engines import StartupError
from router.tls import Tls
from tests.router.conftest import Bench
from tests.router.test_grpc_api import LIMITS as CALL_LIMITS
from tests.router.test_grpc_api import serving as serving_grpc
from tests.router.test_http_server import server_of

pytestmark = pytest.mark.anyio


@dataclass(frozen=True, slots=True)
class Pki:
    """A certificate authority, a server's files and a client's, and another authority."""

    ca: Path
    server: Tls
    client: ClientTls
    other_ca: Path


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Make certificates for 127.0.0.1 and for a client."""
    folder = tmp_path_factory.mktemp("pki")
    authority, other = trustme.CA(), trustme.CA()
    for name, signer in (("ca.pem", authority), ("other.pem", other)):
        signer.cert_pem.write_to_path(folder / name)
    for name in ("server", "client"):
        issued = authority.issue_cert("127.0.0.1", "localhost", common_name=name)
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        for part in issued.cert_chain_pems:
            part.write_to_path(folder / f"{name}.pem", append=True)
    ca = folder / "ca.pem"
    return Pki(
        ca,
        Tls(folder / "server.pem", folder / "server.key"),
        ClientTls(ca, folder / "client.pem", folder / "client.key"),
        folder / "other.pem",
    )


async def test_frames_are_answered_over_tls(bench: Bench, frame: bytes, pki: Pki) -> None:
    """Clients that trust the authority are answered over both protocols; others do not get through."""
    gateway, trusting, doubting = bench(), ClientTls(pki.ca), ClientTls(pki.other_ca)
    async with (
        server_of(gateway, tls=pki.server.context()) as (_, port),
        serving_grpc(gateway, CALL_LIMITS, pki.server.credentials()) as (_, address),
    ):
        url = f"https://127.0.0.1:{port}"
        async with (
            AsyncGatewayClient(url, tls=trusting) as over_http,
            AsyncGrpcGatewayClient(address, tls=trusting) as over_grpc,
        ):
            first, second = await over_http.detect(frame), await over_grpc.detect(frame)
            assert [found.label for found in first.detections] == [found.label for found in second.detections]
            assert first.detections
        with GatewayClient(url, tls=trusting) as waiting:
            assert (await asyncio.to_thread(waiting.detect, frame)).detections
        for client in (
            AsyncGatewayClient(url, tls=doubting),
            AsyncGatewayClient(url),
            AsyncGatewayClient(f"http://127.0.0.1:{port}"),
            AsyncGrpcGatewayClient(address, tls=doubting),
            AsyncGrpcGatewayClient(address),
        ):
            async with client:
                with pytest.raises(GatewayFailed):
                    await client.detect(frame)


async def test_clients_can_be_asked_for_certificates(bench: Bench, frame: bytes, pki: Pki) -> None:
    """With a client authority, only who has a certificate of it gets through."""
    gateway = bench()
    mutual = Tls(pki.server.certificate, pki.server.key, pki.ca)
    async with (
        server_of(gateway, tls=mutual.context()) as (_, port),
        serving_grpc(gateway, CALL_LIMITS, mutual.credentials()) as (_, address),
    ):
        for tls, gets_through in ((pki.client, True), (ClientTls(pki.ca), False)):
            for client in (
                AsyncGatewayClient(f"https://127.0.0.1:{port}", tls=tls),
                AsyncGrpcGatewayClient(address, tls=tls),
            ):
                async with client:
                    if gets_through:
                        assert (await client.detect(frame)).detections
                    else:
                        with pytest.raises(GatewayFailed):
                            await client.detect(frame)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
async def test_old_versions_are_refused(bench: Bench, pki: Pki) -> None:
    """TLS 1.1 is not spoken, 1.2 is, over both."""
    gateway = bench()
    async with (
        server_of(gateway, tls=pki.server.context()) as (_, port),
        serving_grpc(gateway, CALL_LIMITS, pki.server.credentials()) as (_, address),
    ):
        for version, spoken in ((ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)):
            context = ssl.create_default_context(cafile=pki.ca)
            # What this machine's OpenSSL would not say by itself.
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = version
            context.set_alpn_protocols(["h2", "http/1.1"])
            for to in (port, int(address.rsplit(":", 1)[1])):
                if spoken:
                    _, writer = await asyncio.open_connection("127.0.0.1", to, ssl=context)
                    writer.close()
                else:
                    with pytest.raises((ssl.SSLError, ConnectionError)):
                        await asyncio.open_connection("127.0.0.1", to, ssl=context)


@pytest.mark.parametrize("which", ["certificate", "key", "client_ca"])
def test_a_bad_file_is_named(pki: Pki, tmp_path: Path, which: str) -> None:
    """A file that is missing or is no PEM stops the start, with its name in the error."""
    for path in (tmp_path / "missing.pem", tmp_path / "empty.pem"):
        if path.name == "empty.pem":
            path.write_text("nothing")
        files = {
            "certificate": pki.server.certificate,
            "key": pki.server.key,
            "client_ca": pki.ca,
            which: path,
        }
        tls = Tls(**files)
        with pytest.raises(StartupError, match=path.name):
            tls.context()
        with pytest.raises(StartupError, match=path.name):
            tls.credentials()


def test_credentials_are_grpcs(pki: Pki) -> None:
    """Good files make gRPC's own credentials."""
    assert isinstance(pki.server.credentials(), grpc.ServerCredentials)

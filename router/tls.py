"""TLS of what the gateway listens with, from version 1.2 on, and what has to be there beyond loopback."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from router.config import Config
from router.engines import StartupError


@dataclass(frozen=True, slots=True)
class Tls:
    """A server's certificate chain and key, in PEM files; client_ca: who must have signed clients'."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @classmethod
    def of(cls, config: Config) -> Tls | None:
        """Return what a configuration says; None where there is no certificate."""
        if config.tls_cert is None or config.tls_key is None:
            return None
        return cls(config.tls_cert, config.tls_key, config.tls_client_ca)

    def context(self) -> ssl.SSLContext:
        """Return the context of an HTTP server; raises StartupError, which names the file."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self.certificate, self.key)
        except OSError as error:  # of which ssl.SSLError is one
            raise StartupError(f"{self.certificate} and {self.key}: {_reason(error)}") from error
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except OSError as error:
                raise StartupError(f"{self.client_ca}: {_reason(error)}") from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def credentials(self) -> grpc.ServerCredentials:
        """Return a gRPC server's credentials; raises StartupError, which names the file."""
        self.context()  # gRPC itself says no more of a bad file than that the port could not be bound
        try:
            chain, key = self.certificate.read_bytes(), self.key.read_bytes()
            roots = None if self.client_ca is None else self.client_ca.read_bytes()
        except OSError as error:
            raise StartupError(f"{error.filename}: {error.strerror}") from error
        return grpc.ssl_server_credentials(
            [(key, chain)], root_certificates=roots, require_client_auth=roots is not None
        )


def loopback(host: str) -> bool:
    """Return whether an address to listen on is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def missing(config: Config) -> tuple[str, ...]:
    """Return what a configuration lacks to be reached from elsewhere, and how to get it."""
    beyond = [host for host in _hosts(config) if not loopback(host)]
    if not beyond:
        return ()
    lacking = []
    if config.keys is None:
        lacking.append(
            "API keys (python -m router.keys add --file keys.json --name NAME; then --keys keys.json)"
        )
    if config.tls_cert is None:
        lacking.append("TLS (--tls-cert chain.pem --tls-key key.pem)")
    return tuple(lacking)


def _hosts(config: Config) -> tuple[str, ...]:
    return (config.host, config.admin_host) if config.admin else (config.host,)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)

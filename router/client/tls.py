"""TLS as a client has it, over HTTP and gRPC."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True, slots=True)
class ClientTls:
    """Whom a client trusts, and who it is; files in PEM.

    ca: who must have signed the gateway's certificate, None for whom this machine trusts. certificate and
    key: the client's own, where the gateway asks for one. Making use of files that are none raises OSError.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return the context of an HTTP client."""
        context = ssl.create_default_context(cafile=self.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context

    def credentials(self) -> grpc.ChannelCredentials:
        """Return a gRPC channel's credentials."""
        files = (self.ca, self.key, self.certificate)
        return grpc.ssl_channel_credentials(*(None if file is None else file.read_bytes() for file in files))


def bearer(api_key: str | None) -> dict[str, str]:
    """Return the header that shows an API key; none where there is none."""
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}

"""Both clients over HTTP."""

from __future__ import annotations

from types import TracebackType
from typing import NoReturn, Self, TypeVar, Unpack

import httpx
from pydantic import ValidationError

from router.client.asking import Asked, Patience, headers_of, waiting, waiting_async
from router.client.errors import URN, error_for, unreachable
from router.client.tls import ClientTls, bearer
from router.documents import AnswerDocument, Document, PointsDocument, ProblemDocument

D = TypeVar("D", bound=Document)


class GatewayClient:
    """Ask a gateway over HTTP and wait; close it, or use it as a context manager.

    api_key: a token of `python -m router.keys add`. tls: for https://, whom to trust; None for whom this
    machine trusts. retries: how often a frame is asked for again, see `Patience`.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        tls: ClientTls | None = None,
        timeout_s: float = 30.0,
        retries: int = 0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        verify = True if tls is None else tls.context()
        self._http = httpx.Client(
            base_url=url, timeout=timeout_s, transport=transport, headers=bearer(api_key), verify=verify
        )
        self._retries = retries

    def detect(self, frame: bytes, **asked: Unpack[Asked]) -> AnswerDocument:
        """Send an encoded JPEG or PNG; raises GatewayError."""

        def ask(left_ms: float | None) -> AnswerDocument:
            headers = headers_of(asked, left_ms)
            try:
                return _read(self._http.post("/v1/detect", content=frame, headers=headers), AnswerDocument)
            except httpx.HTTPError as error:
                raise unreachable(error) from error

        return waiting(ask, Patience(self._retries, asked.get("budget_ms")))

    def operating_points(self) -> PointsDocument:
        """Return what the gateway serves; raises GatewayError."""
        try:
            return _read(self._http.get("/v1/operating-points"), PointsDocument)
        except httpx.HTTPError as error:
            raise unreachable(error) from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncGatewayClient:
    """Ask a gateway over HTTP, many requests at once; close it, or use it as a context manager.

    api_key and tls: as `GatewayClient`'s. retries: how often a frame is asked for again, see `Patience`.
    connections: how many are open at most; more requests wait for one, None for no limit.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        tls: ClientTls | None = None,
        timeout_s: float = 30.0,
        retries: int = 0,
        connections: int | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=timeout_s,
            limits=limits,
            transport=transport,
            headers=bearer(api_key),
            verify=True if tls is None else tls.context(),
        )
        self._retries = retries

    async def detect(self, frame: bytes, **asked: Unpack[Asked]) -> AnswerDocument:
        """Send an encoded JPEG or PNG; raises GatewayError."""

        async def ask(left_ms: float | None) -> AnswerDocument:
            headers = headers_of(asked, left_ms)
            try:
                response = await self._http.post("/v1/detect", content=frame, headers=headers)
                return _read(response, AnswerDocument)
            except httpx.HTTPError as error:
                raise unreachable(error) from error

        return await waiting_async(ask, Patience(self._retries, asked.get("budget_ms")))

    async def operating_points(self) -> PointsDocument:
        """Return what the gateway serves; raises GatewayError."""
        try:
            return _read(await self._http.get("/v1/operating-points"), PointsDocument)
        except httpx.HTTPError as error:
            raise unreachable(error) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _read(response: httpx.Response, kind: type[D]) -> D:
    if response.status_code != 200:
        _refuse(response)
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        raise unreachable(error) from error


def _refuse(response: httpx.Response) -> NoReturn:
    try:
        problem = ProblemDocument.model_validate_json(response.content)
    except ValidationError:
        # Something between the client and the gateway answered.
        problem = ProblemDocument(
            type=f"{URN}http-{response.status_code}",
            title=response.reason_phrase,
            status=response.status_code,
            detail=response.text[:200],
        )
    raise error_for(problem)

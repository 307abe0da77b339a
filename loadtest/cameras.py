"""Cameras: frames go into WebSockets of `/v1/stream` on schedule, whatever comes back.

Frames are dealt to the cameras in turn. On each stream the newest frame wins: a result whose number is higher
says that every frame before it without one was dropped, and the last frame always has a result. So a frame's
reply is its result, or that it was dropped, known once a later result is there.
"""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import quote

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from loadtest.replies import answered, ask_what_is_served, refused
from loadtest.sample import Reply
from loadtest.target import Description
from router.client import AsyncGatewayClient, ClientTls
from router.client.tls import bearer

_PATH = "/v1/stream"
_LARGEST = 16 << 20


class CamerasTarget:
    """Send frames as `cameras` cameras would; what is served is asked for over HTTP."""

    def __init__(
        self,
        url: str,
        http: AsyncGatewayClient,
        *,
        cameras: int,
        api_key: str | None,
        tls: ClientTls | None,
    ) -> None:
        if cameras < 1:
            raise ValueError(f"a stream needs at least one camera, got {cameras}")
        self._url, self._http, self._cameras = url, http, cameras
        self._headers = bearer(api_key)
        self._tls = (tls or ClientTls()).context() if url.startswith("https:") else None
        self._next = 0
        self._open: dict[tuple[int, str | None], _Camera] = {}
        self._opening = asyncio.Lock()

    async def describe(self) -> Description:
        """Return classes and operating points; raises TargetError when the gateway does not answer."""
        return await ask_what_is_served(self._http, self._url)

    async def send(self, frame: bytes, budget_ms: float | None, operating_point: str | None) -> Reply:
        """Send one encoded frame and wait for what becomes of it; every error is a Reply."""
        number, self._next = self._next % self._cameras, self._next + 1
        try:
            camera = await self._camera(number, operating_point)
            return await camera.ask(frame, budget_ms)
        except (OSError, WebSocketException) as error:
            return Reply("failed", detail=f"the stream broke: {type(error).__name__}")

    async def close(self) -> None:
        """Close the streams."""
        for camera in self._open.values():
            await camera.close()
        await self._http.close()

    async def _camera(self, number: int, operating_point: str | None) -> _Camera:
        async with self._opening:
            camera = self._open.get((number, operating_point))
            if camera is None or camera.ended:
                camera = _Camera(await self._connect(operating_point))
                self._open[number, operating_point] = camera
            return camera

    async def _connect(self, operating_point: str | None) -> ClientConnection:
        query = "" if operating_point is None else f"?operating_point={quote(operating_point)}"
        # https becomes wss.
        url = f"ws{self._url.removeprefix('http').rstrip('/')}{_PATH}{query}"
        return await connect(
            url,
            additional_headers=self._headers,
            ssl=self._tls,
            compression=None,
            proxy=None,
            max_size=_LARGEST,
            # A server that stops for long is what is measured: it is not hung up on.
            ping_interval=None,
        )


class _Camera:
    """One stream, and the frames that wait for their results by number."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._sent = 0
        self._sending = asyncio.Lock()
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._listening = asyncio.create_task(self._listen())

    @property
    def ended(self) -> bool:
        """Return whether nothing more comes of it."""
        return self._listening.done()

    async def ask(self, frame: bytes, budget_ms: float | None) -> Reply:
        """Send a frame and wait; raises OSError or WebSocketException when the stream breaks meanwhile."""
        coming: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        # Text and frame belong together, and frames are numbered as they leave.
        async with self._sending:
            number, self._sent = self._sent, self._sent + 1
            self._waiting[number] = coming
            try:
                if budget_ms is not None:
                    await self._socket.send(orjson.dumps({"budget_ms": budget_ms}).decode())
                await self._socket.send(frame)
            except asyncio.CancelledError:
                # Whether the frame left is not known, so neither are the numbers of those after it.
                self._listening.cancel()
                raise
        try:
            return await coming
        finally:
            self._waiting.pop(number, None)

    async def close(self) -> None:
        """Close the stream."""
        self._listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._listening
        await self._socket.close()

    async def _listen(self) -> None:
        try:
            async for message in self._socket:
                self._take(orjson.loads(message))
            self._lose("the stream ended")
        except (OSError, WebSocketException, ValueError, KeyError, TypeError) as error:
            self._lose(f"the stream broke: {type(error).__name__}")
        except asyncio.CancelledError:
            self._lose("the stream was closed")
            raise

    def _take(self, said: dict[str, object]) -> None:
        number = said["number"]
        assert isinstance(number, int), "a result is numbered"
        if "answer" in said:
            reply = answered(said["answer"])
        else:
            problem = said["problem"]
            assert isinstance(problem, dict), "a result is an answer or a problem"
            reply = refused(problem["status"], orjson.dumps(problem))
        for earlier, waiting in list(self._waiting.items()):
            if earlier < number and not waiting.done():
                waiting.set_result(Reply("dropped", detail="A newer frame took its place"))
        waiting_one = self._waiting.get(number)
        if waiting_one is not None and not waiting_one.done():
            waiting_one.set_result(reply)

    def _lose(self, why: str) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result(Reply("failed", detail=why))

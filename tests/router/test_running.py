"""A gateway as it runs: how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import pytest
from websockets.asyncio.client import connect

from router.config import Config
from router.running import Addresses, bind, serve
from tests.fakes import FakeEngine
from tests.router.conftest import Bench
from tests.router.test_service import Held, until

pytestmark = pytest.mark.anyio


async def test_a_socket_gets_the_answer_to_what_was_taken_before_the_end(bench: Bench, frame: bytes) -> None:
    """SIGTERM closes streams when their frames are answered, and idle ones at once."""
    held = Held()
    gateway = bench(FakeEngine(rows={"tiny-0": held}))
    config = Config.model_validate({"repo": bench.root, "port": 0, "grpc": False, "drain_s": 30.0})
    at: list[Addresses] = []
    running = asyncio.create_task(serve(config, gateway, bind("127.0.0.1", 0), None, at.append))
    await until(lambda: bool(at))
    url = at[0].http.replace("http", "ws") + "/v1/stream?operating_point=fast"
    async with connect(url, proxy=None) as busy, connect(url, proxy=None) as idle:
        await busy.send(frame)
        await held.wait_until_busy()
        os.kill(os.getpid(), signal.SIGTERM)
        await idle.wait_closed()
        assert idle.close_code == 1001
        held.open()
        assert "answer" in json.loads(await busy.recv())
        await busy.wait_closed()
        assert busy.close_code == 1001
    await running

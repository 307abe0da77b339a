"""Two published repositories in one gateway process, and the second one promoted under load."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from model_repo import publish
from router.client import GatewayClient
from tests.e2e.gateway_process import gateway_process
from tests.e2e.test_router_server import IMAGE, wait_until
from tests.fakes import encode_image, tiny_repository

FRAME = encode_image(IMAGE)


def test_a_challenger_answers_its_share_and_is_promoted_under_load(tmp_path: Path) -> None:
    """Sessions stay in their arms; promoting fails no request, and a restarted gateway serves the new set."""
    champion = tiny_repository(tmp_path / "champion")
    challenger = tiny_repository(tmp_path / "challenger", variants=3, training=1)
    stop = threading.Event()

    def send(url: str, session: str) -> list[str | None]:
        arms: list[str | None] = []
        with GatewayClient(url) as client:
            while not stop.is_set():
                arms.append(client.detect(FRAME, session_id=session).arm)
        return arms

    arguments = ("--challenger", str(challenger.root), "--challenger-share", "0.5")
    with gateway_process(champion.root, *arguments, "--reload-s", "0.2") as gateway:
        admin = gateway.admin_url
        with GatewayClient(gateway.url) as client:
            arms = [
                {client.detect(FRAME, session_id=f"camera-{number}").arm for _ in range(3)}
                for number in range(16)
            ]
            assert all(len(seen) == 1 for seen in arms)
            assert {arm for seen in arms for arm in seen} == {"champion", "challenger"}
        text = httpx.get(f"{gateway.admin_url}/metrics").text
        for arm, repository in (("champion", champion), ("challenger", challenger)):
            assert f'paretogate_arm_info{{arm="{arm}",manifest="{repository.digest[:12]}"}} 1.0' in text
        with ThreadPoolExecutor(4) as threads:
            sending = [threads.submit(send, gateway.url, f"camera-{number}") for number in range(4)]
            try:
                before = httpx.get(f"{admin}/challenger").json()
                wait_until(
                    lambda: (
                        httpx.get(f"{admin}/challenger").json()["champion"]["answered"]
                        > before["champion"]["answered"] + 20
                    )
                )
                promoted = httpx.post(f"{admin}/challenger/promote", timeout=60)
                assert promoted.status_code == 200, promoted.text
                assert promoted.json()["champion"]["manifest"] == challenger.digest
                assert promoted.json()["share"] == 0.0
                answered = promoted.json()["champion"]["answered"]
                wait_until(
                    lambda: httpx.get(f"{admin}/challenger").json()["champion"]["answered"] > answered + 20
                )
            finally:
                stop.set()
            # A request without an answer would have raised.
            assert all(future.result()[-1] == "champion" for future in sending)
        assert "Traceback" not in "".join(gateway.log)
    assert publish.read(champion.root).frontier == challenger.frontier
    with gateway_process(champion.root) as gateway, GatewayClient(gateway.url) as client:
        assert client.operating_points().manifest == challenger.digest
        assert client.detect(FRAME).arm is None


def test_a_shadow_compares_real_models(tmp_path: Path) -> None:
    """Two sets of the same models agree: what the shadow looked at differs by nothing."""
    champion = tiny_repository(tmp_path / "champion")
    same = publish.copy(champion, tmp_path / "same")
    with (
        gateway_process(
            champion.root, "--challenger", str(same.root), "--challenger-mode", "shadow",
            "--challenger-share", "1", "--shadow-share", "0",
        ) as gateway,
        GatewayClient(gateway.url) as client,
    ):  # fmt: skip

        def told(name: str) -> float:
            found = re.search(
                rf"^{name} (\S+)$", httpx.get(f"{gateway.admin_url}/metrics").text, re.MULTILINE
            )
            return float(found[1]) if found else 0.0

        def looked() -> bool:
            assert client.detect(FRAME).arm == "champion"
            return told("paretogate_arm_disagreement_count") >= 5

        wait_until(looked)
        assert told("paretogate_arm_disagreement_sum") == 0.0

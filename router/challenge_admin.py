"""What an administrator may do about a challenger; the paths are there only while there is one.

`GET /challenger` says how both arms do. `PUT /challenger` with `{"share": 0.25}` sets the share of frames
drawn for it, and lets a stopped one try again. `POST /challenger/promote` makes it the champion.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from router.admin import said, told
from router.arms import CHALLENGER, CHAMPION
from router.challenge import Challenge
from router.errors import MalformedRequest, RouterError
from router.promotion import Promotion
from router.service import Service


def challenge_routes(service: Service, challenge: Challenge, promotion: Promotion) -> list[Route]:
    """Return the paths below /challenger."""

    def state() -> Response:
        service.learn()  # every answer before this is counted
        serving = {CHAMPION: service.serving, CHALLENGER: challenge.serving}
        return JSONResponse(
            {
                "mode": challenge.mode,
                "share": challenge.share,
                "stopped": challenge.stopped,
                **{
                    arm: {"manifest": one.repository.digest, **challenge.metrics.counts(arm)}
                    for arm, one in serving.items()
                },
            }
        )

    def answering(work: Callable[[Request], Awaitable[None]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                await work(request)
            except RouterError as error:
                return told(error)
            return state()

        return answer

    async def read(_: Request) -> None:
        """Change nothing."""

    async def write(request: Request) -> None:
        challenge.set_share(_share(await request.body()))

    async def promote(_: Request) -> None:
        await promotion.promote()

    return [
        Route("/challenger", answering(read), methods=["GET"]),
        Route("/challenger", answering(write), methods=["PUT"]),
        Route("/challenger/promote", answering(promote), methods=["POST"]),
    ]


def _share(body: bytes) -> float:
    """Read the share to set; raises MalformedRequest, which says what is expected."""
    share = said(body, "share", "a number from 0 to 1")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0.0 <= share <= 1.0:
        raise MalformedRequest(f"share: {str(share)[:40]} is no number from 0 to 1")
    return float(share)

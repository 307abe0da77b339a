"""The challenger becomes the champion: its set is published into the champion's repository and taken over.

On disk the champion's repository is the old one or the new one, never a mix, see `model_repo.publish`; in the
gateway the set takes over between two requests, as every published set does, and can be rolled back as such.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from model_repo import publish
from model_repo.publish import RepositoryError
from router.challenge import Challenge
from router.errors import PromotionFailed
from router.reload import Reloader
from router.service import Service

_LOG = logging.getLogger(__name__)


class Promotion:
    """Promote what is in force as the challenger; `root` is the champion's repository, `reloader` its own."""

    def __init__(self, root: Path, service: Service, challenge: Challenge, reloader: Reloader) -> None:
        self._root, self._service = root, service
        self._challenge, self._reloader = challenge, reloader
        self._turn = asyncio.Lock()

    async def promote(self) -> None:
        """Publish the challenger's set, see it take over, and draw nothing for the challenger from then on.

        Raises PromotionFailed, which says what is in force and on disk.
        """
        async with self._turn:
            challenger = self._challenge.serving.repository
            champion = self._service.serving.repository.digest
            if self._challenge.stopped:
                raise PromotionFailed(f"{champion[:12]} stays in force: the challenger is stopped")
            try:
                published = await asyncio.to_thread(publish.copy, challenger, self._root)
            except (RepositoryError, OSError) as error:
                raise PromotionFailed(
                    f"{champion[:12]} stays in force, and published in {self._root}: {error}"
                ) from error
            await self._reloader.look()
            if self._service.serving.repository.digest != published.digest:
                raise PromotionFailed(
                    f"{published.digest[:12]} is published in {self._root}, but {champion[:12]} stays in"
                    " force; the log says why, and it is tried again"
                )
            self._challenge.set_share(0.0)
            _LOG.info("the challenger %s was promoted", challenger.digest[:12])

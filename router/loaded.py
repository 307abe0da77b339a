"""Which models an engine has loaded, and for whose sake: sets share an engine, and models with each other.

Sets are held and released by one change at a time; see `router.reload`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from model_repo.frontier import Frontier, Variant
from router.engines import StartupError
from router.serving import Serving


class LoadedSets:
    """The sets whose models an engine has; unload: lets go of a variant that none of them needs any more."""

    def __init__(self, unload: Callable[[Variant], None]) -> None:
        self._unload = unload
        self._sets: list[Serving] = []

    @property
    def folders(self) -> Mapping[str, Variant]:
        """Return what is loaded, by folder."""
        return {variant.folder: variant for held in self._sets for variant in held.fleet.variants.values()}

    def check(self, frontier: Frontier) -> None:
        """Raise StartupError where a set has a loaded folder's name for other files."""
        loaded = self.folders
        for variant in frontier.variants:
            other = loaded.get(variant.folder)
            if other is not None and _files(other) != _files(variant):
                raise StartupError(
                    f"models/{variant.folder} is loaded already with other files of that name; the folders of"
                    " sets that are served together must differ where their files do: publish it again"
                )

    def hold(self, serving: Serving) -> None:
        """Keep a set's models loaded until it is released."""
        self._sets.append(serving)

    def release(self, serving: Serving) -> None:
        """Unload what was loaded for this set alone."""
        self._sets.remove(serving)
        needed = self.folders
        for variant in serving.fleet.variants.values():
            if variant.folder not in needed:
                self._unload(variant)


def _files(variant: Variant) -> list[tuple[str, str]]:
    return [(segment.file, segment.sha256) for segment in variant.segments]

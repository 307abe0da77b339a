"""Models as guests of a running Triton: sent to it over gRPC, measured there, and taken out again.

Nobody has to share a folder with the server: a load request may carry the model's files and configuration
(https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md,
parameters "config" and "file:…"). The server must run with --model-control-mode=explicit. Its own models are
not touched: guests have names of their own, which begin with their host's mark.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerException

from model_repo.frontier import DatasetInfo, Frontier, Variant
from model_repo.publish import Repository
from model_repo.runtime.engine import EngineUnavailable, Inference, Tensors
from model_repo.runtime.triton import TritonEngine
from model_repo.triton import CONFIG, Platform, PlatformError, Serving, parse_config, render_repository

_LIMIT_S = 900.0
"""Of a call. TensorRT builds an engine when a model is loaded or first asked, which takes minutes."""
_TAKE_OUT_S = 60.0


class TritonGuestEngine(TritonEngine):
    """Run variants on a Triton at `url` that has none of them: `load` sends each, `unload` takes it out.

    platform: what they are rendered for, which the server's installation must have; every model gets as many
    instances as calls may be in flight, each with one core where it runs on CPUs. owner: on whose behalf.
    What an owner who was killed has left there is taken out before the next engine of the same owner sends
    anything, so an owner has one engine at a time. Latencies of this engine are a client's, gRPC included.
    """

    def __init__(self, url: str, platform: Platform, *, owner: str, parallelism: int = 1) -> None:
        super().__init__(url, parallelism=parallelism, limit_s=_LIMIT_S)
        self._platform = platform
        self._mark = f"guest-{sha256(owner.encode()).hexdigest()[:8]}-"
        self._guests: set[str] = set()
        self._tidy = False

    def load(self, root: Path, variant: Variant) -> None:
        """Send a variant to the server and ask it once, so that what it builds then is built.

        Raises EngineUnavailable when the server does not answer, takes no models, or refuses this one.
        """
        guest = self._guest(variant)
        client = self._open()
        try:
            if not self._tidy:
                self._take_out_what_was_left()
            config, files = _rendered(root, guest, self._platform, self.parallelism)
            client.load_model(guest.folder, config=config, files=files, client_timeout=self._limit_s)
        except InferenceServerException as error:
            raise EngineUnavailable(
                f"Triton at {self._url} does not take {variant.name!r} on its platform {self._platform}"
                f" (it needs --model-control-mode=explicit): {error.message()}"
            ) from error
        except PlatformError as error:
            raise EngineUnavailable(str(error)) from error
        self._guests.add(guest.folder)
        super().load(root, guest)
        width, height = variant.resolution_wh
        super().infer(guest, np.zeros((1, height, width, 3), np.uint8))

    def unload(self, variant: Variant) -> None:
        """Take a variant out of the server; does nothing when it was not sent."""
        guest = self._guest(variant)
        super().unload(guest)
        if guest.folder in self._guests:
            self._take_out(guest.folder)

    def infer(
        self,
        variant: Variant,
        frames: NDArray[np.uint8],
        *,
        done: Mapping[str, Tensors] | None = None,
        timeout_s: float | None = None,
    ) -> Inference:
        """Run a variant that was sent, as `TritonEngine.infer` does."""
        return super().infer(self._guest(variant), frames, done=done, timeout_s=timeout_s)

    def close(self) -> None:
        """Take out all that was sent and close the connection; later calls raise EngineUnavailable."""
        for folder in sorted(self._guests):
            try:
                self._take_out(folder)
            except EngineUnavailable:
                # The server is gone, and its guests with it, or the next engine of this owner takes them out.
                break
        super().close()

    def _guest(self, variant: Variant) -> Variant:
        return variant.model_copy(update={"folder": self._mark + variant.folder})

    def _take_out(self, folder: str) -> None:
        try:
            self._open().unload_model(folder, client_timeout=_TAKE_OUT_S)
        except InferenceServerException as error:
            raise EngineUnavailable(f"Triton at {self._url}, {folder}: {error.message()}") from error
        self._guests.discard(folder)

    def _take_out_what_was_left(self) -> None:
        # The index has the models of the server's own folders alone; statistics are of all that are ready.
        known = self._open().get_inference_statistics(client_timeout=self._limit_s).model_stats
        for name in dict.fromkeys(str(model.name) for model in known):
            if name.startswith(self._mark):
                self._take_out(name)
        self._tidy = True


def _rendered(root: Path, guest: Variant, platform: Platform, instances: int) -> tuple[str, dict[str, bytes]]:
    """Return a model's configuration as JSON and its files by the names that a load request gives them."""
    # Whose classes they are is not asked for here: rows carry numbers.
    dataset = DatasetInfo(name="measured", fingerprint="", classes=("object",), splits=())
    alone = Repository(root, Frontier.model_construct(dataset=dataset, variants=(guest,)), digest="")
    with TemporaryDirectory(prefix="paretogate-guest-") as temporary:
        serving = Serving(instances=instances)
        rendered = render_repository(alone, platform, Path(temporary) / "models", serving)
        folder = rendered / guest.folder
        config = json_format.MessageToJson(
            parse_config((folder / CONFIG).read_text()), preserving_proto_field_name=True
        )
        files = {
            f"file:{path.relative_to(folder).as_posix()}": path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != CONFIG
        }
    return config, files

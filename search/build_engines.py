"""Building the plans of a repository that was rendered for TensorRT, on a GPU of the kind that will serve it.

A plan runs on one kind of GPU and one version of TensorRT. So beside each stands what it was built from and
by (`Stamp`), and a plan is built again when any of that has changed; what TensorRT measured on the way is
kept in a timing cache, with which the next model of the same layers takes a fraction of the time.

Nothing here imports TensorRT: `PlanBuilder` is the seam, `search.tensorrt_builder` the real one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import PositiveInt, ValidationError
from tritonclient.grpc.model_config_pb2 import ModelConfig

from model_repo.files import write_whole
from model_repo.frontier import Sha256
from model_repo.publish import file_digest
from model_repo.triton.config import CONFIG, VERSION, PlatformError, architecture, parse_config
from model_repo.value import Value
from search.run_folder import Progress, RunError


class BuildRefused(Exception):
    """TensorRT does not build a model; the message is what it says."""


class Stamp(Value):
    """What a plan was built from and by, and the digest of what came out."""

    onnx_sha256: Sha256
    tensorrt: str
    compute_capability: str
    batch: PositiveInt
    plan_sha256: Sha256


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """A model to build: an ONNX file whose input `name` takes uint8 frames [n, *frame_shape], 1 ≤ n ≤ batch.

    timing: the timing cache of earlier builds, b"" for none.
    """

    onnx: bytes
    name: str
    frame_shape: tuple[int, ...]
    batch: int
    timing: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Built:
    """A serialized plan, and the timing cache with what was measured for it."""

    plan: bytes = field(repr=False)
    timing: bytes = field(repr=False)


class PlanBuilder(Protocol):
    """Builds plans for the GPU at hand."""

    @property
    def version(self) -> str:
        """Return TensorRT's version."""

    @property
    def compute_capability(self) -> str:
        """Return the GPU's, as "8.9"."""

    def build(self, request: PlanRequest, note: Callable[[str], None]) -> Built:
        """Build one plan; `note` hears what is being done, from any thread. Raises BuildRefused."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The models whose plans were built, were up to date, and were refused (with the reason)."""

    built: tuple[str, ...]
    kept: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]


def build_plans(
    repository: Path,
    builder: PlanBuilder,
    progress: Progress,
    *,
    compute_capability: str | None = None,
    timing_cache: Path | None = None,
) -> Outcome:
    """Build every plan of a rendered repository that is not up to date; one that fails does not stop others.

    compute_capability: what the GPU is expected to have. timing_cache: a file, by default one in the
    repository. Each plan is written whole, its stamp after it. Raises RunError when the repository was not
    rendered for TensorRT or not for this GPU, or when the GPU is another than expected; OSError.
    """
    found = builder.compute_capability
    if compute_capability not in (None, found):
        raise RunError(f"capability: this GPU has {found}, not {compute_capability}")
    jobs = [_Job.of(folder, found) for folder in _models(repository)]
    cache = timing_cache or repository / f"timing-{architecture(found)}.cache"
    timing = cache.read_bytes() if cache.exists() else b""
    built, kept, refused = [], [], []
    progress.start(f"plans for {found}", len(jobs))
    for job in jobs:
        if job.is_up_to_date(builder):
            kept.append(job.model)
        else:
            try:
                made = builder.build(job.request(timing), _noting(progress, job.model))
            except BuildRefused as error:
                refused.append((job.model, str(error)))
            else:
                job.write(made.plan, builder)
                timing = made.timing
                write_whole(cache, timing)
                built.append(job.model)
        progress.advance(1, job.model)
    return Outcome(tuple(built), tuple(kept), tuple(refused))


def _noting(progress: Progress, model: str) -> Callable[[str], None]:
    return lambda text: progress.advance(0, f"{model}: {text}")


@dataclass(frozen=True, slots=True)
class _Job:
    """One model: its ONNX file, its configuration, where its plan for this GPU belongs."""

    model: str
    onnx: Path
    config: ModelConfig
    plan: Path

    @classmethod
    def of(cls, folder: Path, compute_capability: str) -> _Job:
        """Read a model's folder; raises RunError."""
        try:
            config = parse_config((folder / CONFIG).read_text())
        except PlatformError as error:
            raise RunError(f"{folder}: {error}") from error
        if config.platform != "tensorrt_plan":
            raise RunError(f"{folder} was not rendered for TensorRT: search triton --platform tensorrt does")
        name = config.cc_model_filenames.get(compute_capability)
        if name is None:
            raise RunError(
                f"{folder} was rendered for {', '.join(sorted(config.cc_model_filenames))}; for this GPU"
                f" render it again with --capability {compute_capability}"
            )
        files = sorted((folder / VERSION).glob("*.onnx"))
        if len(files) != 1:
            raise RunError(f"{folder / VERSION} holds {len(files)} ONNX files, not one")
        return cls(folder.name, files[0], config, folder / VERSION / name)

    @property
    def batch(self) -> int:
        """Return the largest batch."""
        return max(1, self.config.max_batch_size)

    @property
    def stamp(self) -> Path:
        """Return where the plan's stamp belongs."""
        return self.plan.with_name(f"{self.plan.name}.json")

    def request(self, timing: bytes) -> PlanRequest:
        """Return what to build."""
        frames = self.config.input[0]
        return PlanRequest(self.onnx.read_bytes(), frames.name, tuple(frames.dims[-3:]), self.batch, timing)

    def is_up_to_date(self, builder: PlanBuilder) -> bool:
        """Return whether there is a plan, whole, of this file by this TensorRT for this GPU."""
        try:
            stamp = Stamp.model_validate_json(self.stamp.read_bytes())
            return stamp == self._stamp(builder, file_digest(self.plan))
        except (FileNotFoundError, ValidationError):
            return False

    def write(self, plan: bytes, builder: PlanBuilder) -> None:
        """Write the plan, then its stamp."""
        write_whole(self.plan, plan)
        stamp = self._stamp(builder, hashlib.sha256(plan).hexdigest())
        write_whole(self.stamp, (stamp.model_dump_json(indent=2) + "\n").encode())

    def _stamp(self, builder: PlanBuilder, plan_sha256: str) -> Stamp:
        return Stamp(
            onnx_sha256=file_digest(self.onnx),
            tensorrt=builder.version,
            compute_capability=builder.compute_capability,
            batch=self.batch,
            plan_sha256=plan_sha256,
        )


def _models(repository: Path) -> list[Path]:
    if not repository.is_dir():
        raise RunError(f"{repository}: no such folder")
    models = sorted(folder for folder in repository.iterdir() if (folder / CONFIG).is_file())
    if not models:
        raise RunError(f"{repository} holds no model that was rendered for Triton")
    return models

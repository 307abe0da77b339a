"""Writing a Triton model repository: configurations, labels, copies of the files, and how to build plans."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from model_repo.frontier import Variant
from model_repo.int8 import QuantizationError
from model_repo.publish import Repository
from model_repo.runtime.unsigned import GraphError, with_unsigned_activations
from model_repo.triton.config import (
    CONFIG,
    LABELS,
    VERSION,
    Platform,
    PlatformError,
    Serving,
    architecture,
    chain_files,
    format_config,
    input_shape,
    labels_text,
    model_config,
    plan_file,
)
from model_repo.triton.graphs import batched, check_copies, tensorrt_form


def render_repository(
    repository: Repository, platform: Platform, out: Path, serving: Serving | None = None
) -> Path:
    """Write a whole Triton model repository at `out`, all of it or nothing; returns `out`.

    Every variant becomes a model. For tensorrt no plan is built: the ONNX files come along, in the form that
    TensorRT takes, and BUILD.txt says how. Raises PlatformError when `out` holds something already, or when
    a variant cannot be served, cannot be batched or breaks TensorRT's rules for int8.
    """
    serving = serving or Serving()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PlatformError(f"{out} is there already and is not an empty folder")
    configs = [model_config(variant, platform, serving) for variant in repository.frontier.variants]
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.parent / f".{out.name}-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir()
        for variant, config in zip(repository.frontier.variants, configs, strict=True):
            folder = staging / variant.folder
            version = folder / VERSION
            version.mkdir(parents=True)
            for name, content in zip(
                chain_files(variant), _files(repository, variant, platform, serving), strict=True
            ):
                (version / name).write_bytes(content)
            if platform == "python":
                source = resources.files("model_repo.triton").joinpath("model.py").read_bytes()
                (version / "model.py").write_bytes(source)
            write_description(folder, config, repository.frontier.dataset.classes)
        if platform == "tensorrt":
            (staging / "BUILD.txt").write_text(_build_text(repository, serving))
        os.rename(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out


def write_description(folder: Path, config: ModelConfig, classes: Sequence[str]) -> None:
    """Write a model's config.pbtxt and the labels that it names."""
    (folder / LABELS).write_text(labels_text(classes))
    (folder / CONFIG).write_text(format_config(config))


def _files(repository: Repository, variant: Variant, platform: Platform, serving: Serving) -> list[bytes]:
    """Return what Triton is to run of a variant, by segment: the published bytes where they will do.

    The python platform runs int8 in the form that the embedded engines give it, so that a model answers
    alike on both; TensorRT has a form of its own, which answers as the published one does.
    """
    published = [repository.path(segment).read_bytes() for segment in variant.segments]
    where, files = repr(variant.name), published
    try:
        if platform == "tensorrt":
            files = [tensorrt_form(content, where) for content in published]
            check_copies(variant, published, files, batches=False)
        elif platform == "python" and variant.precision == "int8":
            files = [with_unsigned_activations(content) for content in published]
    except QuantizationError as error:
        raise PlatformError(f"TensorRT does not take this int8 graph: {error}") from error
    except GraphError as error:
        raise PlatformError(f"{where}: {error}") from error
    if serving.batch > 1:
        single, files = files, [batched(content, where) for content in files]
        check_copies(variant, single, files, batches=True)
    return files


def _build_text(repository: Repository, serving: Serving) -> str:
    """Return the text of BUILD.txt: how to build each plan, to be run on a GPU of its kind.

    Graphs are built strongly typed: f32, fp16 and int8 (explicit Q/DQ) are what the ONNX file says.
    """
    lines = [
        "No plan is built here: a plan runs only on the kind of GPU and the TensorRT version that built it.",
        "Triton refuses these models until their plans exist. In this folder, on a GPU of each compute",
        "capability that you serve on, with the TensorRT that your Triton release uses:",
        "",
        "python -m search build-engines --repo .",
        "",
        "It needs this project and the Python package tensorrt there. Without Python, with trtexec:",
        "",
    ]
    for capability in serving.compute_capabilities:
        lines.append(f"# compute capability {capability}")
        lines += [_trtexec(variant, capability, serving) for variant in repository.frontier.variants]
        lines.append("")
    lines.append(
        "(TensorRT 11 builds strongly typed always: leave out --stronglyTyped where trtexec refuses it.)"
    )
    return "\n".join(lines) + "\n"


def _trtexec(variant: Variant, capability: str, serving: Serving) -> str:
    version = f"{variant.folder}/{VERSION}"
    words = [
        "trtexec",
        f"--onnx={version}/{chain_files(variant)[0]}",
        "--stronglyTyped",
        f"--timingCacheFile=timing-{architecture(capability)}.cache",
        f"--saveEngine={version}/{plan_file(capability)}",
    ]
    if serving.batch > 1:
        words += [
            f"--minShapes={input_shape(variant, 1)}",
            f"--optShapes={input_shape(variant, serving.batch)}",
            f"--maxShapes={input_shape(variant, serving.batch)}",
        ]
    return " ".join(words)

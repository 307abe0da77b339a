"""Commands that prepare what Triton serves. None of them imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from search.run_folder import RunError
from search.tools import RepositoryOption, opened

_Name = TypeVar("_Name", bound=str)


def triton(
    platform: Annotated[str, typer.Option(help="onnxruntime, tensorrt, openvino or python")],
    repo: RepositoryOption,
    out: Annotated[Path, typer.Option(help="where to write the repository: a folder that is not there yet")],
    runtime: Annotated[
        str, typer.Option(help="of the python platform: openvino or onnxruntime")
    ] = "openvino",
    device: Annotated[str, typer.Option(help="of the onnxruntime platform: auto, cpu or gpu")] = "auto",
    threads: Annotated[int, typer.Option(help="cores per inference")] = 1,
    instances: Annotated[int, typer.Option(help="inferences at once")] = 1,
    batch: Annotated[int, typer.Option(help="the largest batch, for GPUs; 1 is none")] = 1,
    batch_wait_ms: Annotated[
        float, typer.Option(help="how long a smaller batch waits for more frames")
    ] = 0.0,
    queue_timeout_ms: Annotated[
        float, typer.Option(help="how long a request may wait for its turn; its own timeout can be less")
    ] = 30_000.0,
    max_queue: Annotated[int, typer.Option(help="requests that may wait; 0 is any number")] = 0,
    capability: Annotated[
        list[str] | None,
        typer.Option(help="compute capability of GPUs that tensorrt gets plans for; may be repeated"),
    ] = None,
) -> None:
    """Render a Triton model repository from a published one."""
    from model_repo.triton import (
        COMPUTE_CAPABILITIES,
        DEVICES,
        PLATFORMS,
        PYTHON_RUNTIMES,
        PlatformError,
        Serving,
        render_repository,
    )

    chosen = _known("platform", platform, PLATFORMS)
    try:
        serving = Serving(
            runtime=_known("runtime", runtime, PYTHON_RUNTIMES),
            device=_known("device", device, DEVICES),
            threads=threads,
            instances=instances,
            batch=batch,
            batch_wait_ms=batch_wait_ms,
            queue_timeout_ms=queue_timeout_ms,
            max_queue=max_queue,
            compute_capabilities=tuple(capability or COMPUTE_CAPABILITIES),
        )
        render_repository(opened(repo), chosen, out, serving)
    except PlatformError as error:
        raise RunError(str(error)) from error
    typer.echo(f"{out}: {len(list(out.iterdir()))} entries")


def _known(option: str, given: str, known: Sequence[_Name]) -> _Name:
    """Return the one of the known names that was given; raises RunError that lists them."""
    chosen = next((name for name in known if name == given), None)
    if chosen is None:
        raise RunError(f"{option}: {given!r} is none of {', '.join(known)}")
    return chosen


def build_engines(
    repo: Annotated[Path, typer.Option(help="a repository rendered with --platform tensorrt")],
    capability: Annotated[
        str | None, typer.Option(help="compute capability that the GPU here has to have, as 8.9")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="what builds measured, for later ones; by default in the repository")
    ] = None,
    workspace_mb: Annotated[int, typer.Option(min=1, help="GPU memory that a layer may use")] = 1024,
) -> None:
    """Build the TensorRT plans of a rendered repository for the GPU of this machine.

    Plans that are up to date stay. Ends with status 1 when TensorRT refuses a model, with 2 when there is no
    TensorRT or no GPU here.
    """
    from rich.console import Console

    from search.build_engines import build_plans
    from search.console import ConsoleProgress
    from search.tensorrt_builder import tensorrt_builder

    builder = tensorrt_builder(workspace_mb << 20)
    with ConsoleProgress(Console()) as progress:
        outcome = build_plans(
            repo, builder, progress, compute_capability=capability, timing_cache=timing_cache
        )
    for model in outcome.built:
        typer.echo(f"built    {model}")
    for model in outcome.kept:
        typer.echo(f"kept     {model}")
    for model, reason in outcome.refused:
        typer.echo(f"refused  {model}: {reason}")
    typer.echo(
        f"TensorRT {builder.version}, compute capability {builder.compute_capability}:"
        f" {len(outcome.built)} built, {len(outcome.kept)} kept, {len(outcome.refused)} refused"
    )
    if outcome.refused:
        raise typer.Exit(1)

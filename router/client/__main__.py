"""`python -m router.client`: send images to a gateway, see what is found in them."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import cv2
import typer
from rich.console import Console
from rich.table import Table

from model_repo.drawing import drawn
from model_repo.frame import FrameError, decode
from router.client import ClientTls, GatewayClient, GatewayError, GrpcGatewayClient
from router.documents import AnswerDocument

_OUT, _ERR = Console(), Console(stderr=True)
_SHOWN_FROM = 0.25


def detect(
    images: Annotated[list[Path], typer.Argument(help="JPEG or PNG files", metavar="IMAGE…")],
    url: Annotated[str, typer.Option(help="the gateway's address over HTTP")] = "http://127.0.0.1:8080",
    grpc: Annotated[str | None, typer.Option(help="host:port, to ask over gRPC instead")] = None,
    budget_ms: Annotated[float | None, typer.Option(help="milliseconds until an answer is of no use")] = None,
    operating_point: Annotated[str | None, typer.Option(help="fast, balanced, …; else the gateway's")] = None,
    min_score: Annotated[
        float, typer.Option(help="least score of what is shown, drawn and printed")
    ] = _SHOWN_FROM,
    tls: Annotated[
        bool, typer.Option("--tls", help="gRPC with TLS; over HTTP an https:// url says so")
    ] = False,
    ca: Annotated[Path | None, typer.Option(help="PEM of who signed the gateway's certificate")] = None,
    retries: Annotated[int, typer.Option(help="how often to ask again within the budget")] = 2,
    save: Annotated[Path | None, typer.Option(help="draw on the image; a folder for several")] = None,
    coco: Annotated[
        bool, typer.Option("--coco", help="print COCO results as JSON, image_id by position")
    ] = False,
) -> None:
    """Find the objects in images and print, draw or write them.

    The environment's PARETOGATE_API_KEY is shown to gateways that ask for one.
    """
    # Not an option: a command line is seen by everybody on the machine.
    api_key = os.environ.get("PARETOGATE_API_KEY")
    trust = ClientTls(ca) if tls or ca is not None else None
    if save is not None and len(images) > 1 and not save.is_dir():
        _stop(f"--save: {save} is no folder, and there are {len(images)} images")
    results: list[dict[str, object]] = []
    with ExitStack() as stack:
        client = (
            stack.enter_context(GatewayClient(url, api_key=api_key, tls=trust, retries=retries))
            if grpc is None
            else stack.enter_context(GrpcGatewayClient(grpc, api_key=api_key, tls=trust, retries=retries))
        )
        for number, path in enumerate(images):
            try:
                frame = path.read_bytes()
                answer = client.detect(
                    frame, budget_ms=budget_ms, operating_point=operating_point, min_score=min_score
                )
            except OSError as error:
                _stop(f"{path}: {error.strerror}")
            except GatewayError as error:
                _stop(f"{path}: {error}")
            if coco:
                results.extend(answer.as_coco(number))
            else:
                _show(path, answer)
            if save is not None:
                _draw(frame, answer, save / path.name if save.is_dir() else save)
    if coco:
        typer.echo(json.dumps(results))


def _show(path: Path, answer: AnswerDocument) -> None:
    stages = " → ".join(f"{stage.variant} {stage.latency_ms:.1f} ms" for stage in answer.stages)
    title = f"{path}: {answer.operating_point}, {stages}, {answer.timing.total_ms:.1f} ms in the gateway"
    table = Table("label", "score", "x1", "y1", "x2", "y2", title=title, title_justify="left")
    for found in answer.detections:
        box = (found.box.x1, found.box.y1, found.box.x2, found.box.y2)
        table.add_row(found.label, f"{found.score:.3f}", *(f"{edge:.0f}" for edge in box))
    _OUT.print(table)
    if answer.cut is not None:
        _ERR.print(f"{path}: {answer.cut.stage} was not run: {answer.cut.reason}")


def _draw(frame: bytes, answer: AnswerDocument, to: Path) -> None:
    detections = answer.as_detections()
    labels = {found.class_id: found.label for found in answer.detections}
    classes = [labels.get(index, "") for index in range(max(labels, default=-1) + 1)]
    try:
        image = drawn(decode(frame), detections, classes, 0.0)
        written = cv2.imwrite(str(to), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except (FrameError, cv2.error) as error:
        _stop(f"{to}: {error}")
    if not written:
        _stop(f"{to}: it could not be written")


def _stop(message: str) -> None:
    _ERR.print(message, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(detect)

"""Options that several commands share, each with the words of its help."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from loadtest.gateway import connect
from loadtest.target import Target


class ProtocolName(StrEnum):
    """What to speak."""

    HTTP = "http"
    GRPC = "grpc"
    STREAM = "stream"
    OIP_HTTP = "oip-http"
    OIP_GRPC = "oip-grpc"
    TRITON = "triton"


FramesOption = Annotated[Path, typer.Option("--frames", help="Folder of frames with _annotations.coco.json.")]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Use only the first frames of the folder.")
]
UrlOption = Annotated[str, typer.Option("--url", help="The gateway's HTTP address.")]
GrpcOption = Annotated[
    str, typer.Option("--grpc-address", help="host:port, where frames go over grpc, oip-grpc and triton.")
]
ProtocolOption = Annotated[
    ProtocolName,
    typer.Option(
        "--protocol",
        help="What to speak: the gateway's own http, grpc or stream (cameras over WebSockets), the Open"
        " Inference Protocol over HTTP or gRPC, or a plain Triton with the models of --repo.",
    ),
]
CaOption = Annotated[
    Path | None, typer.Option("--ca", help="PEM of who signed the gateway's certificate; gRPC then has TLS.")
]
CamerasOption = Annotated[
    int, typer.Option("--cameras", min=1, help="With --protocol stream: streams that share the frames.")
]
SendersOption = Annotated[
    int, typer.Option("--senders", min=1, max=64, help="Processes that share the schedule.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of the arrivals.")]
TimeoutOption = Annotated[float, typer.Option("--timeout-s", help="Give up on an answer after this long.")]
BudgetOption = Annotated[
    float, typer.Option("--budget-ms", help="The quantile of all requests must be answered in this time.")
]
QuantileOption = Annotated[
    float, typer.Option("--quantile", help="Of all requests, which must keep the budget; 0.99 is p99.")
]
ConfidenceOption = Annotated[
    float, typer.Option("--confidence", help="With which that is to be shown, as MLPerf does.")
]
RequestBudgetOption = Annotated[
    float | None,
    typer.Option("--request-budget-ms", help="Budget sent along; --budget-ms unless told, 0 for none."),
]
IssueDelayOption = Annotated[
    float,
    typer.Option(
        "--issue-delay-ms", help="Bound on the generator's own p99 delay; beyond it a run is INVALID."
    ),
]
ReportOption = Annotated[Path | None, typer.Option("--report", help="Write a page of HTML here.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write all figures here.")]


def connector(
    url: str,
    protocol: ProtocolName,
    *,
    grpc_address: str,
    timeout_s: float,
    ca: Path | None = None,
    repo: Path | None = None,
    cameras: int = 1,
) -> Callable[[], Target]:
    """Return what connects to the target, in this process or another, see `loadtest.gateway.connect`.

    The environment's PARETOGATE_API_KEY is shown: a command line is seen by everybody on the machine.
    """
    return partial(
        connect,
        url,
        protocol.value,
        grpc_address=grpc_address,
        api_key=os.environ.get("PARETOGATE_API_KEY"),
        ca=ca,
        repo=repo,
        cameras=cameras,
        timeout_s=timeout_s,
    )


def sent_budget_ms(request_budget_ms: float | None, budget_ms: float) -> float | None:
    """Return the budget that requests carry: the one that is judged unless told, none for 0."""
    return budget_ms if request_budget_ms is None else request_budget_ms or None

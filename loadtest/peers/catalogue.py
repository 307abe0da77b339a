"""Who is compared: each peer's packages, how it is started, how it is spoken to, and its settings.

Versions are pinned here. What decides about a frame (OpenVINO, the decoder, OpenCV, the reader of int8
graphs) is pinned to what this process has, so that every peer runs the gateway's own.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

Wire = Literal["http", "oip"]
_SAME = ("openvino", "onnx", "simplejpeg")
_SERVERS = "loadtest.peers.servers"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer is started: its environment, its ports, an empty folder of its own, the packages' root."""

    environment: Path
    http_port: int
    grpc_port: int
    scratch: Path
    root: Path

    @property
    def python(self) -> str:
        """Return the environment's interpreter."""
        return str(self.environment / "bin" / "python")


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that is compared with the gateway.

    environment: the folder's name, shared by peers that need the same. alone: packages that are installed
    without what they ask for. numpy, opencv: when not this process's own. command: what is run, after it has
    written what it needs into the scratch folder. cascade: whether it serves two models and a threshold.
    """

    name: str
    title: str
    environment: str
    packages: tuple[str, ...]
    settings: str
    command: Callable[[Place], tuple[str, ...]]
    wire: Wire = "http"
    content_type: str = "application/octet-stream"
    alone: tuple[str, ...] = ()
    numpy: str | None = None
    opencv: str | None = None
    cascade: bool = False
    variables: Callable[[Place], Mapping[str, str]] = field(default=lambda place: {})

    def requirements(self) -> tuple[str, ...]:
        """Return everything that goes into the environment, pinned."""
        same = [f"{name}=={importlib.metadata.version(name)}" for name in _SAME]
        numpy = self.numpy or importlib.metadata.version("numpy")
        opencv = self.opencv or importlib.metadata.version("opencv-python-headless")
        shared = [f"numpy=={numpy}", f"opencv-python-headless=={opencv}", "pydantic>=2.10,<3"]
        return (*same, *shared, *self.packages)


def _module(name: str) -> Callable[[Place], tuple[str, ...]]:
    return lambda place: (place.python, "-m", f"{_SERVERS}.{name}")


def _bentoml(place: Place) -> tuple[str, ...]:
    return (
        str(place.environment / "bin" / "bentoml"),
        "serve",
        f"{_SERVERS}.bentoml_app:DetectionService",
        "--host=127.0.0.1",
        f"--port={place.http_port}",
        f"--working-dir={place.scratch}",
    )


def _mlserver(place: Place) -> tuple[str, ...]:
    settings = {
        "host": "127.0.0.1",
        "http_port": place.http_port,
        "grpc_port": place.grpc_port,
        "parallel_workers": 0,
        "metrics_endpoint": None,
        "debug": False,
    }
    model = {"name": "detection", "implementation": f"{_SERVERS}.mlserver_app.DetectionRuntime"}
    (place.scratch / "settings.json").write_text(json.dumps(settings))
    (place.scratch / "model-settings.json").write_text(json.dumps(model))
    return (str(place.environment / "bin" / "mlserver"), "start", str(place.scratch))


_TRITON_CONFIG = """name: "detection"
backend: "python"
max_batch_size: 0
input { name: "frame" data_type: TYPE_STRING dims: 1 }
output { name: "rows" data_type: TYPE_FP32 dims: [ -1, 6 ] }
instance_group { kind: KIND_CPU count: 1 }
"""


def _triton(place: Place) -> tuple[str, ...]:
    model = place.scratch / "repository" / "detection"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(_TRITON_CONFIG)
    source = resources.files(_SERVERS).joinpath("triton_app.py").read_bytes()
    (model / "1" / "model.py").write_bytes(source)
    server = _site(place.environment) / "pytriton" / "tritonserver"
    stub = server / "backends" / "python" / "triton_python_backend_stub"
    if not stub.exists():
        # The wheel has a stub for every CPython; the backend looks for one of this name.
        stub.symlink_to(server / "python_backend_stubs" / "3.11" / stub.name)
    return (
        str(server / "bin" / "tritonserver"),
        f"--model-repository={model.parent}",
        f"--backend-directory={server / 'backends'}",
        "--disable-auto-complete-config",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={place.grpc_port}",
        "--allow-http=false",
        "--allow-metrics=false",
        f"--backend-config=python,shm-region-prefix-name=paretogate-peers-{place.grpc_port}-",
        "--exit-timeout-secs=5",
    )


def _triton_variables(place: Place) -> Mapping[str, str]:
    library = (place.environment / "libpython").read_text().strip()
    # Its interpreter is embedded: it knows nothing of the environment, nor of the paths that this one adds.
    return {"PYTHONPATH": f"{_site(place.environment)}:{place.root}", "LD_LIBRARY_PATH": library}


def _site(environment: Path) -> Path:
    # The wheel brings Triton's Python backend for this version alone.
    return environment / "lib" / "python3.11" / "site-packages"


PEERS: tuple[Peer, ...] = (
    Peer(
        name="fastapi",
        title="FastAPI, one model",
        environment="fastapi",
        packages=("fastapi==0.165.0", "uvicorn[standard]==0.54.0"),
        settings="uvicorn with uvloop and httptools, 1 process, no threads, body in and rows out as bytes",
        command=_module("fastapi_app"),
    ),
    Peer(
        name="cascade",
        title="FastAPI, cascade with a fixed threshold",
        environment="fastapi",
        packages=("fastapi==0.165.0", "uvicorn[standard]==0.54.0"),
        settings="as FastAPI; asks the larger model when no raw score reaches the threshold",
        command=_module("fastapi_app"),
        cascade=True,
    ),
    Peer(
        name="litserve",
        title="LitServe",
        environment="litserve",
        packages=("litserve==0.2.19",),
        settings="1 worker, 1 API server, fast_queue, no batching, body in and rows out as bytes",
        command=_module("litserve_app"),
    ),
    Peer(
        name="bentoml",
        title="BentoML",
        environment="bentoml",
        packages=("bentoml==1.4.39",),
        settings="1 worker, 1 thread, no batching, no metrics, no access log, root input and output as bytes",
        command=_bentoml,
        content_type="image/jpeg",
        variables=lambda place: {"BENTOML_HOME": str(place.scratch), "BENTOML_DO_NOT_TRACK": "True"},
    ),
    Peer(
        name="ray",
        title="Ray Serve",
        environment="ray",
        packages=("ray[serve]==2.60.0",),
        settings="1 replica, RAY_SERVE_THROUGHPUT_OPTIMIZED=1, no access log, body in and rows out as bytes",
        command=_module("ray_app"),
        variables=lambda place: {
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        },
    ),
    Peer(
        name="mlserver",
        title="MLServer",
        environment="mlserver",
        packages=("mlserver==1.7.1",),
        settings="parallel_workers 0 (in process), gRPC with raw contents, no metrics, no batching",
        command=_mlserver,
        wire="oip",
    ),
    Peer(
        name="triton",
        title="Triton, called directly",
        environment="triton",
        # The backend misreads arrays of numpy 2, and OpenCV 5 wants numpy 2.
        packages=(),
        alone=("nvidia-pytriton==0.7.0",),
        numpy="1.26.4",
        opencv="4.11.0.86",
        settings="2.51, Python backend with decoding and suppression inside, 1 instance, gRPC, no batching",
        command=_triton,
        wire="oip",
        variables=_triton_variables,
    ),
)

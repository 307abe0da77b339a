"""The model that Triton's Python backend runs: copied as `model.py` into every rendered version folder.

It stands alone: numpy and one inference runtime beside it suffice. What to run is in the `parameters` of
its config.pbtxt: `runtime` (openvino or onnxruntime), `arithmetic`, `threads`, and `chain`, a JSON list of
segments {file, inputs, outputs} in the order in which they run. Where `max_batch_size` is above 0 the files
take any number of frames, and the requests that Triton hands over together run together.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any  # Triton hands over objects of a module that exists only inside its backend.

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
RunSegment = Callable[[Arrays], Arrays]

_OPENVINO_HINT = {"f32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}


class TritonPythonModel:
    """Answer requests of `frames` uint8 [n, h, w, 3] with `detections` float32 [n, 100, 6]."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Compile the chain; whatever is raised here, Triton reports as the reason why it is not ready."""
        self._utils: Any = importlib.import_module("triton_python_backend_utils")
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        self._batches = int(config["max_batch_size"]) > 0
        folder = Path(args["model_repository"]) / args["model_version"]
        threads = int(parameters["threads"])
        self._chain: list[tuple[Sequence[str], RunSegment]] = []
        for segment in json.loads(parameters["chain"]):
            file = str(folder / segment["file"])
            if parameters["runtime"] == "openvino":
                run = _openvino(file, segment["outputs"], parameters["arithmetic"], threads)
            else:
                run = _onnxruntime(file, segment["outputs"], threads)
            self._chain.append((segment["inputs"], run))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests together where the files take batches, else each by itself."""
        if self._batches:
            return self._answers(requests)
        return [response for request in requests for response in self._answers([request])]

    def _answers(self, requests: Sequence[Any]) -> list[Any]:
        utils = self._utils
        try:
            given = [utils.get_input_tensor_by_name(request, "frames").as_numpy() for request in requests]
            made: dict[str, NDArray[Any]] = {"frames": np.ascontiguousarray(np.concatenate(given))}
            for inputs, run in self._chain:
                made.update(run({name: made[name] for name in inputs}))
            rows = np.ascontiguousarray(made["detections"], dtype=np.float32)
            parts = np.split(rows, np.cumsum([len(frames) for frames in given])[:-1])
            return [utils.InferenceResponse([utils.Tensor("detections", part)]) for part in parts]
        except (RuntimeError, ValueError, KeyError) as error:
            return [utils.InferenceResponse([], utils.TritonError(str(error))) for _ in requests]


def _openvino(file: str, outputs: Sequence[str], arithmetic: str, threads: int) -> RunSegment:
    ov: Any = importlib.import_module("openvino")
    request = (
        ov.Core()
        .compile_model(
            file,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _OPENVINO_HINT[arithmetic],
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": "1",
            },
        )
        .create_infer_request()
    )

    def run(feed: Arrays) -> Arrays:
        for name, value in feed.items():
            request.set_tensor(name, ov.Tensor(value, shared_memory=True))
        request.infer()
        return {name: request.get_tensor(name).data.copy() for name in outputs}

    return run


def _onnxruntime(file: str, outputs: Sequence[str], threads: int) -> RunSegment:
    ort: Any = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(feed: Arrays) -> Arrays:
        return dict(zip(outputs, session.run(list(outputs), dict(feed)), strict=True))

    return run

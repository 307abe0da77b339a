"""The model that Triton's Python backend runs: copied as `model.py` into every rendered version folder.

It stands alone: numpy and one inference runtime beside it suffice. What to run is in the `parameters` of
its config.pbtxt: `runtime` (openvino or onnxruntime), `arithmetic`, `threads`, and `chain`, a JSON list of
segments {file, inputs, outputs} in the order in which they run.
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
    """Answer requests of `frames` uint8 [1, h, w, 3] with `detections` float32 [1, 100, 6]."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Compile the chain; whatever is raised here, Triton reports as the reason why it is not ready."""
        self._utils: Any = importlib.import_module("triton_python_backend_utils")
        parameters = {
            name: value["string_value"]
            for name, value in json.loads(args["model_config"])["parameters"].items()
        }
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
        """Answer each request by itself: published graphs have the batch size 1."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        utils = self._utils
        try:
            made: dict[str, NDArray[Any]] = {
                "frames": np.ascontiguousarray(utils.get_input_tensor_by_name(request, "frames").as_numpy())
            }
            for inputs, run in self._chain:
                made.update(run({name: made[name] for name in inputs}))
            rows = utils.Tensor("detections", np.ascontiguousarray(made["detections"], dtype=np.float32))
            return utils.InferenceResponse([rows])
        except (RuntimeError, ValueError, KeyError) as error:
            return utils.InferenceResponse([], utils.TritonError(str(error)))


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

"""Triton: a model of its Python backend that decodes, infers and suppresses; copied as `1/model.py`.

Source: the Python backend's README (github.com/triton-inference-server/python_backend). Triton is given the
encoded frame, as every peer is: were it given pixels, the load generator's core would do a part of its work.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any  # Triton hands over objects of a module that exists only inside its backend.

from loadtest.peers.servers.detector import make_detector


class TritonPythonModel:
    """Frames as BYTES [1] in, rows as FP32 [n, 6] out."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the models; whatever is raised here, Triton reports as the reason why it is not ready."""
        del args
        self._utils: Any = importlib.import_module("triton_python_backend_utils")
        self._detector = make_detector()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request by itself."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        frame = self._utils.get_input_tensor_by_name(request, "frame").as_numpy()[0]
        rows = self._utils.Tensor("rows", self._detector.rows(bytes(frame)))
        return self._utils.InferenceResponse(output_tensors=[rows])

"""MLServer: a custom runtime, asked over gRPC. `mlserver start FOLDER` with settings of one process.

Sources: docs.seldon.ai/mlserver, "Custom Inference Runtimes", "MLServer Settings", "Parallel Inference"
(`parallel_workers: 0` runs the model in the server's process, which saves a copy between two).
"""

from __future__ import annotations

from mlserver import MLModel
from mlserver.types import Datatype, InferenceRequest, InferenceResponse, ResponseOutput, TensorData

from loadtest.peers.servers.detector import Detector, make_detector


class DetectionRuntime(MLModel):
    """Frames as BYTES [1] in, rows as FP32 [n, 6] out."""

    _detector: Detector

    async def load(self) -> bool:
        """Load the models."""
        self._detector = make_detector()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer a frame."""
        rows = self._detector.rows(payload.inputs[0].data[0])
        return InferenceResponse(
            id=payload.id,
            model_name=self.name,
            outputs=[
                ResponseOutput(
                    name="rows",
                    shape=list(rows.shape),
                    datatype=Datatype.FP32,
                    data=TensorData(rows.ravel().tolist()),
                )
            ],
        )

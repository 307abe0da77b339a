"""int8 in the one form that every runtime takes: explicit signed symmetric Q/DQ.

ONNX Runtime's static quantizer writes QuantizeLinear/DequantizeLinear pairs with zero point 0, weights per
channel; what the exporter names as float (the head's predictions and the decoding) stays float. TensorRT 11
takes no other form, OpenVINO and ONNX Runtime run it too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from model_repo.frame import Letterbox
from model_repo.int8 import check_explicit_int8

Calibration = Literal["minmax", "entropy", "percentile"]
_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
# What stands between convolutions is quantized with them: int8 values travel without a detour to float.
_QUANTIZED = ("Conv", "Add", "Relu", "Resize", "MaxPool", "Concat")


def quantize(
    source: Path,
    target: Path,
    frames: Sequence[NDArray[np.uint8]],
    *,
    float_nodes: Sequence[str],
    resolution_wh: tuple[int, int],
    method: Calibration = "minmax",
) -> None:
    """Write the int8 form of the float model at `source` to `target`.

    frames: decoded RGB frames [h, w, 3] that ranges are taken from; they pass the letterbox as when serving.
    Raises QuantizationError when the result is not signed, symmetric and stored as int8, ValueError without
    frames.
    """
    if not frames:
        raise ValueError("quantization needs at least one frame to take ranges from")
    name = onnx.load(source, load_external_data=False).graph.input[0].name
    with _quiet():
        quantize_static(
            source,
            target,
            _Frames(name, frames, resolution_wh),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTIZED),
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=list(float_nodes),
            calibrate_method=_METHODS[method],
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
        )
    check_explicit_int8(target)


class _Frames(CalibrationDataReader):
    """Feed letterboxed frames, one at a time, to the quantizer's calibration."""

    def __init__(
        self, name: str, frames: Sequence[NDArray[np.uint8]], resolution_wh: tuple[int, int]
    ) -> None:
        self._name = name
        self._inputs = self._letterboxed(frames, resolution_wh)

    @staticmethod
    def _letterboxed(
        frames: Sequence[NDArray[np.uint8]], resolution_wh: tuple[int, int]
    ) -> Iterator[NDArray[np.uint8]]:
        for frame in frames:
            yield Letterbox((frame.shape[1], frame.shape[0]), resolution_wh).apply(frame)[None]

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """Return the next input, None after the last."""
        frame = next(self._inputs, None)
        return None if frame is None else {self._name: frame}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantizer's advice to preprocess: exported graphs are folded and have their shapes."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)

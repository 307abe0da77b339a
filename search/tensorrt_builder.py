"""TensorRT's builder behind `PlanBuilder`: the one module that imports the package `tensorrt` (10 or 11).

Not run on a GPU by this project's tests. Every name is checked against NVIDIA's documentation and stands in
the bindings of version 11.4 (the wheel tensorrt-cu13-bindings; what they bind to is not on PyPI):

    networks     strongly typed: version 10 has to be told (NetworkDefinitionCreationFlag.STRONGLY_TYPED),
                 version 11 knows no other and ignores the flag. So precision is what the ONNX file says, int8
                 by explicit Q/DQ ("Migrating Python Code from TensorRT 10.x to 11.x" in
                 docs.nvidia.com/deeplearning/tensorrt).
    timing       IBuilderConfig.create_timing_cache, set_timing_cache(ignore_mismatch=False): a cache of
                 another version or another kind of GPU is refused, and an empty one takes its place.
    batches      one IOptimizationProfile from 1 to the largest batch, tuned for the largest.
    progress     IProgressMonitor, called from several of the builder's threads.
    plans        for this kind of GPU alone: hardware_compatibility_level stays NONE, as what runs on every
                 kind is slower on each; IHostMemory is read through the buffer protocol.

The compute capability is asked of CUDA's driver library, which is where TensorRT is, and of its first device,
which is where TensorRT builds: nvidia-smi numbers devices in another order and ignores CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from typing import Any  # The package tensorrt is not installed where types are checked.

from search.build_engines import BuildRefused, Built, PlanRequest
from search.run_folder import RunError

WORKSPACE_BYTES = 1 << 30
# CUdevice_attribute in the reference of CUDA's driver API.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


def tensorrt_builder(workspace_bytes: int = WORKSPACE_BYTES) -> TensorRtBuilder:
    """Return the builder for the GPU at hand; raises RunError that says what is missing."""
    try:
        package = importlib.import_module("tensorrt")
    except ImportError as error:
        raise RunError(
            f"no plan is built: the Python package tensorrt cannot be used here ({error}). Install the"
            " release that your Triton has, where the GPU is: pip install 'paretogate[tensorrt]'."
            " BUILD.txt has the commands that do without"
        ) from error
    return TensorRtBuilder(package, device_capability(), workspace_bytes)


def device_capability() -> str:
    """Return the compute capability of CUDA's first device, as "8.9"; raises RunError where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise RunError(f"no plan is built: there is no NVIDIA driver here ({error})") from error

    def ask(function: str, *arguments: object) -> None:
        code = getattr(driver, function)(*arguments)
        if code:
            raise RunError(f"no plan is built: no GPU can be used, {function} gives CUDA's error {code}")

    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    ask("cuInit", 0)
    ask("cuDeviceGet", ctypes.byref(device), 0)
    ask("cuDeviceGetAttribute", ctypes.byref(major), _CAPABILITY_MAJOR, device)
    ask("cuDeviceGetAttribute", ctypes.byref(minor), _CAPABILITY_MINOR, device)
    return f"{major.value}.{minor.value}"


class TensorRtBuilder:
    """Build plans with a `tensorrt` package for the device of a compute capability."""

    def __init__(self, package: Any, compute_capability: str, workspace_bytes: int = WORKSPACE_BYTES) -> None:
        self._trt, self._compute_capability = package, compute_capability
        self._workspace_bytes = workspace_bytes
        # TensorRT takes the first logger of a process for all that come later.
        self._log = _log(package)

    @property
    def version(self) -> str:
        """Return TensorRT's version."""
        return str(self._trt.__version__)

    @property
    def compute_capability(self) -> str:
        """Return the GPU's, as "8.9"."""
        return self._compute_capability

    def build(self, request: PlanRequest, note: Callable[[str], None]) -> Built:
        """Build one plan; `note` hears the phases, from any thread.

        Raises BuildRefused, or RunError where TensorRT does not start at all.
        """
        trt = self._trt
        log = self._log
        log.errors.clear()
        try:
            builder = trt.Builder(log)
        except TypeError as error:  # what the bindings make of a builder that does not come about
            said = "; ".join(log.errors) or str(error)
            raise RunError(f"no plan is built: TensorRT does not start on this GPU: {said}") from error
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        if not parser.parse(request.onnx):
            reasons = [parser.get_error(index).desc() for index in range(parser.num_errors)]
            raise BuildRefused("; ".join(reasons or log.errors) or "the ONNX file cannot be parsed")
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, self._workspace_bytes)
        if request.batch > 1:
            profile = builder.create_optimization_profile()
            one, most = (1, *request.frame_shape), (request.batch, *request.frame_shape)
            profile.set_shape(request.name, one, most, most)
            config.add_optimization_profile(profile)
        cache = config.create_timing_cache(request.timing)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        monitor = _monitor(trt, note)  # has to outlive the build
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise BuildRefused("; ".join(log.errors) or "no plan came out, and no reason was given")
        return Built(bytes(plan), bytes(config.get_timing_cache().serialize()))


def _log(trt: Any) -> Any:
    """Return a logger that keeps the messages of errors: a build that fails returns none."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: object, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(message)

    return Log()


def _monitor(trt: Any, note: Callable[[str], None]) -> Any:
    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            del parent_phase
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            note(f"{phase_name} {step + 1} of {self._steps.get(phase_name, step + 1)}")
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()

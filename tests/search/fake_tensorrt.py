"""A package with the names of `tensorrt` that the builder uses, after NVIDIA's Python API reference.

It keeps what it was told. A "plan" is the ONNX file behind a few words; a timing cache is b"timing-" and
how many builds have added to it, and is refused when it does not begin so, as TensorRT refuses a cache of
another version.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum

REFUSED_BY_PARSER, REFUSED_BY_BUILDER = b"cannot be parsed", b"cannot be built"

__version__ = "11.4.1"


class NetworkDefinitionCreationFlag(IntEnum):
    """Flags by their number, to be shifted."""

    STRONGLY_TYPED = 1


class MemoryPoolType(Enum):
    """The one pool that has a limit here."""

    WORKSPACE = 0


class ILogger:
    """The base of loggers; whoever forgets to call its initializer has no `made`."""

    class Severity(Enum):
        """Those that exist."""

        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    def __init__(self) -> None:
        self.made = True

    def log(self, severity: Severity, message: str) -> None:
        """Take a message."""
        raise NotImplementedError


class IProgressMonitor:
    """The base of monitors."""

    def __init__(self) -> None:
        self.made = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Hear that a phase begins."""
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Hear that a step is done; False ends the build."""
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        """Hear that a phase is over."""
        raise NotImplementedError


@dataclass
class TimingCache:
    """A timing cache."""

    content: bytes

    def serialize(self) -> memoryview:
        """Return what the next build begins with."""
        return memoryview(self.content)


@dataclass
class OptimizationProfile:
    """The shapes of each input: smallest, tuned for, largest."""

    shapes: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)

    def set_shape(
        self, name: str, least: tuple[int, ...], best: tuple[int, ...], most: tuple[int, ...]
    ) -> None:
        """Take the shapes of an input."""
        self.shapes[name] = (least, best, most)


@dataclass
class Config:
    """A builder's configuration."""

    pools: dict[MemoryPoolType, int] = field(default_factory=dict)
    profiles: list[OptimizationProfile] = field(default_factory=list)
    cache: TimingCache | None = None
    progress_monitor: IProgressMonitor | None = None

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        """Take the limit of a pool, in bytes."""
        self.pools[pool] = size

    def add_optimization_profile(self, profile: OptimizationProfile) -> int:
        """Take a profile."""
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, content: bytes) -> TimingCache:
        """Make a cache of what was serialized."""
        return TimingCache(content)

    def set_timing_cache(self, cache: TimingCache, *, ignore_mismatch: bool) -> bool:
        """Take a cache that fits."""
        assert not ignore_mismatch
        if cache.content and not cache.content.startswith(b"timing-"):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        """Return the cache."""
        return self.cache


@dataclass
class Network:
    """What was parsed into it, and the flags that it was made with."""

    flags: int
    onnx: bytes = b""


class ParserError:
    """An error of the parser."""

    def desc(self) -> str:
        """Return what is wrong."""
        return "In node 3 (importConv): INVALID_NODE"


class OnnxParser:
    """Reads everything but REFUSED_BY_PARSER."""

    def __init__(self, network: Network, logger: ILogger) -> None:
        assert logger.made
        self._network = network
        self.num_errors = 0

    def parse(self, content: bytes) -> bool:
        """Read a file."""
        self._network.onnx = content
        self.num_errors = int(content == REFUSED_BY_PARSER)
        return not self.num_errors

    def get_error(self, index: int) -> ParserError:
        """Return an error."""
        assert index < self.num_errors
        return ParserError()


class Builder:
    """Builds everything but REFUSED_BY_BUILDER; `configs` are those of all builders, in order."""

    configs: list[Config] = []  # noqa: RUF012  # as long as the fake package lives, which is one test

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int) -> Network:
        """Make an empty network."""
        assert flags == 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return Network(flags)

    def create_builder_config(self) -> Config:
        """Make a configuration."""
        self.configs.append(Config())
        return self.configs[-1]

    def create_optimization_profile(self) -> OptimizationProfile:
        """Make an empty profile."""
        return OptimizationProfile()

    def build_serialized_network(self, network: Network, config: Config) -> memoryview | None:
        """Build, telling the monitor."""
        assert config.cache is not None
        assert config.progress_monitor is not None
        assert config.progress_monitor.made
        self._logger.log(ILogger.Severity.WARNING, "nothing that matters")
        if network.onnx == REFUSED_BY_BUILDER:
            self._logger.log(ILogger.Severity.ERROR, "no implementation for node 7")
            return None
        monitor = config.progress_monitor
        monitor.phase_start("Building Engine", None, 2)
        assert monitor.step_complete("Building Engine", 0)
        assert monitor.step_complete("Building Engine", 1)
        monitor.phase_finish("Building Engine")
        done = int(config.cache.content.removeprefix(b"timing-") or b"0")
        config.cache = TimingCache(b"timing-%d" % (done + 1))
        return memoryview(b"plan of " + network.onnx)

"""The one composition root: from a configuration to a gateway that serves, wired by hand."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
from prometheus_client import disable_created_metrics
from starlette.routing import Route

from model_repo import publish
from model_repo.frame import FrameLimits
from model_repo.latency import Environment
from model_repo.publish import Repository
from model_repo.runtime.engine import Engine
from model_repo.runtime.select import default_runtime, environment, make_engine
from router.access import Access, KeysFile
from router.admin import make_admin_app
from router.admission import Limiter, LittleLimit
from router.arm_metrics import ArmMetrics
from router.arms import CHALLENGER, CHAMPION, ArmName
from router.arrangement import Arrangement, arrange, possible, user_cache
from router.budget import Budgets, Clock, MonotonicClock
from router.challenge import ILL, Challenge
from router.challenge_admin import challenge_routes
from router.config import Config
from router.console import console_routes
from router.console_view import ConsoleView, Served
from router.controller import Controller, Rung
from router.documents import PointsDocument
from router.drift import DistributionDrift, EscalationRate, LatencyAlarm, SlowDown
from router.encoding import describe_points
from router.endpoints import Endpoints
from router.engines import (
    EngineHealth,
    Fleet,
    StartupError,
    difference,
    ladder,
    load_fleet,
    measure_fleet,
    warm,
)
from router.execution import Executor
from router.grpc_api import DetectionServicer
from router.http_api import Views, make_app, release
from router.http_body import Bodies, BodyLimits
from router.http_detect import DetectEndpoint
from router.http_frames import FramesEndpoint
from router.http_reply import Asgi
from router.keys import KeysError
from router.keys import read as read_keys
from router.loaded import LoadedSets
from router.metrics import Metrics
from router.oip import Models
from router.oip_grpc import InferenceServicer
from router.oip_http import make_oip_app
from router.planner import Costs, Planner
from router.promotion import Promotion
from router.recent import RecentFrames
from router.reload import Reloader, Steps
from router.service import Service
from router.serving import Policies, Serving
from router.stream import Streams
from router.stream_socket import StreamSocket
from router.tracing import NoTracing, OpenTelemetry, Tracing
from router.workers import WorkerPool

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gateway:
    """A wired gateway: the service and both edges over it."""

    service: Service
    app: Asgi
    endpoint: DetectEndpoint
    streams: Streams
    recent: RecentFrames | None
    servicer: DetectionServicer
    inference: InferenceServicer
    pool: WorkerPool
    engine: Engine
    metrics: Metrics
    reloaders: tuple[Reloader, ...]
    challenge: Challenge | None
    admin: Asgi
    tracing: Tracing
    access: Access | None
    keys_file: KeysFile | None

    @property
    def reloader(self) -> Reloader:
        """Return what watches the champion's manifest."""
        return self.reloaders[0]

    def close(self) -> None:
        """Stop the workers, let go of the engine, and send the last traces."""
        self.pool.close()
        self.engine.close()
        self.tracing.close()


def build(config: Config, *, engine: Engine | None = None, clock: Clock | None = None) -> Gateway:
    """Wire a gateway from its configuration; blocking, for models are loaded and perhaps measured.

    engine and clock are injected by tests. Raises RepositoryError or ManifestError on a bad repository,
    StartupError when it cannot be served here, EngineError when a model does not run.
    """
    clock = clock or MonotonicClock()
    tracing = _tracing(config)
    # Process-wide: a second series per counter, of when it was made, helps nobody.
    disable_created_metrics()  # type: ignore[no-untyped-call]  # has no annotations
    metrics = Metrics(tracing)
    access, keys_file = _access(config, clock, metrics)
    repository = publish.read(config.repo)
    arrangement = _arrange(config, repository, given=engine is not None)
    # The workers are the parallelism; OpenCV's own threads would only take their cores.
    cv2.setNumThreads(1)
    if engine is None:
        engine = _engine(config, arrangement)
    pool = WorkerPool(arrangement.workers)
    measured = partial(_measured, engine=engine, config=config, threads=arrangement.threads)
    loaded, health = LoadedSets(engine.unload), EngineHealth()
    load = partial(
        _serving, engine=engine, config=config, clock=clock, pool=pool, measured=measured, loaded=loaded
    )
    prepare = partial(load, arm=CHAMPION, health=lambda: health)
    # Another challenger is not to pay for what one before it did.
    prepare_challenger = partial(load, arm=CHALLENGER, health=partial(EngineHealth, ill=ILL))
    challenger = None
    try:
        serving = prepare(repository, None)
        if config.challenger is not None:
            challenger = prepare_challenger(_alike(serving, publish.read(config.challenger)), None)
    except BaseException:
        pool.close()
        engine.close()
        raise
    limit = LittleLimit(
        pool.size,
        service_ms=serving.fleet.mean_ms(serving.frontier.decode)[serving.home.plan.name],
        max_wait_ms=config.max_wait_ms,
        max_queue=config.max_queue,
    )
    challenge = None
    if challenger is not None:
        challenge = Challenge(
            serving, challenger, pool, ArmMetrics(metrics.registry), clock,
            mode=config.challenger_mode, share=config.challenger_share,
        )  # fmt: skip
    frame_limits = FrameLimits(config.max_bytes, config.max_pixels)
    recent = RecentFrames(clock, config.console_frames, frame_limits) if config.console_frames else None
    service = Service(
        serving,
        pool,
        Limiter(limit, pool.size),
        metrics,
        clock,
        challenge=challenge,
        recent=recent,
        min_score=config.min_score,
        shadow_share=config.shadow_share,
    )
    metrics.watch(service.state)
    if isinstance(engine, Endpoints):
        metrics.watch_endpoints(engine.states)
    _show(metrics, engine, serving)

    def took_over(champion: Serving) -> None:
        _show(metrics, engine, champion)
        if challenge is not None:
            challenge.meet(champion)

    async def exposition() -> bytes:
        service.learn()  # every answer before this scrape is in it
        return await asyncio.to_thread(metrics.render)

    views = Views(
        points=lambda: _points(service, engine),
        alive=lambda: service.alive,
        ready=lambda: service.ready,
    )
    bodies = Bodies(BodyLimits(config.max_bytes, config.max_buffered_bytes, config.body_timeout_s))
    budgets = Budgets(config.default_budget_ms, config.max_budget_ms)
    browsers = bool(config.cors_origin)
    endpoint = DetectEndpoint(service, bodies, budgets, metrics, clock, access, browsers=browsers)
    frames = FramesEndpoint(service, bodies, budgets, metrics, clock, access)
    streams = Streams(
        service, pool, budgets, metrics, clock, frame_limits, access,
        most=config.max_streams, idle_s=config.stream_idle_s,
    )  # fmt: skip
    servicer = DetectionServicer(service, streams, budgets, metrics, clock, access)
    models = Models(service, release(), config.max_pixels)
    oip = InferenceServicer(service, models, budgets, metrics, clock, access)
    oip_app = make_oip_app(service, models, bodies, budgets, metrics, clock, access)
    watch = partial(Reloader, metrics=metrics, clock=clock, turn=asyncio.Lock(), poll_s=config.reload_s)
    reloaders = [watch(config.repo, service, Steps(prepare, took_over, loaded.release))]
    routes: Sequence[Route] = ()
    if challenge is not None and config.challenger is not None:
        steps = Steps(
            lambda published, before: prepare_challenger(_alike(service.serving, published), before),
            lambda _: challenge.meet(),
            loaded.release,
        )
        reloaders.append(watch(config.challenger, challenge, steps))
        promotion = Promotion(config.repo, service, challenge, reloaders[0])
        routes = challenge_routes(service, challenge, promotion)
    view = ConsoleView(
        service, metrics.registry, clock, Served(release(), engine.runtime, engine.version), recent
    )
    return Gateway(
        service,
        make_app(
            endpoint,
            frames,
            StreamSocket(streams, config.cors_origin),
            oip_app,
            views,
            config.max_bytes,
            access,
            config.cors_origin,
            console_routes(view, access),
        ),
        endpoint,
        streams,
        recent,
        servicer,
        oip,
        pool,
        engine,
        metrics,
        tuple(reloaders),
        challenge,
        make_admin_app(service, exposition, access, routes),
        tracing,
        access,
        keys_file,
    )


def _access(config: Config, clock: Clock, metrics: Metrics) -> tuple[Access | None, KeysFile | None]:
    if config.keys is None:
        return None, None
    try:
        access = Access(read_keys(config.keys), clock, metrics)
    except KeysError as error:
        raise StartupError(f"--keys: {error}") from error
    return access, KeysFile(config.keys, access, poll_s=config.reload_s)


def _tracing(config: Config) -> Tracing:
    if config.otlp_endpoint is None:
        return NoTracing()
    return OpenTelemetry.exporting(config.otlp_endpoint, config.trace_share, release())


def _arrange(config: Config, repository: Repository, *, given: bool) -> Arrangement:
    here = environment()
    choices = possible(here.cores, threads=config.threads, workers=config.workers)
    # Whose cores an engine uses that is given, or is Triton, is not ours to say.
    if given or config.runtime == "triton" or config.measure == "never":
        return choices[0]
    return arrange(
        repository,
        config.operating_point,
        config.runtime or default_runtime(),
        choices,
        partial(_engine, config),
        here,
        config.cache or user_cache(),
    )


def _engine(config: Config, arrangement: Arrangement) -> Engine:
    workers = arrangement.workers
    if config.runtime != "triton":
        return make_engine(
            config.runtime,
            threads=arrangement.threads,
            parallelism=workers,
            engine_cache=(config.cache or user_cache()) / "engines",
        )
    return Endpoints(
        {
            url: make_engine(
                "triton", parallelism=workers, url=url, shared_memory=config.triton_shared_memory
            )
            for url in config.triton_urls
        }
    )


def _serving(
    repository: Repository,
    before: Serving | None,
    *,
    engine: Engine,
    config: Config,
    clock: Clock,
    pool: WorkerPool,
    measured: Callable[[Fleet], Fleet],
    loaded: LoadedSets,
    arm: ArmName,
    health: Callable[[], EngineHealth],
) -> Serving:
    """Load a set beside those in force, warm it, measure it where need be, and wire its policies.

    before: the set whose place it is to take. Raises StartupError or EngineError; what was loaded for it
    alone is then unloaded.
    """
    frontier = repository.frontier
    loaded.check(frontier)
    there = loaded.folders
    fleet = load_fleet(repository, engine, triton_runs=config.triton_runs, loaded=there)
    try:
        _check_point(fleet, config.operating_point)
        warm(fleet, engine)
        fleet = measured(fleet)
    except BaseException:
        for variant in fleet.variants.values():
            if variant.folder not in there:
                engine.unload(variant)
        raise
    mean_ms = fleet.mean_ms(frontier.decode)
    cost_ms = {name: ms + config.answer_ms for name, ms in mean_ms.items()}
    rungs = ladder(fleet, config.operating_point, cost_ms)
    slow_down = SlowDown(clock)
    costs = Costs(frontier.decode, fleet.profiles, slow_down, answer_ms=config.answer_ms)
    policies = Policies(
        planner=Planner(
            fleet.plans,
            mean_ms,
            costs,
            fleet.mean_ms(frontier.decode, pool.size),
            alone=tuple(fleet.alone.values()),
        ),
        controller=Controller(
            [Rung(rung.name, cost_ms[rung.plan.name]) for rung in rungs],
            config.operating_point,
            pool.size,
            at=None if before is None else before.policies.controller.point,
        ),
        slow_down=slow_down,
        alarm=LatencyAlarm(),
        escalations=EscalationRate(),
        drift=DistributionDrift(
            frontier.references,
            fleet.plans,
            fleet.classes,
            clock,
            interval_s=config.drift_interval_s,
        ),
    )
    executor = Executor(
        fleet,
        engine,
        policies.planner,
        clock,
        FrameLimits(config.max_bytes, config.max_pixels),
        lambda: pool.busy,
        pool.queued,
        policies.drift.due,
        policies.drift.voids,
        workers=pool.size,
        engine_timeout_s=config.engine_timeout_s,
        arm=None if config.challenger is None else arm,
    )
    serving = Serving(repository, fleet, executor, policies, rungs, health(), arm)
    loaded.hold(serving)
    return serving


def _alike(champion: Serving, repository: Repository) -> Repository:
    """Return a challenger's repository; raises StartupError where its classes are not the champion's."""
    classes = repository.frontier.dataset.classes
    if classes != champion.fleet.classes:
        raise StartupError(
            f"the challenger {repository.root} has the classes {', '.join(classes)}, the champion"
            f" {champion.repository.root} has {', '.join(champion.fleet.classes)}; only sets of the"
            " same classes, in the same order, can be compared"
        )
    return repository


def _show(metrics: Metrics, engine: Engine, serving: Serving) -> None:
    """Tell Prometheus what is served from now on."""
    metrics.publish(
        serving.fleet.plans,
        [(point.name, point.plan) for point in serving.fleet.points],
        version=release(),
        runtime=engine.runtime,
        runtime_version=engine.version,
        manifest=serving.repository.digest[:12],
        profiles="measured here" if serving.fleet.measured_here else "published",
    )


def _points(service: Service, engine: Engine) -> PointsDocument:
    serving = service.serving
    return describe_points(
        serving.frontier,
        serving.fleet,
        runtime=engine.runtime,
        runtime_version=engine.version,
        manifest=serving.repository.digest,
        in_force=service.point_in_force,
    )


def _measured(fleet: Fleet, *, engine: Engine, config: Config, threads: int) -> Fleet:
    """Return the fleet under profiles that hold here, and say where they come from."""
    here = environment(engine.device)
    reason = _elsewhere(fleet, engine, here, threads)
    if config.measure == "never" or (config.measure == "auto" and reason is None):
        if reason is not None:
            _LOG.warning("published latencies are used although %s", reason)
        return fleet
    _LOG.warning("measuring %d variants: %s", len(fleet.variants), reason or "asked for by --measure always")
    measured = measure_fleet(fleet, engine, here, threads)
    for name, profiles in measured.profiles.items():
        published = min(fleet.profiles[name], key=lambda profile: profile.concurrency)
        _LOG.info("%s: %.2f ms here, %.2f ms as published", name, profiles[0].mean_ms, published.mean_ms)
    return measured


def _elsewhere(fleet: Fleet, engine: Engine, here: Environment, threads: int) -> str | None:
    reasons = (
        difference(profile, engine, here, threads)
        for profiles in fleet.profiles.values()
        for profile in profiles
    )
    return next((reason for reason in reasons if reason is not None), None)


def _check_point(fleet: Fleet, name: str) -> None:
    known = [point.name for point in fleet.points]
    if name not in known:
        raise StartupError(f"no operating point {name!r} is published; known are {', '.join(known)}")

"""One published set as it is served: everything that a change of the manifest replaces at once.

A request takes the set that is in force when it arrives and stays with it to the end, whatever takes over
meanwhile: plan, thresholds, alignments and models are never mixed from two sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from model_repo.frontier import Frontier
from model_repo.publish import Repository
from router.arms import ArmName
from router.controller import Controller
from router.drift import DistributionDrift, EscalationRate, LatencyAlarm, SlowDown
from router.engines import EngineHealth, Fleet, ServedPoint, published_accuracy
from router.errors import Forbidden, UnknownModel, UnknownOperatingPoint, UnmeetableAccuracy
from router.execution import Answer, Executor, StageRun, Worked
from router.planner import DECODE, Planner
from router.wishes import ACCURACY_HEADER, Wishes


@dataclass(frozen=True, slots=True)
class Policies:
    """What decides and learns about one set's plans and variants."""

    planner: Planner
    controller: Controller
    slow_down: SlowDown
    alarm: LatencyAlarm
    escalations: EscalationRate
    drift: DistributionDrift


@dataclass(slots=True, eq=False)
class Serving:
    """A set with its policies and its way of running.

    rungs: what load may put in force, cheapest first. health: of the engine, as this set's requests find it.
    inside: counts the requests that hold this set.
    """

    repository: Repository
    fleet: Fleet
    executor: Executor
    policies: Policies
    rungs: tuple[ServedPoint, ...]
    health: EngineHealth
    arm: ArmName
    inside: int = field(default=0, init=False)
    _points: Mapping[str, ServedPoint] = field(init=False)
    _rungs: Mapping[str, ServedPoint] = field(init=False)
    _below: Mapping[str, tuple[ServedPoint, ...]] = field(init=False)
    _models: Mapping[str, ServedPoint] = field(init=False)
    _baselines: Mapping[str, tuple[tuple[int, float, float], ...]] = field(init=False)

    def __post_init__(self) -> None:
        self._points = {point.name: point for point in self.fleet.points}
        self._rungs = {rung.name: rung for rung in self.rungs}
        self._below = {rung.name: self.rungs[:number][::-1] for number, rung in enumerate(self.rungs)}
        self._models = {name: ServedPoint(name, plan, plan.name) for name, plan in self.fleet.alone.items()}
        self._baselines = {
            name: tuple(
                (profile.concurrency, profile.mean_ms, profile.quantile_ms(0.5))
                for profile in sorted(profiles, key=lambda profile: profile.concurrency)
            )
            for name, profiles in self.fleet.profiles.items()
        }

    @property
    def frontier(self) -> Frontier:
        """Return the manifest."""
        return self.repository.frontier

    @property
    def home(self) -> ServedPoint:
        """Return the operating point of calm times."""
        return self._points[self.policies.controller.home]

    def model(self, variant: str) -> ServedPoint:
        """Return a variant by itself as a point of its name; raises UnknownModel when it is not served."""
        point = self._models.get(variant)
        if point is None:
            raise UnknownModel(f"{variant[:80]!r} is none of {', '.join(self._models)}")
        return point

    def point(self, name: str) -> ServedPoint:
        """Return an operating point as it is served; raises UnknownOperatingPoint."""
        point = self._points.get(name)
        if point is None:
            raise UnknownOperatingPoint(name, tuple(self._points))
        return point

    def in_force(self, name: str) -> ServedPoint:
        """Return what is in force by its name: an operating point, or a plan that load has put there."""
        return self._points.get(name) or self._rungs[name]

    def wished(self, wishes: Wishes, in_force: str) -> ServedPoint:
        """Return the point that a request names, or the one in force; with a least accuracy, the one in force
        where it is accurate enough, else the cheapest that is.

        Where the sender's key is not for the one in force, the costliest below it that the key is for takes
        its place, or the cheapest that it is for: load must not lock anybody out. Raises UnknownModel,
        UnknownOperatingPoint, UnmeetableAccuracy, which names the most accurate, or Forbidden, when no such
        point is published.
        """
        if wishes.model is not None:
            return self.model(wishes.model)
        if wishes.operating_point is not None:
            return self.point(wishes.operating_point)
        point = self.in_force(in_force)
        points = self.fleet.points
        if wishes.allowed is not None:
            points = self._allowed(wishes.allowed)
            point = point if point.name in wishes.allowed else _not_above(points, point)
        if wishes.min_map is None or _map(point) >= wishes.min_map:
            return point
        enough = [other for other in points if _map(other) >= wishes.min_map]
        if not enough:
            best = max(points, key=_map)
            raise UnmeetableAccuracy(
                f"{ACCURACY_HEADER}: {wishes.min_map} is asked for; the most accurate operating point is"
                f" {best.name} with {_map(best):.4f}"
            )
        return min(enough, key=lambda other: other.plan.mean_ms)

    def grants(self, wishes: Wishes) -> bool:
        """Return whether this set has what a request wants, and a point that its sender's key is for."""
        if wishes.allowed is not None and wishes.allowed.isdisjoint(self._points):
            return False
        if wishes.model is not None:
            return wishes.model in self._models
        if wishes.operating_point is not None:
            return wishes.operating_point in self._points
        points = [
            point for point in self.fleet.points if wishes.allowed is None or point.name in wishes.allowed
        ]
        return wishes.min_map is None or any(_map(point) >= wishes.min_map for point in points)

    def publishes(self, name: str) -> bool:
        """Return whether there is an operating point of this name."""
        return name in self._points

    def arrived(self, now_ns: int, waiting: int) -> None:
        """Let load decide which operating point is in force, at an arrival with `waiting` requests queued."""
        first = self.home.plan.stages[0].variant
        policies = self.policies
        policies.controller.arrived(now_ns, waiting, policies.slow_down.factor(first))

    def learn(self, worked: Worked, answer: Answer) -> None:
        """Let the policies learn from what a worker did."""
        policies = self.policies
        policies.slow_down.observe(DECODE, answer.decode_ms, self.frontier.decode.mean_ms)
        for stage in answer.stages:
            mean_ms, median_ms = self.baseline_ms(stage)
            policies.slow_down.observe(stage.variant, stage.latency_ms, mean_ms)
            policies.alarm.observe(stage.variant, stage.latency_ms, median_ms)
        if worked.observed is not None:
            policies.drift.observe(answer.stages[0].variant, worked.observed)
        if answer.escalated is not None:
            policies.drift.decided(answer.plan.name, answer.escalated)
            policies.escalations.observe(answer.plan.name, answer.escalated)

    def cheaper(self, point: ServedPoint, wishes: Wishes) -> tuple[ServedPoint, ...]:
        """Return the rungs below a point, costliest first; those alone that reach a least accuracy, if there
        is one, and that the sender's key is for."""
        below, min_map, allowed = self._below.get(point.name, ()), wishes.min_map, wishes.allowed
        if min_map is not None:
            below = tuple(rung for rung in below if _map(rung) >= min_map)
        return below if allowed is None else tuple(rung for rung in below if rung.name in allowed)

    def _allowed(self, names: frozenset[str]) -> tuple[ServedPoint, ...]:
        """Return the points of these names; raises Forbidden when there are none."""
        points = tuple(point for point in self.fleet.points if point.name in names)
        if not points:
            raise Forbidden(f"the API key is for {', '.join(sorted(names))} alone, which is not published")
        return points

    def baseline_ms(self, stage: StageRun) -> tuple[float, float]:
        """Return the mean and the median that a stage's profile says for as many workers as were busy."""
        baselines = self._baselines[stage.variant]
        _, mean_ms, median_ms = next((b for b in baselines if b[0] >= stage.busy), baselines[-1])
        return mean_ms, median_ms


def _not_above(points: Sequence[ServedPoint], point: ServedPoint) -> ServedPoint:
    """Return the costliest of some points that costs no more than another, or the cheapest of them."""
    cheapest_first = sorted(points, key=lambda each: each.plan.mean_ms)
    below = [each for each in cheapest_first if each.plan.mean_ms <= point.plan.mean_ms]
    return below[-1] if below else cheapest_first[0]


def _map(point: ServedPoint) -> float:
    accuracy = published_accuracy(point.plan)
    return 0.0 if accuracy is None else accuracy.map

"""Changes that callers should not notice, or only in accuracy: load that comes and goes, sets that are
republished.

Manifests are edited as the JSON documents that they are: this stands outside of the gateway, as a user does.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np

from loadtest.bench_load import LIMITS, Capacity, find_capacity, load, served
from loadtest.frames import Frame
from loadtest.process import HOST, free_port
from loadtest.runner import Request, run_open_loop
from loadtest.sample import Sample
from loadtest.schedule import Arrivals, arrivals_ns
from loadtest.verdict import Conditions, Verdict, judge

MANIFEST = "frontier.json"
Document = dict[str, Any]  # Any: a manifest as JSON

LEAST_TIMES_ATTAINMENT = 2.0
_ADAPTIVE = "adaptive"
_BASE, _BURST = 0.6, 5.0
_PHASES_S = (5.0, 10.0, 5.0)
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one way to serve made of the same requests, round by round: the share in time, and the mAP with
    late and refused frames as empty."""

    name: str
    attainments: tuple[float, ...]
    effective_maps: tuple[float, ...]

    @property
    def attainment(self) -> float:
        """Return the median share in time."""
        return median(self.attainments)

    @property
    def effective_map(self) -> float:
        """Return the median mAP."""
        return median(self.effective_maps)

    def ahead_of(self, other: Attempt) -> float:
        """Return by how much the mAP is higher than another's: the median over rounds of the difference."""
        return median(a - b for a, b in zip(self.effective_maps, other.effective_maps, strict=True))

    def times(self, other: Attempt) -> float:
        """Return how many times as much is in time as with another: the median over rounds of the ratio."""
        pairs = zip(self.attainments, other.attainments, strict=True)
        return median(a / b if b > 0 else math.inf for a, b in pairs)


@dataclass(frozen=True, slots=True)
class AdaptationResult:
    """The gateway as it adapts, and the same gateway with one single model each, cheapest first."""

    capacity: Capacity
    adaptive: Attempt
    singles: tuple[Attempt, ...]

    @property
    def holds(self) -> bool:
        """Whether it is more accurate than every single model, and much more available than the largest."""
        return (
            all(self.adaptive.ahead_of(single) > 0 for single in self.singles)
            and self.adaptive.times(self.singles[-1]) >= LEAST_TIMES_ATTAINMENT
        )


async def adaptation(
    repo: Path, frames: Sequence[Frame], progress: Callable[[str], None], *, seed: int = 0
) -> AdaptationResult:
    """Send bursts of five times a calm rate, the same to the adaptive gateway and to every single model.

    The calm rate is 60 % of what `balanced` holds; the budget of every request is what counted as in time
    then. All gateways run from the beginning and are asked in turn, round by round, so that what the machine
    does meanwhile falls on all of them. Raises ServerError.
    """
    contents = [frame.content for frame in frames]
    document: Document = json.loads((repo / MANIFEST).read_text())
    straight = [straight_to(document, variant) for variant in document["variants"]]
    async with AsyncExitStack() as running:
        gateway = await running.enter_async_context(served(repo))
        capacity = await find_capacity(gateway, contents, "balanced", seed=seed)
        classes = (await gateway.target.describe()).classes
        truths = tuple(frame.truth(classes) for frame in frames)
        ways = {_ADAPTIVE: gateway.target}
        for plan in sorted(straight, key=lambda plan: plan["mean_ms"]):
            copy = Path(running.enter_context(TemporaryDirectory(prefix="paretogate-bench-"))) / "repo"
            shutil.copytree(repo, copy)
            write_manifest(copy, with_only(document, plan))
            ways[plan["name"]] = (await running.enter_async_context(served(copy))).target
        conditions = Conditions(budget_ms=capacity.limit_ms)
        rounds: dict[str, list[Verdict]] = {name: [] for name in ways}
        for number in range(_ROUNDS):
            times = _bursts(_BASE * capacity.rate_hz, seed + number)
            progress(f"round {number + 1} of {_ROUNDS}: {len(times)} requests to each of {len(ways)}")
            for name, target in list(ways.items())[:: 1 if number % 2 == 0 else -1]:
                request = Request(budget_ms=capacity.limit_ms)
                samples = await run_open_loop(target, contents, times, request, LIMITS)
                verdict = judge(samples, conditions, truths, classes)
                rounds[name].append(verdict)
                delay = verdict.issue_delay
                if delay is not None and delay.p99_ms > conditions.issue_delay_ms:
                    progress(f"{name}: the generator fell behind, p99 {delay.p99_ms:.1f} ms")
    adaptive, *singles = (_attempt(name, verdicts) for name, verdicts in rounds.items())
    return AdaptationResult(capacity, adaptive, tuple(singles))


def _bursts(base_hz: float, seed: int) -> Arrivals:
    """Return arrivals that alternate between a calm rate and five times as much."""
    parts, begins_ns = [], 0
    for number, seconds in enumerate(_PHASES_S):
        rate_hz = base_hz * (_BURST if number % 2 else 1.0)
        rng = np.random.default_rng([seed, 0xB125, number])
        parts.append(arrivals_ns("poisson", rate_hz, seconds, rng) + begins_ns)
        begins_ns += round(seconds * 1e9)
    return np.concatenate(parts)


def _attempt(name: str, verdicts: Sequence[Verdict]) -> Attempt:
    return Attempt(
        name,
        tuple(verdict.attainment for verdict in verdicts),
        tuple(0.0 if verdict.effective is None else verdict.effective.map for verdict in verdicts),
    )


def straight_to(document: Document, variant: Document) -> Document:
    """Return the plan that asks one variant alone, on the runtime of the published plans."""
    like = document["plans"][0]
    measured = next(one for one in variant["measurements"] if one["runtime"] == like["runtime"])
    alone = min(measured["latency"], key=lambda profile: profile["concurrency"])["histogram"]
    cost_ms = document["decode"]["mean_ms"] + alone["mean_ms"]
    return {
        "name": variant["name"],
        "stages": [{"variant": variant["name"], "rule": None}],
        "fusion": "replace",
        "runtime": like["runtime"],
        "engines": [like["runtime"]],
        "accuracy": [
            {key: row[key] for key in ("split", "images", "map", "map50")} | {"escalated": []}
            for row in measured["accuracy"]
            if row["split"] != "valid"
        ],
        "mean_ms": cost_ms,
        "p99_ms": 2.0 * cost_ms,  # shown to users; decisions are taken on the profiles
        "certificate": {"reason": "one stage"},
    }


def with_only(document: Document, plan: Document) -> Document:
    """Return a manifest that publishes one plan, under every operating point's name."""
    points = [{**point, "plan": plan["name"]} for point in document["operating_points"]]
    return {**document, "plans": [plan], "operating_points": points}


def write_manifest(repo: Path, document: Document) -> None:
    """Replace a repository's manifest at once, as publishing does."""
    temporary = repo / f".{MANIFEST}-bench"
    temporary.write_text(json.dumps(document))
    os.replace(temporary, repo / MANIFEST)


@dataclass(frozen=True, slots=True)
class RepublishResult:
    """Requests during changes of the published set: how many there were of each, and outcomes, with what is
    known of those that failed."""

    requests: int
    changes: int
    failed: int
    outcomes: dict[str, int]

    @property
    def holds(self) -> bool:
        """Whether sets really changed and no request failed."""
        return self.failed == 0 and self.changes >= _LEAST_CHANGES


_EVERY_S = 5.0
_LEAST_CHANGES = 10
_SHARE = 0.5
_FAILURES = frozenset({"failed", "timed_out", "rejected", "unsent"})


async def republish(
    repo: Path, frames: Sequence[bytes], *, seconds: float = 120.0, seed: int = 0
) -> RepublishResult:
    """Replace the manifest every 5 s, with and without the more expensive half of the models, under load."""
    document: Document = json.loads((repo / MANIFEST).read_text())
    with TemporaryDirectory(prefix="paretogate-bench-") as scratch:
        copy = Path(scratch) / "repo"
        shutil.copytree(repo, copy)
        admin_port = free_port()
        async with served(copy, "--reload-s", "0.5", "--admin-port", str(admin_port)) as gateway:
            capacity = await find_capacity(gateway, frames, "balanced", seed=seed)
            changing = asyncio.create_task(_change(copy, [_cheaper_half(document), document]))
            samples = await load(
                gateway.target, frames, _SHARE * capacity.rate_hz, seconds, Request(), seed=seed + 1
            )
            changing.cancel()
            async with httpx.AsyncClient() as http:
                exposition = (await http.get(f"http://{HOST}:{admin_port}/metrics")).text
    outcomes: dict[str, int] = {}
    for sample in samples:
        reply = sample.reply
        said = f"{reply.outcome} ({reply.detail})" if reply.outcome in _FAILURES else reply.outcome
        outcomes[said] = outcomes.get(said, 0) + 1
    return RepublishResult(len(samples), _taken(exposition), _failed(samples), outcomes)


async def _change(repo: Path, documents: Sequence[Document]) -> None:
    number = 0
    while True:
        await asyncio.sleep(_EVERY_S)
        write_manifest(repo, documents[number % len(documents)])
        number += 1


def _cheaper_half(document: Document) -> Document:
    """Return a manifest of the plans that ask only the cheaper half of the models."""
    alone = [plan for plan in document["plans"] if len(plan["stages"]) == 1]
    order = [p["stages"][0]["variant"] for p in sorted(alone, key=lambda plan: plan["mean_ms"])]
    kept = set(order[: max(len(order) // 2, 1)])
    plans = [plan for plan in document["plans"] if {s["variant"] for s in plan["stages"]} <= kept]
    names = {plan["name"] for plan in plans}
    best = max(plans, key=lambda plan: plan["mean_ms"])["name"]
    return {
        **document,
        "plans": plans,
        "operating_points": [
            point if point["plan"] in names else {**point, "plan": best}
            for point in document["operating_points"]
        ],
    }


def _taken(exposition: str) -> int:
    line = next(
        line
        for line in exposition.splitlines()
        if line.startswith('paretogate_reloads_total{result="taken"}')
    )
    return round(float(line.rsplit(" ", 1)[1]))


def _failed(samples: Sequence[Sample]) -> int:
    return sum(sample.reply.outcome in _FAILURES for sample in samples)

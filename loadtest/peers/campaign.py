"""One run: who is measured when, so that what the machine does meanwhile falls on everybody.

First the trace's unit and, for each peer, the model that is best for it to hold. Then round after round every
contender in turn, the order turned by one and reversed in every other round. A server is started anew for
each visit: where a process happens to lie in memory makes it some percent faster or slower for as long as it
lives. Everything measured is in the journal at once, and what is there is not measured again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from loadtest.bench_overhead import SERVER_CORE, bare_server
from loadtest.closed import BareConversation, ConversationError, latencies_ms, saturated_per_s
from loadtest.frames import Frame
from loadtest.peers.catalogue import PEERS, Peer
from loadtest.peers.environments import PeerUnavailable, environment_of
from loadtest.peers.goodput import best_model, candidates
from loadtest.peers.launch import Running, pinned_load, running_gateway, running_peer
from loadtest.peers.measure import CLIENTS, Load, goodput, overhead, saturated_hz, warm
from loadtest.peers.records import Conditions, Journal, Skipped, Trial, Unit
from loadtest.peers.servers.serving import Serving
from loadtest.process import ServerError
from model_repo import codec
from model_repo.frontier import Frontier
from model_repo.runtime.select import environment

GATEWAY = "paretogate"
ADAPTIVE = f"{GATEWAY}:adaptive"
POINTS = ("fast", "balanced", "accurate")
NAMES = (GATEWAY, *(peer.name for peer in PEERS))
JOURNAL = "results.jsonl"
_MANIFEST = "frontier.json"
_FAST = "fast"
_MIN_SCORE = 0.0005
_UNIT_REQUESTS = 200
# The adaptive gateway takes cheaper plans the more it is asked.
_ADAPTIVE_REACH = 1.5
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """What is compared and how long.

    only: names out of NAMES. minutes: after so many no further visit begins, None for no bound. cache: where
    environments and results are kept. threshold: of the raw score, below which the cascade asks on.
    """

    repo: Path
    frames: Path
    only: tuple[str, ...] = NAMES
    rounds: int = 3
    seconds: float = 2.5
    budget_ms: float = 50.0
    seed: int = 5
    minutes: float | None = None
    cache: Path = Path("build/peers")
    threshold: float = 0.925

    def __post_init__(self) -> None:
        unknown = set(self.only) - set(NAMES)
        if unknown or not self.only:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
        if self.rounds < 1 or self.seconds <= 0 or self.budget_ms <= 0:
            raise ValueError("rounds, seconds and the budget must be positive")


@dataclass(frozen=True, slots=True)
class Models:
    """The variants in question: cost and published accuracy of each single-model plan, and their uses.

    fast: behind everybody where overhead is compared. small and large: the cascade's.
    """

    cost_ms: dict[str, float]
    published_map: dict[str, float]
    fast: str
    small: str
    large: str

    @classmethod
    def of(cls, frontier: Frontier) -> Models:
        """Read them off a manifest; raises ValueError when the operating point `fast` is no single model."""
        single = {plan.stages[0].variant: plan for plan in frontier.plans if len(plan.stages) == 1}
        fast = frontier.plan_of(_FAST)
        if len(fast.stages) > 1:
            raise ValueError(f"{_FAST!r} is a cascade; overhead is compared on a single model")
        cost = {name: plan.mean_ms for name, plan in single.items()}
        published = {name: plan.accuracy_on("calibration").map for name, plan in single.items()}
        small = candidates(cost, published)[0]
        return cls(
            cost, published, fast.stages[0].variant, small, frontier.plan_of("balanced").stages[-1].variant
        )

    @property
    def tried(self) -> tuple[str, ...]:
        """Return the models that each peer is tried with."""
        return tuple(dict.fromkeys((*candidates(self.cost_ms, self.published_map), self.fast)))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run left behind: conditions, records, who was skipped, whether all of it was done."""

    conditions: Conditions
    journal: Journal
    skipped: tuple[Skipped, ...]
    complete: bool


class Campaign:
    """A run in progress."""

    def __init__(self, settings: Settings, frames: Sequence[Frame], say: Say) -> None:
        """Read the manifest and the journal.

        Raises ValueError (ManifestError, JournalError, FramesError among them) when one cannot be used.
        """
        self._settings, self._say = settings, say
        manifest = (settings.repo / _MANIFEST).read_bytes()
        frontier = codec.decode(manifest, source=str(settings.repo / _MANIFEST))
        self._models = Models.of(frontier)
        self._classes = frontier.dataset.classes
        self._load = Load(
            tuple(frame.content for frame in frames),
            tuple(frame.truth(self._classes) for frame in frames),
            len(self._classes),
            settings.budget_ms,
            settings.seconds,
            settings.seed,
        )
        here = environment()
        self._conditions = Conditions(
            machine=f"{here.machine}, {here.cores} cores, {here.os}",
            versions=(
                f"Python {here.python}",
                *(f"{name} {found}" for name, found in here.libraries.items()),
            ),
            manifest=hashlib.sha256(manifest).hexdigest()[:16],
            frames=hashlib.sha256(b"".join(self._load.frames)).hexdigest()[:16],
            budget_ms=settings.budget_ms,
            threshold=settings.threshold,
            seconds=settings.seconds,
            seed=settings.seed,
        )
        self._journal = Journal(settings.cache / JOURNAL, self._conditions)
        self._environments: dict[str, Path] = {}
        self._skipped: dict[str, Skipped] = {}
        self._cut = False
        self._ends_s = None if settings.minutes is None else time.monotonic() + 60 * settings.minutes

    def run(self) -> Outcome:
        """Measure what is missing; raises ServerError where the gateway or the two cores are missing."""
        peers = [peer for peer in PEERS if peer.name in self._settings.only]
        for peer in peers:
            self._guard(peer, partial(self._prepare, peer))
        with pinned_load():
            unit = self._unit()
            for peer in peers:
                self._guard(peer, partial(self._try_models, peer))
            turns = [name for name in NAMES if name in self._settings.only]
            for number in range(self._settings.rounds):
                order = (turns[number % len(turns) :] + turns[: number % len(turns)])[
                    :: -1 if number % 2 else 1
                ]
                for name in order:
                    self._visit(name, number, unit)
        return Outcome(self._conditions, self._journal, tuple(self._skipped.values()), not self._cut)

    def _time_is_up(self) -> bool:
        """Return whether nothing more may begin, and remember that something did not."""
        self._cut = self._cut or (self._ends_s is not None and time.monotonic() >= self._ends_s)
        return self._cut

    def _guard(self, peer: Peer, work: Callable[[], None]) -> None:
        """Do something with a peer; one that cannot be made, started or asked is left out from here on."""
        if peer.name in self._skipped or self._time_is_up():
            return
        try:
            work()
        except (PeerUnavailable, ConversationError, OSError) as error:
            self._skipped[peer.name] = Skipped(contender=peer.name, reason=str(error))
            self._say(f"{peer.title}: left out: {error}")

    def _prepare(self, peer: Peer) -> None:
        self._environments[peer.name] = environment_of(peer, self._settings.cache, self._say)

    def _unit(self) -> Unit:
        """Return the trace's unit, measured first where it is not known."""
        if (known := self._journal.unit) is not None:
            return known
        self._say(f"the server without HTTP, at {_FAST}")
        with bare_server(self._settings.repo, _FAST, core=SERVER_CORE) as port:
            conversation = BareConversation(port)
            latencies_ms(conversation, self._load.frames, _UNIT_REQUESTS // 4)
            taken_ms = latencies_ms(conversation, self._load.frames, _UNIT_REQUESTS)
            conversation.close()
            rate_hz = saturated_per_s(
                lambda: BareConversation(port), self._load.frames, clients=CLIENTS, seconds=self._load.seconds
            )
        unit = Unit(saturated_hz=rate_hz, p50_ms=sorted(taken_ms)[len(taken_ms) // 2])
        self._journal.add(unit)
        return unit

    def _serving(self, peer: Peer, model: str) -> Serving:
        if peer.cascade:
            models, threshold = self._models, self._settings.threshold
            return Serving(self._settings.repo, models.small, models.large, threshold, _MIN_SCORE)
        return Serving(self._settings.repo, model, None, 0.0, _MIN_SCORE)

    def _running(self, peer: Peer, model: str) -> AbstractContextManager[Running]:
        return running_peer(
            peer,
            self._environments[peer.name],
            self._serving(peer, model),
            self._load.frames[0],
            self._classes,
        )

    def _try_models(self, peer: Peer) -> None:
        if peer.cascade:
            return
        known = {trial.model for trial in self._journal.trials(peer.name)}
        for model in self._models.tried:
            if model in known or self._time_is_up():
                continue
            self._say(f"{peer.title}: tried with {model}")
            with self._running(peer, model) as server:
                warm(server, self._load, None)
                rate_hz = saturated_hz(server, self._load)
            self._journal.add(Trial(contender=peer.name, model=model, saturated_hz=rate_hz))

    def _visit(self, name: str, number: int, unit: Unit) -> None:
        if name == GATEWAY:
            if not self._time_is_up():
                self._visit_gateway(number, unit)
            return
        peer = next(peer for peer in PEERS if peer.name == name)
        self._guard(peer, partial(self._visit_peer, peer, number, unit))

    def _visit_peer(self, peer: Peer, number: int, unit: Unit) -> None:
        trials = {trial.model: trial.saturated_hz for trial in self._journal.trials(peer.name)}
        if peer.cascade:
            held = f"{self._models.small} → {self._models.large}"
        else:
            held = best_model(trials, self._models.published_map)
        missing_goodput = not self._has_goodput(peer.name, number)
        if not peer.cascade and not self._has_overhead(peer.name, number):
            self._say(f"round {number + 1}: {peer.title} with {self._models.fast}")
            with self._running(peer, self._models.fast) as server:
                self._journal.add(overhead(server, self._load, peer.name, number, self._models.fast, None))
                if held == self._models.fast and missing_goodput:
                    self._goodput(server, peer.name, number, held, unit)
                    missing_goodput = False
        if missing_goodput:
            self._say(f"round {number + 1}: {peer.title} with {held}")
            with self._running(peer, held) as server:
                self._goodput(server, peer.name, number, held, unit)

    def _goodput(self, server: Running, contender: str, number: int, held: str, unit: Unit) -> None:
        self._journal.add(goodput(server, self._load, contender, number, held, unit.saturated_hz))

    def _visit_gateway(self, number: int, unit: Unit) -> None:
        settings, load, journal = self._settings, self._load, self._journal
        points = [None, *POINTS]
        missing = [point for point in points if not self._has_goodput(contender_of(point), number)]
        known = self._has_overhead(GATEWAY, number)
        if known and not missing:
            return
        self._say(f"round {number + 1}: the gateway starts")
        with running_gateway(settings.repo, settings.cache / "gateway") as server:
            try:
                if not known:
                    journal.add(overhead(server, load, GATEWAY, number, self._models.fast, _FAST))
                for point in missing:
                    self._say(f"round {number + 1}: the gateway, {point or 'adaptive'}")
                    reach = _ADAPTIVE_REACH if point is None else 1.1
                    figures = goodput(
                        server,
                        load,
                        contender_of(point),
                        number,
                        point or "adaptive",
                        unit.saturated_hz,
                        point=point,
                        reach=reach,
                    )
                    journal.add(figures)
            except ConversationError as error:
                raise ServerError(f"the gateway did not answer: {error}") from error

    def _has_overhead(self, contender: str, number: int) -> bool:
        return any((r.contender, r.round) == (contender, number) for r in self._journal.overheads)

    def _has_goodput(self, contender: str, number: int) -> bool:
        return any((r.contender, r.round) == (contender, number) for r in self._journal.goodputs)


def contender_of(point: str | None) -> str:
    """Return the gateway's name in the table when it is held at a point, or at none."""
    return ADAPTIVE if point is None else f"{GATEWAY}:{point}"

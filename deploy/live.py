"""A real Prometheus beside real gateways, under the rules of this folder with shortened windows.

What the live tests and `deploy.bench_monitoring` share. Prometheus comes from Debian's package of that name.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import yaml

from deploy.rules import Alert, Scale, alerts, render
from deploy.shares import Made
from loadtest.process import HOST, free_port

_START_S, _STOP_S, _POLL_S, _ANSWER_S = 60.0, 20.0, 0.1, 30.0
_LOG = "prometheus.log"
_SCRAPE = "paretogate"
# A rate over less time than this is none.
_LEAST_S = 4.0
_NO_SUBJECT = ("__name__", "alertname", "alertstate", "severity", "windows")
Key = tuple[str, str]
"""An alert's name and its windows, empty for those that are no burn rates."""


Labels = tuple[tuple[str, str], ...]


class PrometheusError(RuntimeError):
    """Prometheus is not there, did not start, or refused a query; the message says which."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One series of an answer: its labels, sorted, and its value."""

    labels: Labels
    value: float


@dataclass(frozen=True, slots=True)
class Firing:
    """An alert that fires: what it says with values put in."""

    key: Key
    summary: str
    description: str


@dataclass(frozen=True, slots=True)
class Fired:
    """An alert that has fired: what for, as its labels say, and how long ago it did so first."""

    key: Key
    subject: str
    ago_s: float


@dataclass(frozen=True, slots=True)
class Seen:
    """How soon an alert has to fire after its fault, and how soon it did; None where it did not.

    made: of the share that the alert watches, what the fault made of it; None where it watches none. before:
    it fired before the fault, which then proves nothing.
    """

    key: Key
    stated_s: float
    after_s: float | None
    made: Made | None = None
    before: bool = False

    @property
    def holds(self) -> bool:
        """Whether it was silent, and fired within its stated time."""
        return not self.before and self.after_s is not None and self.after_s <= self.stated_s


@dataclass(frozen=True, slots=True)
class _Since:
    """When a fault began, and for how long Prometheus had read its targets by then."""

    began: datetime
    known_s: float


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus: a client of it, the scale of its rules, and since when it has read all of its
    targets, in seconds of `time.monotonic`.
    """

    http: httpx.Client
    scale: Scale
    since_s: float

    def query(self, expr: str, at: datetime | None = None) -> tuple[Sample, ...]:
        """Return what an expression gives now, or gave then; raises PrometheusError when it is refused."""
        moment = {} if at is None else {"time": at.isoformat()}
        answer = self.http.get("/api/v1/query", params={"query": expr, **moment}).json()
        if answer["status"] != "success":
            raise PrometheusError(f"{expr}: {answer['error']}")
        return tuple(
            Sample(tuple(sorted(series["metric"].items())), float(series["value"][1]))
            for series in answer["data"]["result"]
        )

    def firing(self) -> tuple[Firing, ...]:
        """Return the alerts that fire now."""
        answer = self.http.get("/api/v1/alerts").json()
        return tuple(
            Firing(
                (each["labels"]["alertname"], each["labels"].get("windows", "")),
                each["annotations"]["summary"],
                each["annotations"]["description"],
            )
            for each in answer["data"]["alerts"]
            if each["state"] == "firing"
        )

    def fired(self, seconds: float) -> tuple[Fired, ...]:
        """Return the alerts that have fired at any time in the last seconds, the first of them first."""
        step_ms, range_ms = round(self.scale.interval_s * 1e3), max(round(seconds * 1e3), 1)
        firsts = f'min_over_time(timestamp(ALERTS{{alertstate="firing"}})[{range_ms}ms:{step_ms}ms])'
        found = []
        for sample in self.query(f"time() - {firsts}"):
            labels = dict(sample.labels)
            subject = ", ".join(f"{name} {value}" for name, value in sample.labels if name not in _NO_SUBJECT)
            found.append(Fired((labels["alertname"], labels.get("windows", "")), subject, sample.value))
        return tuple(sorted(found, key=lambda one: -one.ago_s))

    def failed_rules(self) -> tuple[str, ...]:
        """Return the rules that could not be evaluated, and why."""
        return tuple(
            f"{rule['name']}: {rule['lastError']}"
            for group in self._groups()
            for rule in group["rules"]
            if rule["health"] == "err"
        )

    def judged_since(self, moment: datetime) -> bool:
        """Return whether every alert has been judged after a moment."""
        return all(
            datetime.fromisoformat(rule["lastEvaluation"]) > moment
            for group in self._groups()
            for rule in group["rules"]
            if rule["type"] == "alerting"
        )

    def _groups(self) -> list[dict[str, Any]]:  # Any: documents of Prometheus' API
        return list(self.http.get("/api/v1/rules").json()["data"]["groups"])

    def alerts(self) -> Mapping[Key, Alert]:
        """Return the alerts under this one's scale, with their stated times."""
        return {(alert.name, alert.windows): alert for alert in alerts(self.scale)}

    def watch(
        self, keys: Iterable[Key], make: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> tuple[Seen, ...]:
        """Make a fault, and wait until alerts have fired or could have fired.

        make: begins the fault, which lasts as long as its context; without one it has just begun. A fault is
        seldom just the one that an alert's stated time is for: where it watches a share, the time follows
        from what the fault really made of that, or from the least that counts as a fault.
        """
        expected = {key: self.alerts()[key] for key in keys}
        longest_s = max(_judged(alert, None).stated_s for alert in expected.values())
        before = {firing.key for firing in self.firing()}
        fired: dict[Key, float] = {}
        began, began_s = datetime.now(tz=UTC), time.monotonic()
        with make():
            while (now_s := time.monotonic() - began_s) <= longest_s and len(fired) < len(expected):
                for firing in self.firing():
                    if firing.key in expected:
                        fired.setdefault(firing.key, now_s)
                time.sleep(_POLL_S)
        # What was made is asked for only now: questions take time, in which other alerts fire.
        since = _Since(began, began_s - self.since_s)
        return tuple(
            replace(
                _judged(alert, self._made(alert, since, fired.get(key, longest_s))),
                after_s=fired.get(key),
                before=key in before,
            )
            for key, alert in expected.items()
        )

    def quiet(self, keys: Iterable[Key], most_s: float) -> None:
        """Wait until alerts that an earlier fault raised are silent, for so long at most."""
        awaited, give_up_s = tuple(keys), time.monotonic() + most_s
        while self.ringing(awaited) and time.monotonic() < give_up_s:
            time.sleep(_POLL_S)

    def ringing(self, keys: Iterable[Key]) -> set[Key]:
        """Return those of some alerts that fire now."""
        return set(keys) & {firing.key for firing in self.firing()}

    def _made(self, alert: Alert, fault: _Since, after_s: float) -> Made | None:
        """Return what there was of the share that an alert watches before a fault and in a time after it.

        Of several series, as of plans, that one counts of which most is seen since.
        """
        share = alert.share
        if share is None:
            return None
        after_s = max(after_s, _LEAST_S)
        # Where there is less than a window's data, a rate over all of the window would be too low.
        before_s = max(min(alert.window_s, fault.known_s), _LEAST_S)
        until = fault.began + timedelta(seconds=after_s)
        totals = self._rates(share.total, after_s, until)
        if not any(totals.values()):
            return Made(0.0, 0.0)
        most = max(totals, key=totals.__getitem__)
        expected = self._rates(share.expected, 0.0, until).get(most, 0.0) if share.expected else 0.0
        distance = self._rates(share.bad, after_s, until).get(most, 0.0) / totals[most] - expected
        # An alert for a distance looks both ways; what was before counts in the fault's direction.
        way = math.copysign(1.0, distance)
        before = self._rates(share.total, before_s, fault.began).get(most, 0.0)
        if not before:
            return Made(0.0, way * distance)
        distance_before = self._rates(share.bad, before_s, fault.began).get(most, 0.0) / before - expected
        return Made(way * distance_before, way * distance, totals[most] / before)

    def _rates(self, template: str, over_s: float, until: datetime) -> dict[Labels, float]:
        """Return a share's template with `<w>` filled in, as it was at a moment, by labels."""
        found = self.query(template.replace("<w>", f"{round(1e3 * over_s)}ms"), until)
        return {sample.labels: sample.value for sample in found if math.isfinite(sample.value)}

    def without_data(self, queries: Iterable[str], window: str) -> tuple[str, ...]:
        """Return those of a board's queries that give no number; window: in place of Grafana's variable."""
        return tuple(
            query
            for query in queries
            if not any(
                math.isfinite(sample.value)
                for sample in self.query(query.replace("$__rate_interval", window))
            )
        )


def find_prometheus() -> str | None:
    """Return the path of Prometheus' server, None where it is not installed."""
    return shutil.which("prometheus")


@contextmanager
def prometheus(targets: Sequence[str], scale: Scale, folder: Path) -> Iterator[Prometheus]:
    """Run a Prometheus on 127.0.0.1 that scrapes targets, host:port, and judges them by the rules.

    When the block begins it has read each of them once and judged what it read. folder: for its
    configuration, data and log. Raises PrometheusError when it cannot be had.
    """
    program = find_prometheus()
    if program is None:
        raise PrometheusError("prometheus is not installed (apt-get install prometheus)")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rules.yml").write_text(render(scale))
    interval = f"{round(scale.interval_s * 1e3)}ms"
    configuration = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": _SCRAPE, "static_configs": [{"targets": list(targets)}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    address = f"{HOST}:{free_port()}"
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    with (folder / _LOG).open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=_ANSWER_S) as client:
            _wait(process, lambda: _is_ready(client), folder)
            # For seconds it knows no targets, and says that there are none, which is an alert.
            watching = Prometheus(client, scale, time.monotonic())
            _wait(process, lambda: len(watching.query("up")) == len(targets), folder)
            read_at = datetime.now(tz=UTC)
            _wait(process, lambda: watching.judged_since(read_at), folder)
            yield replace(watching, since_s=time.monotonic())
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _judged(alert: Alert, made: Made | None) -> Seen:
    """Return what is stated of an alert for a fault, or for the least that counts as one."""
    share = alert.share
    if share is None:
        return Seen((alert.name, alert.windows), alert.fires_within_s, None)
    judged = Made(0.0, share.least)
    if made is not None and made.since >= share.least:
        # What is stated is for as many events as before; more of them leave no less time.
        judged = replace(made, rate=min(made.rate, 1.0))
    return Seen((alert.name, alert.windows), alert.within_s(judged), None, made)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], bool], folder: Path) -> None:
    give_up_s = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < give_up_s:
        if ready():
            return
        time.sleep(_POLL_S)
    said = (folder / _LOG).read_text(errors="replace")[-2000:]
    raise PrometheusError(f"Prometheus did not start, or does not read its targets:\n{said}")

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
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from deploy.rules import Alert, Scale, alerts, render
from deploy.slo import OBJECTIVES
from loadtest.process import HOST, free_port

_START_S, _STOP_S, _POLL_S = 60.0, 20.0, 0.1
_SCRAPE = "paretogate"
# A fault that spoils less than this is none to judge alerts by; a rate over less time than that is none.
_LEAST_SHARE, _LEAST_S = 0.25, 4.0
Key = tuple[str, str]
"""An alert's name and its windows, empty for those that are no burn rates."""


class PrometheusError(RuntimeError):
    """Prometheus is not there, did not start, or refused a query; the message says which."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One series of an answer: its labels, sorted, and its value."""

    labels: tuple[tuple[str, str], ...]
    value: float


@dataclass(frozen=True, slots=True)
class Firing:
    """An alert that fires: what it says with values put in."""

    key: Key
    summary: str
    description: str


@dataclass(frozen=True, slots=True)
class Seen:
    """How soon an alert has to fire after its fault, and how soon it did; None where it did not.

    share: of what was asked before the fault, what became bad; 1 for an alert that is no burn rate. before:
    it fired before the fault, which then proves nothing.
    """

    key: Key
    stated_s: float
    after_s: float | None
    share: float = 1.0
    before: bool = False

    @property
    def holds(self) -> bool:
        """Whether it was silent, and fired within its stated time."""
        return not self.before and self.after_s is not None and self.after_s <= self.stated_s


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus: where it listens, and under which scale its rules are."""

    url: str
    scale: Scale

    def query(self, expr: str) -> tuple[Sample, ...]:
        """Return what an expression gives now; raises PrometheusError when it is refused."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expr}, timeout=30).json()
        if answer["status"] != "success":
            raise PrometheusError(f"{expr}: {answer['error']}")
        return tuple(
            Sample(tuple(sorted(series["metric"].items())), float(series["value"][1]))
            for series in answer["data"]["result"]
        )

    def firing(self) -> tuple[Firing, ...]:
        """Return the alerts that fire now."""
        answer = httpx.get(f"{self.url}/api/v1/alerts", timeout=30).json()
        return tuple(
            Firing(
                (each["labels"]["alertname"], each["labels"].get("windows", "")),
                each["annotations"]["summary"],
                each["annotations"]["description"],
            )
            for each in answer["data"]["alerts"]
            if each["state"] == "firing"
        )

    def fired(self, seconds: float) -> frozenset[Key]:
        """Return the alerts that have fired at any time in the last seconds."""
        found = self.query(f'max_over_time(ALERTS{{alertstate="firing"}}[{round(seconds * 1e3)}ms])')
        labels = [dict(sample.labels) for sample in found]
        return frozenset((each["alertname"], each.get("windows", "")) for each in labels)

    def failed_rules(self) -> tuple[str, ...]:
        """Return the rules that could not be evaluated, and why."""
        answer = httpx.get(f"{self.url}/api/v1/rules", timeout=30).json()
        return tuple(
            f"{rule['name']}: {rule['lastError']}"
            for group in answer["data"]["groups"]
            for rule in group["rules"]
            if rule["health"] == "err"
        )

    def alerts(self) -> Mapping[Key, Alert]:
        """Return the alerts under this one's scale, with their stated times."""
        return {(alert.name, alert.windows): alert for alert in alerts(self.scale)}

    def watch(
        self, keys: Iterable[Key], make: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> tuple[Seen, ...]:
        """Make a fault, and wait until alerts have fired or could have fired.

        make: begins the fault, which lasts as long as its context; without one it has just begun. A fault is
        seldom a whole one: what is stated of a burn rate is for the share that it really spoilt.
        """
        expected = {key: self.alerts()[key] for key in keys}
        longest_s = max(alert.within_s(_LEAST_SHARE) for alert in expected.values())
        before = {firing.key for firing in self.firing()}
        fired: dict[Key, tuple[float, float]] = {}
        began_s = time.monotonic()
        with make():
            while (now_s := time.monotonic() - began_s) <= longest_s and len(fired) < len(expected):
                for firing in self.firing():
                    if firing.key in expected and firing.key not in fired:
                        fired[firing.key] = now_s, self._spoilt(expected[firing.key], now_s)
                time.sleep(_POLL_S)
        seen = []
        for key, alert in expected.items():
            after_s, share = fired.get(key, (None, 0.0))
            share = share or self._spoilt(alert, longest_s)
            stated_s = alert.within_s(max(share, _LEAST_SHARE))
            seen.append(Seen(key, stated_s, after_s, share, key in before))
        return tuple(seen)

    def quiet(self, keys: Iterable[Key], most_s: float) -> None:
        """Wait until alerts that an earlier fault raised are silent, for so long at most."""
        awaited, give_up_s = set(keys), time.monotonic() + most_s
        while awaited & {firing.key for firing in self.firing()} and time.monotonic() < give_up_s:
            time.sleep(_POLL_S)

    def _spoilt(self, alert: Alert, since_s: float) -> float:
        """Return how many bad events there are since a fault, as a share of all events before it."""
        objective = next((one for one in OBJECTIVES if one.name == alert.slo), None)
        if objective is None:
            return 1.0
        since = f"{round(1e3 * max(since_s, _LEAST_S))}ms"
        long = self.scale.duration(alert.windows.split("/")[0])
        bad = objective.bad.replace("[<w>]", f"[{since}]")
        before = objective.total.replace("[<w>]", f"[{long}] offset {since}")
        found = self.query(f"({bad}) / ({before})")
        return min(found[0].value, 1.0) if found and math.isfinite(found[0].value) else 1.0

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

    folder: for its configuration, data and log. Raises PrometheusError when it cannot be had.
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
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        url = f"http://{address}"
        _wait(process, lambda: _is_ready(url), folder / "prometheus.log")
        yield Prometheus(url, scale)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    give_up_s = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < give_up_s:
        if ready():
            return
        time.sleep(_POLL_S)
    raise PrometheusError(f"Prometheus did not start:\n{log.read_text(errors='replace')[-2000:]}")

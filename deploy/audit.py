"""`python -m deploy.audit`: are there known vulnerabilities in what the locks pin?

pip-audit asks a vulnerability service about every pin of the widest lock. Where the service cannot be
reached, or a mirror answers that it does not know a package, nothing was found because nothing was looked at:
that is said, and is an error only with `--must`, for a release. Findings are an error always, but for those
that `locks/accepted.txt` names, a line each: the identifier, and why it may stay.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from deploy.lock import FOLDER, ROOT

_LOCK = "dev.txt"
_TIMEOUT_S = 300.0
_SOCKET_S = 5
# How pip-audit's own errors, and those of the client below it, speak of a service that does not answer.
_UNREACHABLE = ("ConnectionError", "ServiceError", "Max retries", "timed out", "Timeout", "HTTPError")


class Finding(BaseModel):
    """A known vulnerability."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    fix_versions: tuple[str, ...] = ()


class Audited(BaseModel):
    """What was said of one distribution; `skip_reason` where it was not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    version: str = ""
    vulns: tuple[Finding, ...] = ()
    skip_reason: str | None = None


class Audit(BaseModel):
    """pip-audit's document."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    dependencies: tuple[Audited, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to print, and whether it is a failure."""

    lines: tuple[str, ...]
    complete: bool
    vulnerable: bool

    def status(self, *, must: bool) -> int:
        """Return the exit status; must: a pin that was not looked at is a failure as well."""
        return int(self.vulnerable or (must and not self.complete))


class AuditError(RuntimeError):
    """pip-audit failed for another reason than a service that does not answer; the message is its own."""


def judge(output: str, errors: str, accepted: frozenset[str] = frozenset()) -> Verdict:
    """Judge what pip-audit wrote on its two streams; raises AuditError when it can be read as neither."""
    try:
        audit = Audit.model_validate_json(output)
    except ValidationError as error:
        last = (errors.strip().splitlines() or ["it said nothing"])[-1]
        if any(word in errors for word in _UNREACHABLE):
            return Verdict((f"NOT AUDITED: the service cannot be reached: {last}",), False, False)
        raise AuditError(f"pip-audit failed: {last}") from error
    skipped = [one.name for one in audit.dependencies if one.skip_reason is not None]
    looked_at = len(audit.dependencies) - len(skipped)
    findings = [
        f"{one.name} {one.version}: {finding.id}, mended in {', '.join(finding.fix_versions) or 'no version'}"
        for one in audit.dependencies
        for finding in one.vulns
        if finding.id not in accepted
    ]
    if not looked_at:
        summary = (
            "NOT AUDITED: the service knows none of the packages; is the index a mirror without advisories?"
        )
    else:
        summary = f"{looked_at} pins audited, {len(findings)} known vulnerabilities"
        if skipped:
            summary += f"; NOT AUDITED: {', '.join(skipped)}"
    return Verdict((*findings, summary), looked_at > 0 and not skipped, bool(findings))


def read_accepted(text: str) -> frozenset[str]:
    """Return the identifiers of a list of accepted findings; raises AuditError for one without a reason."""
    found = set()
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            identifier, _, reason = line.strip().partition(" ")
            if not reason.strip():
                raise AuditError(f"accepted.txt: {identifier} has no reason")
            found.add(identifier)
    return frozenset(found)


def run() -> Verdict:
    """Ask the service about the widest lock; raises AuditError or OSError."""
    accepted = read_accepted((ROOT / FOLDER / "accepted.txt").read_text())
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(ROOT / FOLDER / _LOCK)]
    options = ["--require-hashes", "--disable-pip", "--format=json", "--desc=off", "--progress-spinner=off"]
    try:
        done = subprocess.run(
            [*command, *options, f"--timeout={_SOCKET_S}"],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Verdict((f"NOT AUDITED: no answer within {_TIMEOUT_S:.0f} s",), False, False)
    return judge(done.stdout, done.stderr, accepted)


def main(arguments: Sequence[str]) -> int:
    """Print the verdict and return the exit status; the only argument is `--must`."""
    if set(arguments) - {"--must"}:
        print("usage: python -m deploy.audit [--must]", file=sys.stderr)
        return 2
    try:
        verdict = run()
    except (AuditError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    for line in verdict.lines:
        print(line, file=sys.stdout if verdict.complete and not verdict.vulnerable else sys.stderr)
    return verdict.status(must="--must" in arguments)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

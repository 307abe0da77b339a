"""What is made of pip-audit's answers: findings fail, silence is said."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from deploy.audit import AuditError, judge, read_accepted

SKIPPED = {"name": "a", "skip_reason": "Dependency not found on PyPI"}
CLEAN = {"name": "b", "version": "1", "vulns": []}
BAD = {"name": "c", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"], "aliases": ["CVE-1"]}]}


def said(*dependencies: Mapping[str, object]) -> str:
    """Return pip-audit's document about these distributions."""
    return json.dumps({"dependencies": dependencies, "fixes": []})


def test_known_vulnerabilities_fail() -> None:
    """A finding is named with the version that mends it, and is a failure."""
    verdict = judge(said(CLEAN, BAD), "Found 1 known vulnerability")
    assert verdict.lines == ("c 2: PYSEC-1, mended in 3", "2 pins audited, 1 known vulnerabilities")
    assert verdict.status(must=False) == 1


def test_accepted_findings_do_not() -> None:
    """One that is accepted, with its reason, is passed over."""
    accepted = read_accepted("# a comment\nPYSEC-1 the function is not used here\n")
    assert judge(said(BAD), "", accepted).status(must=True) == 0


def test_nothing_is_accepted_without_a_reason() -> None:
    """An identifier by itself is an error."""
    with pytest.raises(AuditError, match="no reason"):
        read_accepted("PYSEC-1\n")


def test_all_clean_is_said_with_its_number() -> None:
    """A complete audit without findings is no failure, whatever is asked."""
    verdict = judge(said(CLEAN), "No known vulnerabilities found")
    assert verdict.lines == ("1 pins audited, 0 known vulnerabilities",)
    assert verdict.status(must=True) == 0


@pytest.mark.parametrize(
    ("output", "errors"),
    [
        ("", "Traceback\nrequests.exceptions.ConnectionError: Max retries exceeded"),
        ("", "ERROR:pip_audit._cli:Connection to the service timed out"),
        (said(SKIPPED), "No known vulnerabilities found"),
    ],
    ids=["no route", "no answer", "a mirror that knows nothing"],
)
def test_an_audit_that_did_not_happen_says_so(output: str, errors: str) -> None:
    """Nothing was found because nothing was looked at: visible, and a failure where an audit must be."""
    verdict = judge(output, errors)
    assert verdict.lines[-1].startswith("NOT AUDITED")
    assert verdict.status(must=False) == 0
    assert verdict.status(must=True) == 1


def test_pins_that_were_left_out_are_named() -> None:
    """An audit of some pins does not pass for one of all."""
    verdict = judge(said(CLEAN, SKIPPED), "")
    assert verdict.lines == ("1 pins audited, 0 known vulnerabilities; NOT AUDITED: a",)
    assert verdict.status(must=True) == 1


def test_another_failure_is_not_taken_for_silence() -> None:
    """A lock that pip-audit cannot read is an error, not a service that is away."""
    with pytest.raises(AuditError, match="requirement"):
        judge("", "ERROR:pip_audit._cli:could not parse requirement")

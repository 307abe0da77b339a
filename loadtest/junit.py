"""A verdict as JUnit XML, which CI systems show: one test case for each thing that a run has to keep."""

from __future__ import annotations

from xml.etree import ElementTree

from loadtest.verdict import Verdict


def to_junit(name: str, verdict: Verdict, seconds: float) -> str:
    """Return the document; name: of the suite, seconds: how long the run took."""
    failures = sum(not check.passed for check in verdict.checks)
    counts = {"tests": str(len(verdict.checks)), "failures": str(failures), "errors": "0"}
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(
        root, "testsuite", {"name": _printable(name), **counts, "time": f"{seconds:.3f}"}
    )
    for check in verdict.checks:
        case = ElementTree.SubElement(suite, "testcase", {"classname": "loadtest", "name": check.name})
        if check.passed:
            ElementTree.SubElement(case, "system-out").text = _printable(check.says)
        else:
            failure = ElementTree.SubElement(case, "failure", {"message": _printable(check.says)})
            failure.text = _printable(check.says)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _printable(text: str) -> str:
    """Leave out control characters, which XML has no way to say."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t")

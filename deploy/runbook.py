"""The runbook's table of alerts, made by code: `python -m deploy.runbook` writes it anew into RUNBOOK.md.

What an alert means and what to do about it is written by hand; how soon it fires follows from the rules.
"""

from __future__ import annotations

import re
from pathlib import Path

from deploy.rules import Scale, alerts, stated

RUNBOOK = Path(__file__).parent / "RUNBOOK.md"
_HEAD = "| alert | windows | severity | fires within | when |\n|---|---|---|---|---|\n"
_TABLE = re.compile(r"\| alert \|.*\n(?:\|.*\n)+")


def table() -> str:
    """Return the table: every alert with how soon it fires, in production."""
    rows = (
        f"| [{one.name}](#{one.name.lower()}) | {one.windows} | {one.severity} | {stated(one)}"
        f" | {one.fault} |\n"
        for one in alerts(Scale())
    )
    return _HEAD + "".join(rows)


def render(text: str) -> str:
    """Return a runbook's text with its table as the rules have it; raises ValueError where it has none."""
    if len(_TABLE.findall(text)) != 1:
        raise ValueError(f"{RUNBOOK}: expected one table of alerts")
    return _TABLE.sub(lambda _: table(), text)


def main() -> None:
    """Write the table into the runbook."""
    RUNBOOK.write_text(render(RUNBOOK.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

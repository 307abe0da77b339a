"""The runbook speaks of every alert, and of nothing that is not there."""

from __future__ import annotations

import re

from deploy.board import every_panel
from deploy.rules import RUNBOOK_URL, Scale, alerts
from deploy.runbook import RUNBOOK, render
from tests.deploy.promtool import DEPLOY

TEXT = RUNBOOK.read_text(encoding="utf-8")
PARTS = ("**Means.**", "**Look at.**", "**Do.**")


def test_every_alert_has_a_section_and_every_section_an_alert() -> None:
    """Sections are the alerts' names, once each, and each says what it means, what to look at, what to do."""
    sections = re.split(r"^## (.+)$", TEXT, flags=re.MULTILINE)[1:]
    titles, bodies = sections[::2], sections[1::2]
    assert len(titles) == len(set(titles))
    assert set(titles) == {alert.name for alert in alerts(Scale())}
    for title, body in zip(titles, bodies, strict=True):
        assert [part for part in PARTS if body.count(part) != 1] == [], title
        assert "`" in body or '"' in body, f"{title} names nothing to look at"


def test_alerts_lead_to_their_section() -> None:
    """The runbook is where their annotation says, and an anchor is its title as Markdown makes it."""
    assert (DEPLOY.parent / RUNBOOK_URL) == RUNBOOK
    anchors = {title.lower() for title in re.findall(r"^## (\S+)$", TEXT, flags=re.MULTILINE)}
    committed = (DEPLOY / "prometheus" / "rules.yml").read_text()
    assert set(re.findall(rf"{re.escape(RUNBOOK_URL)}#(\S+)", committed)) == anchors


def test_the_committed_table_is_what_the_rules_say() -> None:
    """`python -m deploy.runbook` would change nothing."""
    assert render(TEXT) == TEXT


def test_panels_and_rows_that_it_names_are_on_the_board() -> None:
    """What stands in quotation marks is a panel's or a row's title."""
    panels = every_panel()
    titles = {panel.title for _, panel in panels} | {row.title for row, _ in panels}
    quoted = set(re.findall(r'(?<=[ (])"([A-Z][^"]+)"', TEXT)) - {"Paretogate: operating points"}
    assert quoted
    assert quoted <= titles, sorted(quoted - titles)

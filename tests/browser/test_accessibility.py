"""What axe finds on every page, in both themes and at phone width: nothing."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from .conftest import People, settled, start

GATED = """Words.

```sh
mkdir -p artifacts; echo hello > artifacts/a.txt
```

```sh gate=ask
ls
```
"""
LOOKS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"color_scheme": "dark", "viewport": {"width": 360, "height": 780}},
}


def findings(page: Page) -> list[str]:
    result = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa"]})
    return [
        f"{page.url} {found['id']}: {node['html'][:200]} {node.get('failureSummary', '')}"
        for found in result.response["violations"]
        for node in found["nodes"]
    ]


@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_nothing_on_any_page(people: People, look: str):
    options = {**LOOKS[look], "bypass_csp": True}
    visitor = people.window(None, **options)
    found = findings(visitor)
    alice = people.window("alice", **options)
    found += findings(alice)
    session = start(alice, GATED)
    alice.get_by_role("button", name="Approve", exact=True).wait_for()
    found += findings(alice)
    alice.get_by_role("textbox", name="Instruction").fill("And this after it.")
    alice.get_by_role("button", name="Send", exact=True).click()
    alice.get_by_role("link", name="Edit turn 2").click()
    alice.get_by_label("Change turn 2").wait_for()
    alice.get_by_label("Stop with a reason").click()
    found += findings(alice)
    alice.goto("/approvals/")
    found += findings(alice)
    alice.goto(session)
    alice.get_by_role("button", name="Approve", exact=True).click()
    settled(alice)
    found += findings(alice)
    artifact = alice.get_by_role("link", name="a.txt").first.get_attribute("href")
    for path in (artifact, f"{session}raw/", "/approvals/?view=decided"):
        assert path
        alice.goto(path)
        found += findings(alice)
    alice.goto(session)
    alice.get_by_role("button", name="Fork from here").first.click()
    alice.get_by_text("Forked by alice").wait_for()
    found += findings(alice)
    assert found == []


def test_no_page_scrolls_sideways_on_a_narrow_phone(people: People):
    alice = people.window("alice", viewport={"width": 360, "height": 780})
    start(alice, GATED)
    alice.get_by_role("button", name="Approve", exact=True).wait_for()
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not alice.evaluate(wide)
    alice.goto("/approvals/")
    assert not alice.evaluate(wide)

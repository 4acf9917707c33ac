"""What goes wrong around a page: lost sockets, restarts, second clicks, bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, WebSocketRoute, expect

from sessions_app.events import MessageCreated
from tests.installation import Installation

from .conftest import People, furnished, rows, settled, start

FLOW = "\n\n".join(
    f"Line {n} of the flow.\n\n```sh\nsleep 0.1; echo {n}\n```" for n in range(1, 25)
)


class Wire:
    """The page's socket, to be cut from outside."""

    def __init__(self, page: Page) -> None:
        self.sockets: list[WebSocketRoute] = []
        page.route_web_socket(re.compile("/ws/sessions/"), self._opened)

    def _opened(self, route: WebSocketRoute) -> None:
        route.connect_to_server()
        self.sockets.append(route)

    def cut(self) -> None:
        self.sockets[-1].close(code=1012)


def test_a_socket_dropped_ten_times_while_events_flow_shows_each_row_once(people: People):
    alice = people.window("alice")
    wire = Wire(alice)
    start(alice, FLOW)
    for drop in range(1, 11):
        alice.wait_for_function(
            "([wires, rows]) => document.querySelectorAll('#timeline > li').length >= rows",
            arg=[drop, 4 * drop],
        )
        wire.cut()
    settled(alice)
    expect(alice.get_by_text("Line 24 of the flow.").last).to_be_visible()
    assert len(wire.sockets) >= 11
    live = rows(alice)
    assert len({row.split()[0] for row in live}) == len(live)
    alice.reload()
    fresh = rows(alice)
    assert live[-len(fresh) :] == fresh


def test_a_flood_is_shown_whole_since_the_page_says_what_it_has_drawn(
    people: People, place: Installation
):
    alice = people.window("alice")
    said: list[str | bytes] = []
    alice.on("websocket", lambda opened: opened.on("framesent", lambda sent: said.append(sent)))
    session = start(alice, "Hello.").rstrip("/").rpartition("/")[2]
    settled(alice)
    for batch in range(20):
        texts = (f"flood {batch}.{n} end" for n in range(100))
        place.record(session, *(MessageCreated(role="system", text=text) for text in texts))
    last = place.one("SELECT last_seq FROM sessions_app_session WHERE id = %s", session)
    alice.locator(f"#timeline[data-last='{last}']").wait_for(timeout=60_000)
    flood = [row.split()[-2] for row in rows(alice) if "flood" in row]
    assert flood == [f"{batch}.{n}" for batch in range(20) for n in range(100)]
    assert len(said) > 1
    assert all("drawn" in json.loads(message) for message in said)
    assert len(said) < 60


def test_a_pending_card_still_works_on_a_page_that_outlived_its_server(
    chromium: Browser, tmp_path: Path, django_db_setup: None
):
    with furnished(tmp_path) as place:
        people = People(chromium, place)
        alice = people.window("alice")
        start(alice, "```sh gate=ask\necho survived\n```")
        alice.get_by_role("button", name="Approve", exact=True).wait_for()
        place.kill()
        expect(alice.get_by_text(re.compile("Reconnecting", re.I))).to_be_visible()
        place.start()
        alice.locator("[data-connected=true]").wait_for(state="attached", timeout=30_000)
        alice.get_by_role("button", name="Approve", exact=True).click()
        settled(alice)
        expect(alice.get_by_text("survived").last).to_be_visible()
        people.close()


def test_a_double_click_on_send_is_one_turn(people: People):
    alice = people.window("alice")
    alice.get_by_role("textbox").last.fill("Once is enough.")
    alice.get_by_role("button", name="Send", exact=True).dblclick()
    alice.wait_for_url("**/sessions/*/")
    settled(alice)
    alice.get_by_role("textbox").last.fill("And once more.")
    alice.get_by_role("button", name="Send", exact=True).dblclick()
    expect(alice.get_by_text("And once more.").first).to_be_visible()
    settled(alice)
    alice.reload()
    assert sum("And once more." in row for row in rows(alice)) <= 2  # said, and answered
    expect(alice.locator("#inspector").get_by_text(re.compile("^3 "))).to_have_count(0)


@pytest.mark.parametrize("where", ["the first screen", "a session"])
def test_a_runbook_that_does_not_check_is_refused_beside_its_text(outspoken: People, where: str):
    alice = outspoken.window("alice")
    if where == "a session":
        start(alice, "Hello.")
    wrong = "Some words.\n\n```sh gate=allow\nls\n```\n"
    box = alice.get_by_role("textbox").last
    box.fill(wrong)
    alice.get_by_role("button", name="Send", exact=True).click()
    expect(alice.get_by_text("Line 3")).to_be_visible()
    expect(alice.get_by_role("textbox").last).to_have_value(wrong)


def test_typed_text_survives_a_reload(people: People):
    alice = people.window("alice")
    start(alice, "Hello.")
    alice.get_by_role("textbox").last.press_sequentially("half a thought")
    alice.reload()
    expect(alice.get_by_role("textbox").last).to_have_value("half a thought")


def test_a_decision_on_a_decided_card_says_who_decided(outspoken: People):
    alice, bob = outspoken.window("alice"), outspoken.window("bob")
    address = start(alice, "```sh gate=ask\necho once\n```")
    alice.get_by_role("button", name="Approve", exact=True).wait_for()
    # A window that hears of nothing: its socket is never opened.
    bob.route_web_socket(re.compile("/ws/"), lambda route: None)
    bob.goto(address)
    alice.get_by_role("button", name="Approve", exact=True).click()
    settled(alice)
    bob.get_by_role("button", name="Reject", exact=True).click()
    expect(bob.get_by_text(re.compile("already by alice"))).to_be_visible()


def test_charlie_is_told_that_there_is_no_such_page(outspoken: People):
    alice, charlie = outspoken.window("alice"), outspoken.window("charlie")
    address = start(alice, "A secret plan.")
    answer = charlie.goto(address)
    assert answer is not None
    assert answer.status == 404
    expect(charlie.get_by_text("A secret plan.")).to_have_count(0)

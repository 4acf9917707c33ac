"""Forking and delegating, as people do it."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from .conftest import People, rows, settled, start


def send(page: Page, instruction: str) -> None:
    page.get_by_role("textbox", name="Instruction").first.fill(instruction)
    page.get_by_role("button", name="Send", exact=True).click()


def approve(page: Page) -> None:
    """Decide what is asked, where steps are not confined, until the session has come to rest."""
    card = page.get_by_role("button", name="Approve", exact=True)
    rest = page.locator("#session-header").get_by_text("Waiting for input")
    while True:
        expect(card.or_(rest).first).to_be_visible()
        if rest.is_visible():
            return
        card.first.click()
        expect(card).to_have_count(0)


def test_a_fork_goes_on_with_the_story_and_the_files(people: People):
    alice = people.window("alice")
    parent = start(alice, "A note.\n\n```sh\necho from the parent > note.txt\n```")
    approve(alice)
    before = rows(alice)
    alice.get_by_role("button", name="Fork from here").click()
    alice.wait_for_url(lambda address: "/sessions/" in address and address != parent)
    above = alice.get_by_role("region", name="Before the fork")
    expect(above.get_by_text("A note.").last).to_be_visible()
    expect(above.locator("form")).to_have_count(0)
    expect(alice.get_by_text("Forked by alice at turn 1")).to_be_visible()

    send(alice, "```sh\ncat note.txt\n```")
    alice.locator("#timeline").get_by_text("running").first.wait_for()
    approve(alice)
    timeline = alice.locator("#timeline")
    expect(timeline.get_by_text("from the parent", exact=True)).to_be_visible()
    expect(timeline.get_by_text("Environment resumed")).to_be_visible()
    live = rows(alice)
    alice.reload()
    assert rows(alice) == live

    alice.get_by_role("link", name="another session").first.click()
    alice.wait_for_url(parent)
    assert rows(alice) == before
    expect(
        alice.locator("#lineage-list").get_by_role("link", name=re.compile("^Fork of"))
    ).to_be_visible()


def test_work_is_delegated_from_the_panel_and_what_came_of_it_arrives(people: People):
    alice = people.window("alice", viewport={"width": 1400, "height": 900})
    start(alice, "Just words.")
    settled(alice)
    panel = alice.get_by_role("complementary", name="About this session")
    panel.get_by_text("Delegate…").click()
    panel.get_by_label("Instruction").fill("Over there.")
    panel.get_by_role("button", name="Delegate", exact=True).click()
    row = alice.locator("#timeline").get_by_role("listitem").filter(has_text="Delegated to")
    expect(row).to_contain_text("completed")
    expect(panel.get_by_label("Instruction")).to_be_hidden()
    expect(panel.get_by_role("link", name="Over there.")).to_be_visible()
    row.get_by_role("link", name="Over there.").click()
    expect(alice.get_by_text("Delegated from another session")).to_be_visible()


def test_work_is_delegated_without_javascript(people: People):
    alice = people.window(
        "alice", java_script_enabled=False, viewport={"width": 1400, "height": 900}
    )
    alice.get_by_role("textbox").last.fill("Just words.")
    alice.get_by_role("button", name="Send", exact=True).click()
    alice.wait_for_url("**/sessions/*/")
    panel = alice.get_by_role("complementary", name="About this session")
    panel.get_by_text("Delegate…").click()
    panel.get_by_label("Instruction").fill("Plainly over there.")
    panel.get_by_role("button", name="Delegate", exact=True).click()
    expect(panel.get_by_role("link", name="Plainly over there.")).to_be_visible()

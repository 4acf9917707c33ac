"""Turns as people handle them: how far one is, what comes next, and changing one's mind."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from .conftest import People, settled, start

LONG = "\n\n".join(f"Line {n}." for n in range(40))
ASKS = f"{LONG}\n\n```sh name=first\nseq 40\n```\n\n" + "\n\n".join(
    f"{LONG}\n\n```sh name={name} gate=ask\necho {name}\n```" for name in ("second", "third")
)
WAITS = "```sh\necho under way; sleep 300\n```\n\n```sh\necho never\n```"


def send(page: Page, instruction: str) -> None:
    page.get_by_role("textbox", name="Instruction").fill(instruction)
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.get_by_role("textbox", name="Instruction")).to_have_value("")


def under_way(page: Page) -> None:
    expect(page.get_by_text("under way", exact=True).last).to_be_visible()


def test_the_bar_moves_with_the_turn_and_stays_in_sight(people: People):
    alice = people.window("alice")
    start(alice, ASKS)
    bar = alice.get_by_role("progressbar")
    for step, value in (("Step 2 of 3: second", 0.3333), ("Step 3 of 3: third", 0.6667)):
        expect(bar).to_have_attribute("value", str(value))
        alice.get_by_role("button", name="Approve", exact=True).wait_for()
        expect(bar).to_be_in_viewport()
        expect(bar).to_have_accessible_name(step)
        far = alice.locator("#scroller").evaluate("it => it.scrollTop")
        assert far > 500, "the head of the turn has been scrolled past"
        alice.get_by_role("button", name="Approve", exact=True).click()
    settled(alice)
    expect(bar).to_have_count(0)


def test_a_turn_is_interrupted_from_the_composer(people: People):
    alice = people.window("alice")
    start(alice, "Hello.")
    settled(alice)
    choice = alice.get_by_role("radio", name="Interrupt")
    expect(choice).to_have_count(0)
    send(alice, WAITS)
    under_way(alice)
    send(alice, "Later.")
    alice.get_by_role("textbox", name="Instruction").fill("```sh\necho at once\n```")
    choice.check(force=True)
    expect(alice.get_by_text("stops it and runs next, before the turn that waits")).to_be_visible()
    alice.get_by_role("button", name="Send", exact=True).click()
    settled(alice)
    expect(alice.get_by_text("Turn 4 interrupted it")).to_be_visible()
    lines = alice.get_by_text(re.compile("^Turn . begins$"))
    expect(lines).to_have_text(["Turn 3 begins"])
    calls = alice.locator("#timeline .call").all_inner_texts()
    assert "at once" in calls[-1]


def test_the_choice_to_interrupt_is_meant_for_the_turn_that_was_open(people: People):
    alice = people.window("alice")
    start(alice, "```sh gate=ask\necho one\n```")
    alice.get_by_role("button", name="Approve", exact=True).wait_for()
    send(alice, WAITS)
    alice.get_by_role("radio", name="Interrupt").check(force=True)
    alice.get_by_role("button", name="Approve", exact=True).click()
    under_way(alice)
    expect(alice.get_by_role("radio", name="Queue")).to_be_checked()
    alice.get_by_role("button", name="Stop", exact=True).click()
    settled(alice)


def test_a_queued_turn_is_edited_by_its_author(people: People):
    alice, bob = people.window("alice"), people.window("bob")
    address = start(alice, "```sh gate=ask\necho first\n```")
    alice.get_by_role("button", name="Approve", exact=True).wait_for()
    bob.goto(address)
    send(alice, "```sh\necho tea\n```")
    expect(bob.get_by_role("button", name="Withdraw")).to_be_visible()
    expect(bob.get_by_role("link", name="Edit turn 2")).to_have_count(0)

    alice.get_by_role("link", name="Edit turn 2").click()
    editor = alice.get_by_label("Change turn 2")
    editor.fill("```sh\necho coffee\n```")
    alice.reload()
    alice.get_by_role("link", name="Edit turn 2").click()
    expect(editor).to_have_value("```sh\necho coffee\n```")
    send(bob, "Something else, while she writes.")
    expect(alice.get_by_text("Turn 3", exact=True)).to_be_visible()
    expect(editor).to_have_value("```sh\necho coffee\n```")
    alice.get_by_role("button", name="Save").click()
    expect(editor).to_have_count(0)
    expect(bob.get_by_text("edited")).to_be_visible()
    alice.get_by_role("button", name="Approve", exact=True).click()
    settled(bob)
    expect(bob.get_by_text("echo tea")).to_have_count(0)
    expect(bob.get_by_text("coffee", exact=True).last).to_be_visible()


def test_an_edit_that_comes_too_late_is_kept_and_sent_as_a_new_turn(outspoken: People):
    alice = outspoken.window("alice")
    start(alice, "```sh gate=ask\necho first\n```")
    alice.get_by_role("button", name="Approve", exact=True).wait_for()
    send(alice, "```sh\necho second\n```")
    alice.get_by_role("link", name="Edit turn 2").click()
    editor = alice.get_by_label(re.compile("hange.* turn 2"))
    editor.fill("```sh\necho better\n```")
    alice.get_by_role("button", name="Approve", exact=True).click()
    settled(alice)
    alice.get_by_role("button", name="Save").click()
    expect(alice.get_by_text("Turn 2 is completed already")).to_be_visible()
    expect(editor).to_have_value("```sh\necho better\n```")
    alice.get_by_role("button", name="Send as a new turn").click()
    expect(editor).to_have_count(0)
    expect(alice.get_by_text("better", exact=True).last).to_be_visible()


def test_who_holds_a_turn_is_asked_for_only_while_it_runs(people: People):
    alice = people.window("alice", viewport={"width": 1440, "height": 900})
    start(alice, WAITS)
    under_way(alice)
    with alice.expect_response(re.compile("/holder/$")) as answer:
        pass
    assert answer.value.status == 200
    holder = alice.locator("#holder")
    expect(holder).to_contain_text(re.compile(r"Lease ends\s+in \d s"))
    expect(holder).to_have_attribute("data-looks", "")
    alice.get_by_label("Stop with a reason").click()
    alice.get_by_label("Why is turn 1 stopped?").fill("Long enough")
    alice.get_by_role("button", name="Stop with this reason").click()
    settled(alice)
    expect(alice.get_by_text("Long enough")).to_be_visible()
    expect(holder).to_have_count(0)


def test_retry_is_offered_once_and_leads_to_the_new_turn(people: People):
    alice = people.window("alice")
    start(alice, "```sh\nexit 3\n```")
    alice.get_by_role("button", name="Retry").click()
    link = alice.get_by_role("link", name="Retried as turn 2")
    expect(link).to_be_visible()
    expect(alice.locator("#timeline .call[data-status=failed]")).to_have_count(2)
    alice.reload()
    expect(alice.get_by_role("button", name="Retry")).to_have_count(1)
    link.click()
    target = alice.locator(link.get_attribute("href") or "")
    expect(target).to_contain_text("Turn 2 · alice")
    expect(target).to_be_in_viewport()

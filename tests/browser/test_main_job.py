"""The main job as people do it: alice submits, bob decides, both see the same."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from .conftest import People, rows, settled, start

RUNBOOK = """# A note and a decision

First a file of our own.

```sh name=write
mkdir -p artifacts
echo hello from the first turn > artifacts/note.txt
git init -q -b main repository && cd repository
echo one > words.txt
```

Then what somebody has to look at.

```sh name=sign gate=ask why="It changes what was written."
echo two >> repository/words.txt
cat repository/words.txt
```

That was all.
"""


def test_alice_submits_and_bob_approves_and_both_see_the_same(people: People):
    alice, bob = people.window("alice"), people.window("bob")
    address = start(alice, RUNBOOK)
    alice.get_by_role("button", name="Approve", exact=True).wait_for()

    bob.get_by_role("link", name=re.compile("A note and a decision")).first.click()
    expect(bob.get_by_text("It changes what was written.")).to_be_visible()
    bob.get_by_role("button", name="Approve", exact=True).click()
    settled(bob)
    settled(alice)
    expect(alice.get_by_text("approved by bob")).to_be_visible()
    expect(alice.get_by_text("That was all.").last).to_be_visible()
    expect(alice.get_by_role("button", name="Approve", exact=True)).to_have_count(0)
    assert rows(alice) == rows(bob)
    live = rows(alice)
    alice.reload()
    assert rows(alice) == live

    alice.get_by_role("link", name="note.txt").first.click()
    expect(alice.get_by_text("hello from the first turn")).to_be_visible()
    with alice.expect_download() as download:
        alice.get_by_role("link", name="Download").click()
    assert download.value.path().read_text() == "hello from the first turn\n"
    alice.goto(address)
    alice.get_by_role("link", name=re.compile(r"turn-1\.diff")).first.click()
    expect(alice.get_by_text("+two")).to_be_visible()

    alice.goto(address)
    alice.get_by_role("textbox").last.fill("```sh\ncat artifacts/note.txt\n```")
    alice.get_by_role("button", name="Send", exact=True).click()
    expect(
        alice.locator("#timeline .terminal, #timeline pre")
        .get_by_text("hello from the first turn")
        .last
    ).to_be_visible()
    expect(alice.get_by_role("textbox").last).to_have_value("")


def test_a_rejection_is_told_with_who_and_why_and_the_step_does_not_run(people: People):
    alice, bob = people.window("alice"), people.window("bob")
    start(alice, "```sh gate=ask on-reject=continue\necho it ran\n```\n\nAnd on we go.")
    bob.get_by_role("link", name="Approvals").first.click()
    card = bob.locator("article").filter(has_text="echo it ran").first
    card.get_by_role("textbox").fill("not on a Friday")
    card.get_by_role("button", name="Reject", exact=True).click()
    settled(alice)
    expect(alice.get_by_text("rejected by bob").first).to_be_visible()
    expect(alice.get_by_text("not on a Friday").first).to_be_visible()
    expect(alice.get_by_text("And on we go.").last).to_be_visible()
    expect(alice.get_by_text("exit 0")).to_have_count(0)


def test_an_example_starts_with_one_click_and_is_watched_live(people: People):
    alice = people.window("alice")
    alice.get_by_role("button", name=re.compile("release", re.I)).first.click()
    alice.wait_for_url("**/sessions/*/")
    alice.get_by_role("button", name="Approve", exact=True).click()
    settled(alice)
    expect(alice.get_by_text(re.compile("Environment started"))).to_be_visible()
    expect(alice.get_by_text("exit 0").first).to_be_visible()


def test_live_output_is_shown_while_a_step_runs_and_stop_ends_it(people: People):
    alice = people.window("alice")
    start(alice, "```sh\necho under way; sleep 300\n```")
    expect(alice.get_by_text("under way", exact=True).last).to_be_visible()
    alice.get_by_role("button", name=re.compile("Stop")).first.click()
    settled(alice)
    expect(alice.get_by_text(re.compile("cancelled by alice", re.I)).first).to_be_visible()


def test_the_inbox_works_without_javascript(people: People):
    alice = people.window("alice")
    start(alice, "```sh gate=ask\necho plain\n```")
    alice.get_by_role("button", name="Approve", exact=True).wait_for()
    bob = people.window("bob", java_script_enabled=False)
    bob.get_by_role("link", name="Approvals").first.click()
    bob.locator("article").filter(has_text="echo plain").first.get_by_role(
        "button", name="Approve", exact=True
    ).click()
    settled(alice)
    expect(alice.get_by_text("approved by bob")).to_be_visible()


def test_a_session_is_started_and_continued_without_javascript(people: People):
    alice = people.window("alice", java_script_enabled=False)
    alice.get_by_role("textbox").last.fill("```sh\necho first\n```")
    alice.get_by_role("button", name="Send", exact=True).click()
    alice.wait_for_url("**/sessions/*/")
    alice.get_by_role("textbox").last.fill("```sh\necho second\n```")
    alice.get_by_role("button", name="Send", exact=True).click()
    expect(alice.get_by_text("echo second").first).to_be_visible()

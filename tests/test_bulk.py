"""Many are decided at once: exactly those that were on screen, each told what became of it."""

from __future__ import annotations

import html
from typing import Any

import pytest
from django.test import Client

from approvals_app.decisions import decide
from approvals_app.inbox import ROWS
from approvals_app.models import ApprovalRequest, Decision
from sessions_app.models import Agent, Session

from .conftest import signed_in
from .scenes import action, asked, everything, open_session

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}


@pytest.fixture
def three(agent: Agent, alice: Any) -> list[ApprovalRequest]:
    return [asked(open_session(agent, alice, f"Number {n}")) for n in range(3)]


def ticked(*requests: ApprovalRequest) -> list[str]:
    return [f"{request.pk}:{request.digest}" for request in requests]


def send(client: Client, values: list[str], verdict: str = "approve", **more: str) -> str:
    form = {"verdict": verdict, "ticked": values, **more}
    answer = client.post("/approvals/decisions/", form, headers=HTMX)
    assert answer.status_code == 200, answer.content
    assert answer["HX-Trigger-After-Settle"] == "lists-changed"
    return html.unescape(answer.content.decode())


def states(requests: list[ApprovalRequest]) -> list[str]:
    found = ApprovalRequest.objects.in_bulk([request.pk for request in requests])
    return [found[request.pk].state for request in requests]


def test_only_what_was_ticked_is_decided(three, bob):
    said = send(signed_in(bob), ticked(*three[:2]), reason="Both fine.")
    assert "<b>2</b> applied, <b>0</b> skipped, <b>0</b> conflicted." in said
    assert states(three) == ["APPROVED", "APPROVED", "PENDING"]
    told = Decision.objects.values_list("by__username", "channel", "reason", "address")
    assert list(told) == [("bob", "bulk", "Both fine.", "127.0.0.1")] * 2
    assert {s.state for s in Session.objects.filter(approval_requests__state="APPROVED")} == {
        "ACTIVE"
    }


def test_each_is_told_what_became_of_it(three, alice, bob):
    first, second, _ = three
    decide(first.pk, by=bob, verdict="approve", digest=first.digest)
    decide(second.pk, by=alice, verdict="reject", digest=second.digest, reason="Not today.")
    said = send(signed_in(bob), ticked(*three))
    assert "<b>1</b> applied, <b>1</b> skipped, <b>1</b> conflicted." in said
    assert "rejected already by alice: Not today" in said
    assert states(three) == ["APPROVED", "REJECTED", "APPROVED"]
    assert Decision.objects.count() == 3


def test_a_version_that_was_not_on_screen_is_not_decided(three, bob):
    values = [f"{three[0].pk}:{action('rm -rf /').digest()}", *ticked(three[1])]
    said = send(signed_in(bob), values)
    assert "The action is not the one that was shown" in said
    assert states(three[:2]) == ["PENDING", "APPROVED"]


def test_an_outsider_decides_and_learns_nothing(three, charlie):
    before = everything()
    said = send(signed_in(charlie), [*ticked(*three), "apr_gone:x", "nonsense", ":"])
    assert "<b>0</b> applied" in said
    assert said.count("There is no such request.") == 6
    assert "Number" not in said
    assert everything() == before


def test_the_same_twice_counts_once(three, bob):
    said = send(signed_in(bob), ticked(three[0], three[0]))
    assert "<b>1</b> applied, <b>0</b> skipped" in said
    assert Decision.objects.count() == 1


def test_sending_it_again_changes_nothing(three, bob):
    send(signed_in(bob), ticked(*three), "reject")
    before = everything()
    said = send(signed_in(bob), ticked(*three), "reject")
    assert "<b>3</b> skipped" in said
    assert "you decided this the same way before" in said
    assert everything() == before


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"verdict": "approve"}, "Tick the requests"),
        ({"ticked": "apr_1:x"}, "Choose Approve or Reject"),
        ({"verdict": "perhaps", "ticked": "apr_1:x"}, "Choose Approve or Reject"),
        (
            {"verdict": "approve", "ticked": [f"apr_{n}:x" for n in range(ROWS + 1)]},
            f"{ROWS} requests at a time",
        ),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(three, bob, form, said):
    before = everything()
    answer = signed_in(bob).post("/approvals/decisions/", form, headers=HTMX)
    assert answer.status_code == 400
    assert said in answer.content.decode()
    assert everything() == before


def test_it_works_without_javascript(three, bob):
    form = {"verdict": "approve", "ticked": ticked(*three)}
    shown = signed_in(bob).post("/approvals/decisions/", form).content.decode()
    assert "<b>3</b> applied" in shown
    assert 'href="/approvals/"' in shown


def test_rows_can_be_ticked_by_those_only_who_may_decide_them(three, agent, alice, bob):
    for address in ("/approvals/", "/approvals/?view=pending"):
        shown = signed_in(bob).get(address).content.decode()
        assert all(f'value="{value}"' in shown for value in ticked(*three))
    agent.members.remove(alice)
    shown = signed_in(alice).get("/approvals/?view=pending").content.decode()
    assert "Number 1" in shown
    assert 'name="ticked"' not in shown

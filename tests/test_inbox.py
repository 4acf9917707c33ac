"""The inbox: narrowed by what it offers, a page at a time, at the same cost however long it is."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from approvals_app.inbox import ROWS
from approvals_app.models import ApprovalRequest
from sessions_app.models import Agent, Session

from .conftest import signed_in
from .scenes import action, open_session

pytestmark = pytest.mark.django_db


def pending(session: Session, title: str, *, minutes: float = 0, **changes: Any) -> ApprovalRequest:
    """A request of the session's turn, without the runbook that would ask it."""
    asked = action(f"echo {title}", **changes)
    request = ApprovalRequest.objects.create(
        session=session,
        turn=session.turns.get(),
        key=title,
        title=title,
        rule="the step is not confined",
        action=asked.canonical(),
        digest=asked.digest(),
    )
    asked_at = timezone.now() - timedelta(minutes=minutes)
    ApprovalRequest.objects.filter(pk=request.pk).update(created_at=asked_at)
    return request


@pytest.fixture
def other(bob: User) -> Agent:
    other = Agent.objects.create(name="Other", runner="runbook")
    other.members.set([bob])
    return other


@pytest.fixture
def three(agent: Agent, other: Agent, alice: User, bob: User) -> None:
    mine, theirs = open_session(agent, alice), open_session(other, bob)
    pending(mine, "first", minutes=90, confined=False, network=True)
    pending(mine, "second", confined=True, network=False)
    pending(theirs, "third", minutes=60 * 24 * 3, confined=True, network=True)


def titles(client: Client, **query: object) -> list[str]:
    shown = client.get("/approvals/", {name: str(value) for name, value in query.items()})
    assert shown.status_code == 200
    return re.findall(r"Permission to run <code>(.*?)</code>", shown.content.decode())


def test_all_of_them_are_listed_the_oldest_first(three, bob, alice):
    assert titles(signed_in(bob)) == ["third", "first", "second"]
    assert titles(signed_in(alice)) == ["first", "second"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"risk": "unconfined"}, ["first"]),
        ({"risk": "network"}, ["third", "first"]),
        ({"risk": "contained"}, ["second"]),
        ({"age": "hour"}, ["third", "first"]),
        ({"age": "day"}, ["third"]),
        ({"age": "week"}, []),
        ({"age": "hour", "risk": "unconfined"}, ["first"]),
    ],
    ids=str,
)
def test_they_are_narrowed(three, bob, query, found):
    assert titles(signed_in(bob), **query) == found
    assert titles(signed_in(bob), view="pending", **query) == found


def test_they_are_narrowed_by_agent(three, bob, agent, other):
    assert titles(signed_in(bob), agent=other.pk) == ["third"]
    assert titles(signed_in(bob), agent=agent.pk) == ["first", "second"]


def test_an_agent_that_one_may_not_see_is_no_choice_and_says_so(three, alice, other):
    shown = signed_in(alice).get("/approvals/", {"agent": other.pk}).content.decode()
    assert "Other" not in shown
    assert "Agent: Select a valid choice" in shown
    assert titles(signed_in(alice), agent=other.pk) == ["first", "second"]


@pytest.mark.parametrize(
    "query",
    [
        {"risk": "x"},
        {"age": "\x00"},
        {"page": "x"},
        {"page": "-1"},
        {"page": 10**30},
        {"view": "x"},
    ],
    ids=str,
)
def test_nonsense_in_the_address_is_no_error_of_the_server(three, bob, query):
    assert len(titles(signed_in(bob), **query)) == 3


def test_nothing_like_that_leads_back_to_all_of_them(three, bob):
    shown = signed_in(bob).get("/approvals/", {"age": "week"}).content.decode()
    assert "Nothing here is like that" in shown
    assert "Show all of them" in shown


def test_a_refresh_asks_for_the_same_rows(three, bob, agent):
    shown = signed_in(bob).get("/approvals/", {"agent": agent.pk, "risk": "unconfined"})
    [address] = re.findall(r'hx-get="(/approvals/\?[^"]*)"', shown.content.decode())
    assert f"agent={agent.pk}" in address
    fresh = signed_in(bob).get(address.replace("&amp;", "&"), headers={"HX-Request": "true"})
    assert re.findall(r"<code>(\w+)</code>", fresh.content.decode())[:1] == ["first"]
    assert "second" not in fresh.content.decode()


def many(session: Session, count: int) -> None:
    """Add requests in one statement: what is measured is how they are listed."""
    asked = action("echo hello")
    turn = session.turns.get()
    ApprovalRequest.objects.bulk_create(
        ApprovalRequest(
            session=session,
            turn=turn,
            key=f"step-{number}",
            title=f"number {number}",
            rule="the step is not confined",
            action=asked.canonical(),
            digest=asked.digest(),
        )
        for number in range(count)
    )


def test_a_long_list_comes_in_pages(agent, alice):
    many(open_session(agent, alice), ROWS + 2)
    client = signed_in(alice)
    first, second = titles(client), titles(client, page=2)
    assert (len(first), len(second)) == (ROWS, 2)
    assert not set(first) & set(second)
    assert titles(client, page=99) == second
    shown = client.get("/approvals/", {"age": ""}).content.decode()
    assert f"1 to {ROWS} of {ROWS + 2}" in shown
    assert "page=2" in shown


def test_ten_thousand_pending_take_as_many_queries_as_one_page(agent, alice):
    session = open_session(agent, alice)
    many(session, ROWS)
    client = signed_in(alice)

    def queries() -> int:
        client.get("/approvals/")
        with CaptureQueriesContext(connection) as captured:
            assert len(titles(client)) == ROWS
        return len(captured)

    few = queries()
    ApprovalRequest.objects.all().delete()
    many(session, 10_000)
    assert queries() == few
    assert few <= 16

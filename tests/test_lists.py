"""The lists of sessions: what is found through indexes is what reading everything would find."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db.models import Q
from django.utils import timezone

from sessions_app.models import Agent, Session
from sessions_app.views import context
from sessions_app.views.context import BUSY, rail_context

pytestmark = pytest.mark.django_db


@pytest.fixture
def many(agent, alice, bob, charlie, staff) -> None:
    """Of every state some, of two agents and four people, none as old as another."""
    other = Agent.objects.create(name="Other", runner="runbook")
    kinds = itertools.product(Session.State, (agent, other), (alice, charlie, staff), range(2))
    now = timezone.now()
    for minutes, (state, of, owner, _) in enumerate(kinds):
        # In an order in which states, agents and owners are mixed.
        moment = now - timedelta(minutes=minutes * 37 % 101)
        Session.objects.create(
            agent=of, owner=owner, title=f"{minutes}", state=state, last_activity_at=moment
        )


def expected(person: User, states: Q, most: int) -> list[str]:
    found = Session.objects.visible_to(person).filter(states).order_by("-last_activity_at")
    return list(found.values_list("title", flat=True)[:most])


@pytest.mark.parametrize("who", ["alice", "bob", "charlie", "admin"])
@pytest.mark.parametrize("most", [3, 7, 50])
def test_each_group_holds_the_newest_that_its_person_sees(many, who, most, monkeypatch):
    monkeypatch.setattr(context, "RAIL_ROWS", most)
    person = User.objects.get(username=who)
    busy, archived = Q(state__in=BUSY), Q(state=Session.State.ARCHIVED)
    lists = {group["slug"]: group["sessions"] for group in rail_context(person)["groups"]}
    hidden = rail_context(person, archived=True)["groups"][0]["sessions"]
    asking = [session.title for session in lists["needs"]]
    assert asking == []
    assert [s.title for s in lists["running"]] == expected(person, busy, most)
    assert [s.title for s in lists["recent"]] == expected(person, ~busy & ~archived, most)
    assert [s.title for s in hidden] == expected(person, archived, most)


def test_a_session_that_asks_is_in_its_own_group_and_leaves_no_gap_in_another(
    many, agent, bob, monkeypatch
):
    monkeypatch.setattr(context, "RAIL_ROWS", 4)
    asks = Session.objects.filter(agent=agent, state=Session.State.WAITING_FOR_PERMISSION)
    for session in asks:
        session.turns.create(number=1, instruction="x", state="WAITING_FOR_PERMISSION")
    lists = {group["slug"]: group["sessions"] for group in rail_context(bob)["groups"]}
    assert {session.pk for session in lists["needs"]} <= set(asks.values_list("pk", flat=True))
    assert len(lists["needs"]) == len(lists["running"]) == 4
    assert not {s.pk for s in lists["needs"]} & {s.pk for s in lists["running"]}

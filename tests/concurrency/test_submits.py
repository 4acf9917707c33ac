"""The same form sent many times at once makes one session, or one turn."""

from __future__ import annotations

from functools import partial

import pytest
from django.test import Client

from sessions_app.models import Agent, NotPossible, Session, Turn

from ..conftest import signed_in
from ..crowd import errors_in, together
from ..scenes import jobs, open_session, types

pytestmark = pytest.mark.django_db(transaction=True)

CLICKS = 8
FIRST = ["session.created", "turn.queued", "message.created", "session.activated"]


def start(agent: Agent, owner, instruction: str = "Look at it.", key: str = "form-1"):
    return Session.objects.start(
        agent=agent, owner=owner, instruction=instruction, idempotency_key=key
    )


def test_the_same_first_form_eight_times_at_once_opens_one_session(agent: Agent, alice):
    results = together(*[partial(start, agent, alice)] * CLICKS)
    assert errors_in(results) == []
    assert len({session.pk for session, _ in results}) == 1
    assert sorted(new for _, new in results) == [False] * (CLICKS - 1) + [True]
    session = Session.objects.get()
    assert types(session) == FIRST
    assert session.turns.count() == 1
    assert jobs(session) == 1


def test_eight_different_instructions_with_one_key_open_one_session(agent: Agent, alice):
    words = [f"Look at {number}." for number in range(CLICKS)]
    results = together(*(partial(start, agent, alice, word) for word in words))
    assert {type(error) for error in errors_in(results)} == {NotPossible}
    assert len(errors_in(results)) == CLICKS - 1
    [won] = [result[0] for result in results if not isinstance(result, Exception)]
    assert Session.objects.get() == won
    assert types(won) == FIRST


def test_the_same_key_of_two_people_is_two_sessions(agent: Agent, alice, bob):
    results = together(partial(start, agent, alice), partial(start, agent, bob))
    assert errors_in(results) == []
    assert {session.owner for session in Session.objects.all()} == {alice, bob}


def test_the_same_turn_form_eight_times_at_once_adds_one_turn(agent: Agent, alice):
    session = open_session(agent, alice)
    before = len(types(session))

    def submit() -> tuple[Turn, bool]:
        mine = Session.objects.get(pk=session.pk)
        return mine.submit("And then this.", author=alice, idempotency_key="form-2")

    results = together(*[submit] * CLICKS)
    assert errors_in(results) == []
    assert len({turn.pk for turn, _ in results}) == 1
    assert sum(new for _, new in results) == 1
    assert session.turns.count() == 2
    assert types(session)[before:] == ["turn.queued", "message.created"]
    assert jobs(session) == 2


def test_eight_different_turns_at_once_are_numbered_in_the_order_of_their_events(agent, alice):
    session = open_session(agent, alice)

    def submit(number: int) -> Turn:
        mine = Session.objects.get(pk=session.pk)
        return mine.submit(f"Number {number}.", author=alice, idempotency_key=f"form-{number}")[0]

    results = together(*(partial(submit, number) for number in range(CLICKS)))
    assert errors_in(results) == []
    assert sorted(turn.number for turn in results) == list(range(2, CLICKS + 2))
    queued = session.events.filter(type="turn.queued").order_by("seq")
    assert [event.data["number"] for event in queued] == list(range(1, CLICKS + 2))
    session.refresh_from_db()
    assert session.last_turn == CLICKS + 1
    assert jobs(session) == CLICKS + 1


def test_one_click_too_many_in_the_browser_ends_on_the_same_page(agent: Agent, alice):
    def click(client: Client):
        form = {"agent": agent.pk, "instruction": "Look at it.", "submission": "form-1"}
        return client.post("/sessions/", form)

    clients = [signed_in(alice) for _ in range(4)]
    answers = together(*(partial(click, client) for client in clients))
    assert errors_in(answers) == []
    session = Session.objects.get()
    assert {(answer.status_code, answer["Location"]) for answer in answers} == {
        (302, f"/sessions/{session.pk}/")
    }
    assert session.turns.count() == 1

"""Parents and children that end, are closed or delegate at the same moment: nobody waits for ever.

PostgreSQL ends a deadlock with an error in one of the threads, so an error here is one.
"""

from __future__ import annotations

import itertools
import threading
from functools import partial
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import transaction

from sessions_app import delegation, events
from sessions_app.delegation import delegate
from sessions_app.models import Agent, Fenced, NotPossible, Session, Turn

from ..crowd import elsewhere, errors_in, together, until_somebody_waits
from ..scenes import claimed, finished, held, open_session, types

pytestmark = pytest.mark.django_db(transaction=True)

ROUNDS = 15


def child_of(turn: Turn, by: User, key: str = "k") -> Session:
    return delegate(turn, agent="Runbook", instruction="Over there.", by=by, key=key, ref=key)


def told(session: Session) -> list[str]:
    found = session.events.filter(type="handoff_summary.created").order_by("seq")
    return [event.data["session_id"] for event in found]


def gapless(session: Session) -> None:
    seqs = list(session.events.order_by("seq").values_list("seq", flat=True))
    session.refresh_from_db()
    assert seqs == list(range(1, session.last_seq + 1))


def again(turn: Turn) -> Turn:
    """The turn as another thread would have it, with nothing cached."""
    return Turn.objects.select_related("session__agent", "author").get(pk=turn.pk)


def end(turn: Turn, state: str = "COMPLETED") -> Turn:
    return finished(again(turn), state)


def test_a_parent_and_its_child_end_at_the_same_moment(agent: Agent, alice: User):
    for number in range(ROUNDS):
        session = open_session(agent, alice)
        turn = claimed(session)
        child = child_of(turn, alice)
        below = claimed(child)
        results = together(partial(end, turn), partial(end, below), backwards=number % 2 == 1)
        assert errors_in(results) == []
        assert told(session) == [child.pk]
        assert types(session).count("turn.completed") == 1
        gapless(session)
        gapless(child)


def test_two_children_end_at_the_same_moment(agent: Agent, alice: User):
    for number in range(ROUNDS):
        session = open_session(agent, alice)
        turn = claimed(session)
        children = [child_of(turn, alice, key) for key in ("one", "two", "three")]
        below = [claimed(child) for child in children]
        results = together(*(partial(end, one) for one in below), backwards=number % 2 == 1)
        assert errors_in(results) == []
        assert sorted(told(session)) == sorted(child.pk for child in children)
        gapless(session)


def test_a_whole_chain_ends_at_the_same_moment(agent: Agent, alice: User):
    for number in range(ROUNDS):
        chain = [open_session(agent, alice)]
        turns = [claimed(chain[0])]
        for _ in range(3):
            chain.append(child_of(turns[-1], alice))
            turns.append(claimed(chain[-1]))
        results = together(*(partial(end, turn) for turn in turns), backwards=number % 2 == 1)
        assert errors_in(results) == []
        for above, below in itertools.pairwise(chain):
            assert told(above) == [below.pk]
            gapless(above)


def test_a_child_ends_while_its_parent_delegates_and_is_closed(agent: Agent, alice: User):
    for number in range(ROUNDS):
        session = open_session(agent, alice)
        turn = claimed(session)
        child = child_of(turn, alice)
        below = claimed(child)

        def close(session: Session = session) -> None:
            Session.objects.get(pk=session.pk).close("COMPLETED", by=alice)

        more = partial(child_of, again(turn), alice, "more")
        results = together(partial(end, below), more, close, backwards=number % 2 == 1)
        assert errors_in(results) == []
        assert told(session) == [child.pk]
        assert session.children.count() == 2
        gapless(session)


def test_a_child_that_is_closed_and_ends_at_once_is_told_once(agent: Agent, alice: User):
    for number in range(ROUNDS):
        session = open_session(agent, alice)
        child = child_of(claimed(session), alice)
        below = claimed(child)

        def close(child: Session = child) -> None:
            Session.objects.get(pk=child.pk).close("CANCELLED", by=alice)

        results = together(partial(end, below), close, backwards=number % 2 == 1)
        assert all(isinstance(error, Fenced) for error in errors_in(results))
        assert told(session) == [child.pk]


def test_the_same_key_eight_times_at_once_opens_one_child(agent: Agent, alice: User):
    turn = claimed(open_session(agent, alice))
    results = together(*[lambda: child_of(again(turn), alice)] * 8)
    assert errors_in(results) == []
    assert len({child.pk for child in results}) == 1
    assert types(turn.session).count("session.delegated") == 1


def test_the_limit_holds_when_many_delegate_at_once(agent: Agent, alice: User, monkeypatch):
    monkeypatch.setattr(delegation, "MOST_PER_TURN", 3)
    turn = claimed(open_session(agent, alice))
    results = together(*(partial(child_of, again(turn), alice, f"k{n}") for n in range(8)))
    assert {type(error) for error in errors_in(results)} == {NotPossible}
    assert len(errors_in(results)) == 5
    assert turn.session.children.count() == 3


def test_a_child_waits_for_its_parent_and_never_the_other_way_round(agent: Agent, alice: User):
    """The child holds its own row while it waits; whoever holds the parent asks for no child."""
    session = open_session(agent, alice)
    turn = claimed(session)
    below = claimed(child_of(turn, alice))
    with transaction.atomic():
        Session.objects.lock(session.pk)
        ending: list[Any] = []
        thread = threading.Thread(target=lambda: ending.extend(together(partial(end, below))))
        thread.start()
        until_somebody_waits()
        # Under the parent's lock all of this is done without the child's.
        child_of(again(turn), alice, "more")
        with held(again(turn)) as locked:
            locked.record(events.MessageCreated(role="assistant", text="Still here."), turn=turn)
    thread.join(30)
    assert errors_in(ending) == []
    assert len(told(session)) == 1


def test_nothing_is_told_when_the_end_is_rolled_back(agent: Agent, alice: User):
    session = open_session(agent, alice)
    below = claimed(child_of(claimed(session), alice))

    def ends_and_takes_it_back() -> None:
        with transaction.atomic():
            end(below)
            transaction.set_rollback(True)

    elsewhere(ends_and_takes_it_back)
    assert told(session) == []
    end(below)
    assert told(session) == [below.session_id]

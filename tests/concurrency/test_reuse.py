"""Create or reuse, many callers at once: one session, no work lost, each is told which it was."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from django.db import transaction

from sessions_app import forking
from sessions_app.models import Agent, NotPossible, Session

from ..crowd import errors_in, together, until_locked, until_somebody_waits
from ..scenes import claimed, everything, finished, jobs, open_session, types

pytestmark = pytest.mark.django_db(transaction=True)

CALLERS = 20
ROUNDS = 6
KEY = "incident-7"


def start(
    agent: Agent, owner: Any, instruction: str = "Look.", **more: Any
) -> tuple[Session, bool]:
    more = {"reuse_key": KEY, **more}
    return Session.objects.start(agent=agent, owner=owner, instruction=instruction, **more)


def told_once(session: Session, event: str) -> None:
    assert types(session).count(event) == 1


# -- many at once ----------------------------------------------------------------------------------


def test_twenty_at_once_make_one_session_with_twenty_turns_and_one_says_new(agent, alice, bob):
    doings = [
        partial(start, agent, (alice, bob)[number % 2], f"Look at {number}.")
        for number in range(CALLERS)
    ]
    results = together(*doings)
    assert errors_in(results) == []
    session = Session.objects.get()
    assert {found.pk for found, _ in results} == {session.pk}
    assert sorted(new for _, new in results) == [False] * (CALLERS - 1) + [True]
    assert list(session.turns.values_list("number", flat=True)) == list(range(1, CALLERS + 1))
    assert {turn.instruction for turn in session.turns.all()} == {
        f"Look at {number}." for number in range(CALLERS)
    }
    told_once(session, "session.created")
    assert jobs(session) == CALLERS


def test_twenty_repeats_of_one_call_at_once_make_one_session_with_one_turn(agent, alice):
    results = together(*[partial(start, agent, alice, idempotency_key="call-1")] * CALLERS)
    assert errors_in(results) == []
    session = Session.objects.get()
    assert {found.pk for found, _ in results} == {session.pk}
    assert sum(new for _, new in results) == 1
    assert session.turns.count() == 1
    assert types(session) == [
        "session.created", "turn.queued", "message.created", "session.activated",
    ]  # fmt: skip
    assert jobs(session) == 1


def test_the_same_call_with_other_words_at_once_is_a_conflict_for_all_but_one(agent, alice):
    doings = [
        partial(start, agent, alice, f"Look at {n}.", idempotency_key="call-1") for n in "abcd"
    ]
    results = together(*doings)
    assert [type(error) for error in errors_in(results)] == [NotPossible] * 3
    assert Session.objects.get().turns.count() == 1


def test_opening_without_a_turn_at_once_opens_one(agent, alice):
    def open_one() -> tuple[Session, bool]:
        return Session.objects.open(agent=agent, owner=alice, title="Incident", reuse_key=KEY)

    results = together(*[open_one] * CALLERS)
    assert errors_in(results) == []
    assert sum(new for _, new in results) == 1
    assert types(Session.objects.get()) == ["session.created"]


def test_opening_with_one_idempotency_key_at_once_opens_one(agent, alice):
    def open_one() -> tuple[Session, bool]:
        return Session.objects.open(agent=agent, owner=alice, idempotency_key="call-1")

    results = together(*[open_one] * 8)
    assert errors_in(results) == []
    assert sum(new for _, new in results) == 1
    other = Agent.objects.create(name="Other")
    with pytest.raises(NotPossible, match="sent before"):
        Session.objects.open(agent=other, owner=alice, idempotency_key="call-1")


def test_a_key_that_was_used_for_something_else_is_a_conflict_and_adds_nothing(agent, alice):
    Session.objects.open(agent=agent, owner=alice, idempotency_key="call-1")
    first = open_session(agent, alice)
    turn = finished(claimed(first))
    forking.fork(turn, by=alice, idempotency_key="call-2")
    before = everything()
    for key in ("call-1", "call-2"):
        with pytest.raises(NotPossible, match="sent before"):
            start(agent, alice, reuse_key=None, idempotency_key=key)
    with pytest.raises(NotPossible, match="sent before"):
        Session.objects.open(agent=agent, owner=alice, idempotency_key="call-2")
    assert everything() == before


def test_each_agent_and_each_key_has_a_session_of_its_own(agent, alice):
    other = Agent.objects.create(name="Other")
    found = {start(agent, alice)[0], start(other, alice)[0], start(agent, alice, reuse_key="b")[0]}
    found |= {start(agent, alice, reuse_key=None)[0], start(agent, alice, reuse_key="")[0]}
    assert len(found) == 5


# -- when a key is free ----------------------------------------------------------------------------


def completed(session: Session, by: Any) -> None:
    session.close("COMPLETED", by=by)


def cancelled(session: Session, by: Any) -> None:
    session.close("CANCELLED", by=by)


def archived(session: Session, by: Any) -> None:
    finished(claimed(session))
    session.archive(by=by)


FINISHING = pytest.mark.parametrize("finish", [completed, cancelled, archived])


@FINISHING
def test_the_key_of_a_finished_session_is_free_again(agent, alice, finish):
    first, _ = start(agent, alice)
    finish(first, alice)
    second, new = start(agent, alice)
    assert new
    assert second.pk != first.pk
    first.refresh_from_db()
    assert first.reuse_key == KEY, "what it was about is still known"


@pytest.mark.parametrize("outcome", ["COMPLETED", "FAILED"])
def test_a_session_at_rest_is_gone_on_with(agent, alice, outcome):
    first, _ = start(agent, alice)
    finished(claimed(first), outcome)
    assert start(agent, alice) == (first, False)


@FINISHING
def test_a_repeat_of_a_call_after_its_session_was_finished_opens_nothing(agent, alice, finish):
    first, _ = start(agent, alice, idempotency_key="call-1")
    finish(first, alice)
    before = everything()
    assert start(agent, alice, idempotency_key="call-1") == (first, False)
    assert everything() == before


# -- coming back when the key was taken ------------------------------------------------------------

TAKEN = f"a newer session goes on under its reuse key “{KEY}”"


def last(session: Session) -> Any:
    return session.events.filter(type__startswith="session.").order_by("seq").last()


@pytest.mark.parametrize("finish", [completed, cancelled])
def test_a_reopened_session_gives_up_a_key_that_was_taken_meanwhile_and_says_so(
    agent, alice, bob, finish
):
    first, _ = start(agent, alice)
    finish(first, alice)
    second, _ = start(agent, alice)
    first.submit("One more thing.", author=bob)
    first.refresh_from_db()
    second.refresh_from_db()
    assert (first.state, first.reuse_key, second.reuse_key) == ("ACTIVE", None, KEY)
    assert (last(first).type, last(first).data) == (
        "session.activated", {"by": "bob", "reason": TAKEN},
    )  # fmt: skip
    assert start(agent, alice) == (second, False)


def test_an_unarchived_session_gives_up_a_key_that_was_taken_meanwhile_and_says_so(
    agent, alice, bob
):
    first, _ = start(agent, alice)
    archived(first, alice)
    second, _ = start(agent, alice)
    first.unarchive(by=bob)
    assert (first.state, first.reuse_key) == ("WAITING_FOR_INPUT", None)
    assert last(first).data == {"by": "bob", "reason": TAKEN}
    assert Session.objects.get(pk=second.pk).reuse_key == KEY


def test_a_session_that_was_finished_before_it_was_archived_keeps_its_key_as_a_record(agent, alice):
    first, _ = start(agent, alice)
    completed(first, alice)
    first.archive(by=alice)
    start(agent, alice)
    first.unarchive(by=alice)
    assert (first.state, first.reuse_key) == ("COMPLETED", KEY)
    assert last(first).data["reason"] == ""


def test_a_session_that_comes_back_first_keeps_its_key(agent, alice):
    first, _ = start(agent, alice)
    completed(first, alice)
    first.submit("One more thing.", author=alice)
    assert start(agent, alice) == (first, False)


# -- against each other ----------------------------------------------------------------------------


def test_two_that_come_back_at_once_share_a_key_between_them_once(agent, alice):
    for number in range(ROUNDS):
        first, _ = start(agent, alice)
        completed(first, alice)
        second, _ = start(agent, alice)
        completed(second, alice)
        results = together(
            partial(first.submit, "First.", author=alice),
            partial(second.submit, "Second.", author=alice),
            backwards=bool(number % 2),
        )
        assert errors_in(results) == []
        both = Session.objects.filter(pk__in=[first.pk, second.pk])
        assert set(both.values_list("state", flat=True)) == {"ACTIVE"}
        assert sorted(str(key) for key in both.values_list("reuse_key", flat=True)) == sorted(
            ["None", KEY]
        )
        for session in both:
            completed(session, alice)


def race(one: Callable[[], Any], other: Callable[[], Any], number: int) -> list[Any]:
    results = together(one, other, backwards=bool(number % 2))
    assert errors_in(results) == []
    return results


def test_reuse_and_reopening_at_once_leave_one_session_with_the_key(agent, alice, bob):
    for number in range(ROUNDS):
        first, _ = start(agent, alice)
        completed(first, alice)
        _, (used, new) = race(
            partial(first.submit, "One more thing.", author=bob),
            partial(start, agent, alice, "Look again."),
            number,
        )
        first.refresh_from_db()
        assert first.state == "ACTIVE"
        if new:
            assert first.reuse_key is None
        else:
            assert (used.pk, first.turns.count()) == (first.pk, 3)
        assert Session.objects.filter(reuse_key=KEY, state="ACTIVE").count() == 1
        for session in Session.objects.filter(state="ACTIVE"):
            completed(session, alice)


def test_reuse_while_the_session_is_closed_either_goes_with_it_or_opens_another(agent, alice, bob):
    for number in range(ROUNDS):
        first, _ = start(agent, alice)
        _, (used, new) = race(
            partial(first.close, "COMPLETED", by=bob),
            partial(start, agent, alice, "Look again."),
            number,
        )
        first.refresh_from_db()
        assert first.state == "COMPLETED"
        if new:
            assert used.pk != first.pk
            assert Session.objects.get(pk=used.pk).state == "ACTIVE"
        else:
            assert used.pk == first.pk
            assert set(first.turns.values_list("state", flat=True)) == {"CANCELLED"}
        for session in Session.objects.exclude(state="COMPLETED"):
            completed(session, alice)


def test_who_waits_for_a_session_that_is_being_closed_opens_another(agent, alice, bob):
    """Not by chance of timing: the caller waits for the row while it is closed."""
    first, _ = start(agent, alice)

    def close() -> None:
        with transaction.atomic():
            Session.objects.lock(first.pk)
            until_somebody_waits()
            first.close("COMPLETED", by=bob)

    def reuse() -> tuple[Session, bool]:
        until_locked(first)
        return start(agent, alice, "Look again.")

    closed, (used, new) = together(close, reuse)
    assert closed is None
    assert new
    assert used.pk != first.pk


def test_who_waits_for_an_opening_that_is_rolled_back_opens_it_itself(agent, alice, bob):
    witness = open_session(agent, bob)

    def gives_up() -> None:
        with transaction.atomic():
            start(agent, alice)
            Session.objects.lock(witness.pk)  # from here on the other one may begin
            until_somebody_waits()
            transaction.set_rollback(True)

    def opens() -> tuple[Session, bool]:
        until_locked(witness)
        return start(agent, bob)

    gave_up, (session, new) = together(gives_up, opens)
    assert gave_up is None
    assert new
    assert (session.owner, session.turns.count()) == (bob, 1)


def test_a_refusal_while_busy_opens_nothing_and_adds_nothing(agent, alice):
    start(agent, alice)
    before = everything()
    with pytest.raises(NotPossible, match="not done yet"):
        start(agent, alice, when_busy="reject")
    assert everything() == before

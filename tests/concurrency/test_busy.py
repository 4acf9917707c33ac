"""Submitting while a turn runs: what waits, what is stopped, and what runs next, in real races."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from django.db import transaction

from sessions_app.events import TurnCompleted
from sessions_app.models import NotPossible, Session, Turn
from sessions_app.models.turn import CancelPending

from ..crowd import errors_in, together, until_locked, until_somebody_waits
from ..scenes import (
    LEASE,
    asked,
    claimed,
    everything,
    finished,
    held,
    jobs,
    open_session,
    parked,
    types,
)

pytestmark = pytest.mark.django_db(transaction=True)

ROUNDS = 8


def submit(session: Session, by: Any, text: str = "Now.", **more: Any) -> tuple[Turn, bool]:
    more = {"when_busy": "interrupt", **more}
    return Session.objects.get(pk=session.pk).submit(text, author=by, **more)


def carried_out(turn: Turn) -> Turn:
    """What its holder does when it is asked to end."""
    turn.refresh_from_db()
    assert turn.cancel_requested_at is not None
    return finished(turn, "CANCELLED")


def worked(session: Session) -> list[str]:
    """Work all that is left; return the instructions in the order in which they ran."""
    done = []
    while turn := Turn.objects.claim(session.pk, "worker", lease=LEASE):
        done.append(turn.instruction)
        finished(turn)
    return done


# -- interrupting ----------------------------------------------------------------------------------


def test_a_running_turn_is_asked_to_end_and_the_other_runs_before_all_that_are_queued(
    agent, alice, bob
):
    session = open_session(agent, alice)
    running = claimed(session)
    session.submit("Second.", author=alice)
    session.submit("Third.", author=alice)
    turn, new = submit(session, bob)
    assert (new, turn.number, turn.state) == (True, 4, "QUEUED")
    running.refresh_from_db()
    assert (running.state, running.cancel_requested_by, running.cancel_reason) == (
        "RUNNING", "bob", "Turn 4 interrupted it",
    )  # fmt: skip
    assert Turn.objects.claim(session.pk, "other", lease=LEASE) is None, "one at a time"
    carried_out(running)
    assert worked(session) == ["Now.", "Second.", "Third."]


@pytest.mark.parametrize("state", ["WAITING_FOR_INPUT", "WAITING_FOR_PERMISSION"])
def test_a_turn_that_waits_for_a_person_ends_at_once(agent, alice, bob, state):
    session = open_session(agent, alice)
    turn = parked(claimed(session), state)
    submit(session, bob)
    turn.refresh_from_db()
    session.refresh_from_db()
    assert (turn.state, session.state) == ("CANCELLED", "ACTIVE")
    assert worked(session) == ["Now."]


def test_what_the_interrupted_turn_had_asked_is_closed_with_it(agent, alice, bob):
    session = open_session(agent, alice)
    request = asked(session)
    submit(session, bob)
    request.refresh_from_db()
    assert (request.state, request.resolved_by, request.reason) == (
        "CANCELLED", "bob", "Turn 2 interrupted it",
    )  # fmt: skip


def test_queued_turns_are_kept_and_nothing_is_stopped_when_none_is_open(agent, alice, bob):
    session = open_session(agent, alice, "First.")
    submit(session, bob)
    assert worked(session) == ["Now.", "First."]
    assert "turn.cancelled" not in types(session)


def test_a_turn_that_was_let_go_of_is_ended_by_whoever_takes_it_up(agent, alice, bob):
    session = open_session(agent, alice)
    turn = claimed(session)
    with held(turn):
        turn.release()
    submit(session, bob)
    taken = claimed(session)
    assert (taken.pk, taken.cancel_requested_by) == (turn.pk, "bob")


def test_two_that_interrupt_at_once_both_run_the_later_one_first(agent, alice, bob):
    for number in range(ROUNDS):
        session = open_session(agent, alice)
        running = claimed(session)
        session.submit("Second.", author=alice)
        results = together(
            partial(submit, session, alice, "From alice."),
            partial(submit, session, bob, "From bob."),
            backwards=bool(number % 2),
        )
        assert errors_in(results) == []
        numbers = {turn.number: turn.instruction for turn, _ in results}
        assert sorted(numbers) == [3, 4]
        running.refresh_from_db()
        assert running.cancel_reason == "Turn 3 interrupted it", "who came first has stopped it"
        carried_out(running)
        assert worked(session) == [numbers[4], numbers[3], "Second."]
        assert types(session).count("turn.cancelled") == 1


def test_interrupting_while_the_turn_parks_ends_it_either_way(agent, alice, bob):
    for number in range(ROUNDS):
        session = open_session(agent, alice)
        running = claimed(session)

        def park(turn: Turn = running) -> None:
            with held(turn):
                turn.park("WAITING_FOR_PERMISSION", "a decision")

        parking, interrupting = together(
            park, partial(submit, session, bob), backwards=bool(number % 2)
        )
        assert not isinstance(interrupting, Exception)
        running.refresh_from_db()
        if isinstance(parking, CancelPending):
            carried_out(running)
        else:
            assert parking is None
            assert running.state == "CANCELLED"
        assert worked(session) == ["Now."]
        assert types(session).count("turn.cancelled") == 1


@pytest.mark.parametrize("first", ["park", "interrupt"])
def test_parking_and_interrupting_in_each_order(agent, alice, bob, first):
    """Not by chance of timing: the second waits for the first's transaction."""
    session = open_session(agent, alice)
    running = claimed(session)

    def park() -> None:
        with transaction.atomic():
            running.session = Session.objects.lock(session.pk)
            if first == "park":
                until_somebody_waits()
            running.park("WAITING_FOR_PERMISSION", "a decision")

    def interrupt() -> None:
        with transaction.atomic():
            Session.objects.lock(session.pk)
            if first == "interrupt":
                until_somebody_waits()
            submit(session, bob)

    def second(doing: Any) -> Any:
        until_locked(session)
        return doing()

    if first == "park":
        results = together(park, partial(second, interrupt))
        assert results == [None, None]
        running.refresh_from_db()
        assert running.state == "CANCELLED"
    else:
        parking, _ = together(partial(second, park), interrupt)
        assert isinstance(parking, CancelPending)
        carried_out(running)
    assert worked(session) == ["Now."]


def test_interrupting_a_turn_that_just_finished_stops_nothing(agent, alice, bob):
    for number in range(ROUNDS):
        session = open_session(agent, alice)
        running = claimed(session)

        def finish(turn: Turn = running) -> None:
            with held(turn):
                turn.finish(TurnCompleted(duration_ms=1), state="COMPLETED")

        results = together(finish, partial(submit, session, bob), backwards=bool(number % 2))
        assert errors_in(results) == []
        running.refresh_from_db()
        assert running.state == "COMPLETED", "its holder was through before it heard of it"
        assert worked(session) == ["Now."]
        assert "turn.cancelled" not in types(session)


def test_a_repeat_of_an_interrupting_call_interrupts_once(agent, alice, bob):
    session = open_session(agent, alice)
    parked(claimed(session))
    again = partial(submit, session, bob, idempotency_key="call-1")
    results = together(*[again] * 6)
    assert errors_in(results) == []
    assert sum(new for _, new in results) == 1
    assert session.turns.count() == 2
    running = claimed(session)
    before = everything()
    assert submit(session, bob, idempotency_key="call-1") == (running, False)
    assert everything() == before, "the repeat does not stop its own turn"


def test_an_interrupted_session_is_worked_without_another_wake_up(agent, alice, bob):
    session = open_session(agent, alice)
    parked(claimed(session))
    before = jobs(session)
    submit(session, bob)
    assert jobs(session) == before + 1


# -- refusing --------------------------------------------------------------------------------------


def test_of_many_that_may_not_wait_one_gets_in(agent, alice, bob):
    for _ in range(ROUNDS):
        session = open_session(agent, alice)
        finished(claimed(session))
        doings = [partial(submit, session, bob, f"{n}", when_busy="reject") for n in range(4)]
        results = together(*doings)
        assert [type(error) for error in errors_in(results)] == [NotPossible] * 3
        assert session.turns.count() == 2


@pytest.mark.parametrize("state", ["queued", "running", "waiting"])
def test_the_refusal_names_the_turn_that_is_not_done(agent, alice, state):
    session = open_session(agent, alice)
    if state != "queued":
        turn = claimed(session)
        submit(session, alice, "Before that.")
        if state == "waiting":
            turn.refresh_from_db()
    before = everything()
    with pytest.raises(NotPossible, match="Turn 1 of this session is not done yet"):
        submit(session, alice, when_busy="reject")
    assert everything() == before


# -- editing and withdrawing -----------------------------------------------------------------------


def test_an_edit_either_comes_first_and_runs_or_is_refused(agent, alice):
    for number in range(ROUNDS * 2):
        session = open_session(agent, alice, "Old words.")
        turn = session.turns.get()
        edited, taken = together(
            partial(turn.edit, "New words.", by=alice),
            partial(Turn.objects.claim, session.pk, "worker", lease=LEASE),
            backwards=bool(number % 2),
        )
        assert isinstance(taken, Turn)
        kept = session.turns.get().instruction
        if isinstance(edited, NotPossible):
            assert "only a queued turn can be edited" in str(edited)
            assert (taken.instruction, kept) == ("Old words.", "Old words.")
            assert "turn.edited" not in types(session)
        else:
            assert edited is None
            assert (taken.instruction, kept) == ("New words.", "New words.")
            story = types(session)
            assert story.index("turn.edited") < story.index("turn.started")


@pytest.mark.parametrize("first", ["edit", "claim"])
def test_editing_and_claiming_in_each_order(agent, alice, first):
    session = open_session(agent, alice, "Old words.")
    turn = session.turns.get()

    def do(name: str) -> Any:
        if name != first:
            until_locked(session)
        with transaction.atomic():
            if name == first:
                Session.objects.lock(session.pk)
                until_somebody_waits()
            if name == "edit":
                return turn.edit("New words.", by=alice)
            return Turn.objects.claim(session.pk, "worker", lease=LEASE)

    edited, taken = together(partial(do, "edit"), partial(do, "claim"))
    if first == "edit":
        assert (edited, taken.instruction) == (None, "New words.")
    else:
        assert isinstance(edited, NotPossible)
        assert taken.instruction == "Old words."
        assert session.turns.get().instruction == "Old words."


def test_withdrawing_and_claiming_at_once_have_one_outcome(agent, alice):
    for number in range(ROUNDS):
        session = open_session(agent, alice)
        turn = session.turns.get()
        cancelled, taken = together(
            partial(turn.cancel, by=alice, reason="Not now."),
            partial(Turn.objects.claim, session.pk, "worker", lease=LEASE),
            backwards=bool(number % 2),
        )
        assert cancelled is None
        turn = session.turns.get()
        if taken is None:
            assert (turn.state, turn.attempt) == ("CANCELLED", 0)
        else:
            assert (turn.state, turn.cancel_requested_by) == ("RUNNING", "alice")

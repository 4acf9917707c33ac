"""Turns: every transition, who may make it, and what a refusal leaves as it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone
from procrastinate.contrib.django.models import ProcrastinateJob

from approvals_app.models import ApprovalRequest
from sessions_app import events
from sessions_app.models import Agent, Event, Fenced, NotPossible, Session, Turn
from sessions_app.models.event import append_async
from sessions_app.models.states import TURN, TurnState
from sessions_app.models.turn import CancelPending
from sessions_app.threads import close_pool, pool

from .crowd import elsewhere
from .scenes import (
    LEASE,
    asked,
    claimed,
    everything,
    finished,
    held,
    jobs,
    let_the_lease_run_out,
    open_session,
    parked,
    types,
)

pytestmark = pytest.mark.django_db


# -- every transition from every state ---------------------------------------------------------


def queued(session: Session) -> Turn:
    return session.turns.get()


SCENES: dict[str, Callable[[Session], Turn]] = {
    "QUEUED": queued,
    "RUNNING": claimed,
    "WAITING_FOR_INPUT": lambda session: parked(claimed(session), "WAITING_FOR_INPUT"),
    "WAITING_FOR_PERMISSION": lambda session: parked(claimed(session)),
    "COMPLETED": lambda session: finished(claimed(session)),
    "FAILED": lambda session: finished(claimed(session), "FAILED"),
    "CANCELLED": lambda session: finished(claimed(session), "CANCELLED"),
}
STATES = tuple(SCENES)
FINAL = ("COMPLETED", "FAILED", "CANCELLED")
WAITING = ("WAITING_FOR_INPUT", "WAITING_FOR_PERMISSION")


def edit(turn: Turn, alice: Any) -> None:
    turn.edit("Do something else.", by=alice)


def park(turn: Turn, alice: Any) -> None:
    with held(turn):
        turn.park("WAITING_FOR_INPUT", "a choice")


def park_for_permission(turn: Turn, alice: Any) -> None:
    with held(turn):
        turn.park("WAITING_FOR_PERMISSION", "a decision")


def resume(turn: Turn, alice: Any) -> bool:
    with held(turn):
        return turn.resume(by="alice")


def release(turn: Turn, alice: Any) -> bool:
    with held(turn):
        return turn.release()


def finish(turn: Turn, alice: Any) -> None:
    finished(turn)


def fail(turn: Turn, alice: Any) -> None:
    finished(turn, "FAILED")


def carry_out_a_cancel(turn: Turn, alice: Any) -> None:
    finished(turn, "CANCELLED")


def end_as_cancelled(turn: Turn, alice: Any) -> None:
    with held(turn):
        turn.end_as_cancelled(by="alice", reason="Enough.")


def cancel(turn: Turn, alice: Any) -> None:
    turn.cancel(by=alice, reason="Enough.")


def claim(turn: Turn, alice: Any) -> Turn | None:
    return Turn.objects.claim(turn.session_id, "second-worker", lease=LEASE)


# Each way to make a transition: its verb in the table, and how it answers where that says nothing.
TRANSITIONS: list[tuple[str, Callable[[Turn, Any], Any], Any]] = [
    ("edit", edit, NotPossible),
    ("claim", claim, None),
    ("park", park, Fenced),
    ("park", park_for_permission, Fenced),
    ("resume", resume, False),
    ("release", release, False),
    ("finish", finish, Fenced),
    ("finish", fail, Fenced),
    ("finish", carry_out_a_cancel, Fenced),
    ("cancel", end_as_cancelled, None),
    ("cancel", cancel, NotPossible),
]


def leads(verb: str, doing: Callable[[Turn, Any], Any], state: str) -> tuple[str, ...]:
    """Where the table says that it leads; nowhere when it is refused."""
    if doing is claim and state == "RUNNING":
        return ()  # somebody holds it
    if doing is cancel and state == "RUNNING":
        return ("RUNNING",)  # a request, which its holder carries out
    return TURN[verb].enters if state in TURN[verb].leaves else ()


EVERY = [
    pytest.param(doing, leads(verb, doing, state), otherwise, state, id=f"{doing.__name__}-{state}")
    for verb, doing, otherwise in TRANSITIONS
    for state in STATES
]


@pytest.mark.parametrize(("doing", "enters", "otherwise", "state"), EVERY)
def test_a_transition_leaves_only_the_states_it_names(
    session, alice, doing, enters, otherwise, state
):
    turn = SCENES[state](session)
    turn.refresh_from_db()
    before = everything()
    if enters:
        doing(turn, alice)
        assert Turn.objects.get(pk=turn.pk).state in enters
        assert everything() != before
    elif isinstance(otherwise, type):
        with pytest.raises(otherwise):
            doing(turn, alice)
        assert everything() == before
    else:
        assert doing(turn, alice) is otherwise
        assert everything() == before


def test_every_verb_of_the_table_is_tried():
    assert {verb for verb, _, _ in TRANSITIONS} == set(TURN) - {"submit"}
    assert set(STATES) == set(TurnState.values)


WINNING = [
    pytest.param(doing, state, id=f"{doing.__name__}-from-{state}")
    for verb, doing, _ in TRANSITIONS
    for state in STATES
    if leads(verb, doing, state)
]


@pytest.mark.parametrize(("doing", "state"), WINNING)
def test_a_transition_that_is_rolled_back_takes_its_event_and_its_job_with_it(
    session, alice, doing, state
):
    turn = SCENES[state](session)
    before = everything()
    with transaction.atomic():
        doing(turn, alice)
        assert everything() != before
        transaction.set_rollback(True)
    assert everything() == before


RECORDING = [case for case in WINNING if not case.id.startswith(("release", "cancel-from-RUNNING"))]


@pytest.mark.parametrize(("doing", "state"), RECORDING)
def test_without_its_event_a_transition_does_not_happen(session, alice, monkeypatch, doing, state):
    turn = SCENES[state](session)
    before = everything()

    def full(*_: Any, **__: Any) -> int:
        raise OSError("the disk is full")

    monkeypatch.setattr(type(Event.objects), "append", full)
    with pytest.raises(OSError, match="disk"), transaction.atomic():
        doing(turn, alice)
    monkeypatch.undo()
    assert everything() == before


# -- what the schema refuses, whatever the code does -----------------------------------------------


@pytest.mark.parametrize("state", ["RUNNING", *WAITING])
def test_a_session_cannot_have_two_open_turns(session, alice, state):
    claimed(session)
    second, _ = session.submit("And this.", author=alice)
    with pytest.raises(IntegrityError, match="one_open_turn_per_session"), transaction.atomic():
        Turn.objects.filter(pk=second.pk).update(state=state)


@pytest.mark.parametrize("state", FINAL)
def test_a_final_turn_has_to_say_when_it_ended(session, state):
    turn = claimed(session)
    with pytest.raises(IntegrityError, match="finished_if_and_only"), transaction.atomic():
        Turn.objects.filter(pk=turn.pk).update(state=state)


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING", *WAITING])
def test_a_turn_that_is_not_final_cannot_have_ended(session, state):
    turn = SCENES[state](session)
    with pytest.raises(IntegrityError, match="finished_if_and_only"), transaction.atomic():
        Turn.objects.filter(pk=turn.pk).update(finished_at=timezone.now())


def test_two_turns_cannot_have_one_number_or_one_key(session, alice):
    first = session.turns.get()
    second, _ = session.submit("And this.", author=alice, idempotency_key="form-2")
    third, _ = session.submit("And that.", author=alice)
    with pytest.raises(IntegrityError, match="one_turn_per_number"), transaction.atomic():
        Turn.objects.filter(pk=second.pk).update(number=first.number)
    with pytest.raises(IntegrityError, match="one_turn_per_key"), transaction.atomic():
        Turn.objects.filter(pk=third.pk).update(idempotency_key="form-2")


# -- claiming --------------------------------------------------------------------------------------


def test_a_claim_takes_the_lease_sets_the_fence_and_tells_the_story(session):
    turn = claimed(session, "worker-7")
    session.refresh_from_db()
    assert (turn.state, turn.attempt, turn.holder) == ("RUNNING", 1, "worker-7")
    assert turn.started_at is not None
    assert turn.lease_until > timezone.now()
    assert session.fence == turn.fence == f"{turn.pk}:1"
    event = session.events.get(type="turn.started")
    assert (event.turn_id, event.data) == (turn.pk, {"attempt": 1, "reason": "started"})


def test_turns_are_claimed_in_the_order_they_were_submitted(session, alice):
    for word in ("Second.", "Third."):
        session.submit(word, author=alice)
    said = []
    while turn := Turn.objects.claim(session.pk, "worker", lease=LEASE):
        said.append(turn.instruction)
        finished(turn)
    assert said == ["Just a word.", "Second.", "Third."]


def test_a_claimed_turn_and_its_session_are_as_the_database_has_them(session):
    turn = claimed(session)
    stored = Turn.objects.select_related("session").get(pk=turn.pk)
    for one, other in ((turn, stored), (turn.session, stored.session)):
        for field in type(one)._meta.concrete_fields:
            if field.name not in {"last_activity_at", "listed_at"}:
                assert getattr(one, field.attname) == getattr(other, field.attname), field


def test_a_turn_behind_an_open_one_is_not_claimed(session, alice):
    first = claimed(session)
    session.submit("Second.", author=alice)
    assert Turn.objects.claim(session.pk, "other", lease=LEASE) is None
    parked(first)
    assert Turn.objects.claim(session.pk, "other", lease=LEASE) is None
    first.cancel(by=alice)
    assert claimed(session).instruction == "Second."


def test_a_turn_that_is_held_is_not_claimed_before_its_lease_has_ended(session):
    turn = claimed(session)
    assert Turn.objects.claim(session.pk, "other", lease=LEASE) is None
    let_the_lease_run_out(turn)
    taken = claimed(session, "other")
    assert (taken.pk, taken.attempt, taken.holder) == (turn.pk, 2, "other")
    assert taken.started_at == turn.started_at
    assert session.events.filter(type="turn.started").last().data["reason"] == "rescued"


def test_a_parked_turn_is_not_claimed_until_it_is_resumed(session):
    turn = parked(claimed(session))
    assert Turn.objects.claim(session.pk, "other", lease=LEASE) is None
    assert resume(turn, None) is True
    taken = claimed(session, "other")
    assert (taken.pk, taken.attempt) == (turn.pk, 2)
    assert session.events.filter(type="turn.started").last().data["reason"] == "resumed"


def test_a_wake_up_for_a_session_that_is_gone_is_harmless(db):
    assert Turn.objects.claim("ses_gone", "worker", lease=LEASE) is None


def test_every_submit_and_every_resumption_wakes_a_worker(session, alice):
    assert jobs(session) == 1
    session.submit("Second.", author=alice)
    assert jobs(session) == 2
    turn = parked(claimed(session))
    assert jobs(session) == 2
    resume(turn, alice)
    assert jobs(session) == 3
    release(claimed(session), alice)
    assert jobs(session) == 4


@pytest.mark.django_db(transaction=True)
def test_a_job_is_there_exactly_when_its_transaction_commits(agent: Agent, alice):
    def waiting() -> int:
        return ProcrastinateJob.objects.filter(args__session_id=session.pk).count()

    with transaction.atomic():
        session = open_session(agent, alice)
        assert elsewhere(waiting) == 0
        assert elsewhere(Session.objects.count) == 0
    assert elsewhere(waiting) == 1

    with transaction.atomic():
        session.submit("Second.", author=alice)
        assert elsewhere(waiting) == 1
        transaction.set_rollback(True)
    assert elsewhere(waiting) == 1
    assert elsewhere(session.turns.count) == 1


# -- fencing ---------------------------------------------------------------------------------------

STALE = events.MessageCreated(role="assistant", text="I am still here.")


def taken_over(session: Session) -> Turn:
    """A turn as its dead worker still sees it."""
    stale = claimed(session, "dead-worker")
    let_the_lease_run_out(stale)
    claimed(session, "live-worker")
    return stale


def superseded_by_a_cancel(session: Session) -> Turn:
    stale = claimed(session)
    session.close("CANCELLED", by=session.owner)
    return stale


def superseded_by_parking(session: Session) -> Turn:
    turn = claimed(session)
    stale = Turn.objects.get(pk=turn.pk)
    parked(turn)
    return stale


def superseded_by_handing_back(session: Session) -> Turn:
    turn = claimed(session)
    stale = Turn.objects.get(pk=turn.pk)
    release(turn, None)
    return stale


OVERTAKEN = [taken_over, superseded_by_a_cancel, superseded_by_parking]


@pytest.mark.parametrize("overtaken", [*OVERTAKEN, superseded_by_handing_back])
def test_a_worker_that_lost_its_turn_appends_nothing(session, overtaken):
    stale = overtaken(session)
    before = everything()
    with pytest.raises(Fenced), transaction.atomic():
        Event.objects.append(session.pk, [STALE], turn_id=stale.pk, fence=stale.fence)
    with pytest.raises(Fenced), transaction.atomic():
        session.record(STALE, turn=stale, fence=stale.fence)
    assert everything() == before


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("overtaken", [*OVERTAKEN, superseded_by_handing_back])
def test_a_worker_that_lost_its_turn_appends_nothing_on_the_async_pool(session, overtaken):
    stale = overtaken(session)
    before = everything()

    async def append() -> None:
        try:
            async with (await pool()).connection() as conn:
                with pytest.raises(Fenced):
                    await append_async(
                        conn, session.pk, [STALE], turn_id=stale.pk, fence=stale.fence
                    )
        finally:
            await close_pool()

    asyncio.run(append())
    assert everything() == before


@pytest.mark.parametrize("overtaken", OVERTAKEN)
def test_a_worker_that_lost_its_turn_cannot_finish_park_or_hand_it_back(session, overtaken):
    stale = overtaken(session)
    before = everything()
    with pytest.raises(Fenced):
        finish(stale, None)
    with pytest.raises(Fenced):
        park(stale, None)
    assert release(stale, None) is False
    assert everything() == before


def test_the_holder_appends_under_its_fence(session):
    turn = claimed(session)
    with transaction.atomic():
        last = session.record(STALE, turn=turn, fence=turn.fence)
    assert session.events.get(seq=last).payload == STALE


# -- letting go and going on -----------------------------------------------------------------------


def test_a_parked_turn_says_what_it_waits_for_and_frees_its_worker(session):
    turn = claimed(session)
    with held(turn) as locked:
        locked.record(STALE, turn=turn)
        turn.park("WAITING_FOR_PERMISSION", "approval: tag the release")
    turn.refresh_from_db()
    session.refresh_from_db()
    assert (turn.holder, turn.lease_until) == ("", None)
    assert turn.waiting_for == "approval: tag the release"
    assert (session.state, session.fence) == ("WAITING_FOR_PERMISSION", "")


def test_a_turn_that_is_asked_to_end_does_not_park(session, alice):
    turn = claimed(session)
    turn.cancel(by=alice)
    before = everything()
    with pytest.raises(CancelPending):
        park(turn, alice)
    assert everything() == before


def test_a_resumed_turn_waits_for_nothing_any_more(session):
    turn = parked(claimed(session))
    assert resume(turn, None) is True
    assert resume(turn, None) is False, "it goes on once"
    turn.refresh_from_db()
    session.refresh_from_db()
    assert (turn.state, turn.waiting_for) == ("RUNNING", "")
    assert session.state == "ACTIVE"
    assert jobs(session) == 2


def test_a_released_turn_is_taken_up_at_once_by_another_worker(session):
    turn = claimed(session)
    assert release(turn, None) is True
    session.refresh_from_db()
    assert session.fence == ""
    taken = claimed(session, "other")
    assert (taken.pk, taken.attempt) == (turn.pk, 2)
    assert session.events.filter(type="turn.started").last().data["reason"] == "resumed"


# -- ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", FINAL)
def test_a_finished_turn_lets_go_of_everything(session, state):
    turn = finished(claimed(session), state)
    turn.refresh_from_db()
    session.refresh_from_db()
    assert (turn.state, turn.holder, turn.lease_until) == (state, "", None)
    assert turn.is_final
    assert turn.finished_at is not None
    assert session.fence == ""
    assert types(session)[-2:] == [f"turn.{state.lower()}", session_event_after(state)]


def session_event_after(state: str) -> str:
    return "session.failed" if state == "FAILED" else "session.waiting_for_input"


def test_a_failed_turn_keeps_its_code_and_its_message(session):
    turn = claimed(session)
    with held(turn):
        turn.finish(
            events.TurnFailed(code="step_failed", message="Exit code 2."),
            state="FAILED",
            code="step_failed",
            message="Exit code 2.",
        )
    turn.refresh_from_db()
    assert (turn.error_code, turn.error_message) == ("step_failed", "Exit code 2.")


def test_the_end_of_a_turn_ends_the_calls_it_had_started(session):
    turn = claimed(session)
    with held(turn) as locked:
        for call in ("one", "two"):
            locked.record(
                events.ToolCallStarted(call_id=call, kind="shell", tool="sh", title=call),
                turn=turn,
            )
        locked.record(events.ToolCallCompleted(call_id="one", status="succeeded"), turn=turn)
    end_as_cancelled(turn, None)
    completed = session.events.filter(type="tool_call.completed").order_by("seq")
    assert [(event.data["call_id"], event.data["status"]) for event in completed] == [
        ("one", "succeeded"),
        ("two", "cancelled"),
    ]


def test_the_end_of_a_turn_ends_what_it_asked(agent, alice):
    session = open_session(agent, alice)
    request = asked(session)
    turn = Turn.objects.get(pk=request.turn_id)
    turn.cancel(by=alice, reason="Not needed any more.")
    request.refresh_from_db()
    assert (request.state, request.resolved_by) == ("CANCELLED", "alice")
    assert types(session)[-3:] == [
        "approval_request.resolved",
        "turn.cancelled",
        "session.waiting_for_input",
    ]


# -- cancelling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["QUEUED", *WAITING])
def test_a_turn_that_nobody_works_on_is_cancelled_at_once(session, alice, state):
    turn = SCENES[state](session)
    turn.cancel(by=alice, reason="Wrong branch.")
    assert turn.state == "CANCELLED"
    assert turn.finished_at is not None
    event = session.events.get(type="turn.cancelled")
    assert event.data == {"by": "alice", "reason": "Wrong branch."}
    session.refresh_from_db()
    assert session.state == "WAITING_FOR_INPUT"


def test_cancelling_a_parked_turn_wakes_a_worker_for_the_next_one(session, alice):
    turn = parked(claimed(session))
    session.submit("Second.", author=alice)
    before = jobs(session)
    turn.cancel(by=alice)
    assert jobs(session) == before + 1
    session.refresh_from_db()
    assert session.state == "ACTIVE"


def test_cancelling_a_running_turn_is_a_request_that_its_worker_carries_out(session, alice, bob):
    turn = claimed(session)
    story = types(session)
    turn.cancel(by=alice, reason="Wrong branch.")
    assert (turn.state, turn.finished_at) == ("RUNNING", None)
    asked_at = turn.cancel_requested_at
    assert asked_at is not None
    assert types(session) == story, "nothing has ended yet"

    turn.cancel(by=bob, reason="Mine is better.")
    assert turn.cancel_requested_at == asked_at
    assert (turn.cancel_requested_by, turn.cancel_reason) == ("alice", "Wrong branch.")


def test_a_request_to_cancel_survives_the_worker_it_was_meant_for(session, alice):
    turn = claimed(session)
    turn.cancel(by=alice)
    let_the_lease_run_out(turn)
    assert claimed(session, "other").cancel_requested_at is not None


@pytest.mark.parametrize("state", FINAL)
def test_a_turn_that_has_ended_is_not_cancelled(session, alice, state):
    turn = SCENES[state](session)
    before = everything()
    with pytest.raises(NotPossible, match=f"{state.lower()} already"):
        turn.cancel(by=alice)
    assert everything() == before


# -- finding what nobody holds ---------------------------------------------------------------------


def test_only_running_turns_without_a_living_lease_are_unheld(session, alice):
    turn = session.turns.get()
    assert not Turn.objects.unheld().exists()
    claimed(session)
    assert not Turn.objects.unheld().exists()
    let_the_lease_run_out(turn)
    assert Turn.objects.unheld().get() == turn
    parked(claimed(session))
    assert not Turn.objects.unheld().exists()
    resume(turn, alice)
    assert Turn.objects.unheld().get() == turn


def test_a_queued_turn_is_stranded_when_it_has_waited_with_nothing_before_it(session, alice):
    first = session.turns.get()
    assert not Turn.objects.stranded().exists(), "its wake-up may still come"
    long_ago = timezone.now() - LEASE
    Turn.objects.filter(pk=first.pk).update(created_at=long_ago)
    assert Turn.objects.stranded().get() == first
    claimed(session)
    second, _ = session.submit("Second.", author=alice)
    Turn.objects.filter(pk=second.pk).update(created_at=long_ago)
    assert not Turn.objects.stranded().exists(), "the first one is still open"


# -- the door --------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_recording_outside_of_a_transaction_is_refused(session):
    before = everything()
    with pytest.raises(AssertionError, match="transaction"):
        session.record(STALE)
    assert everything() == before


def test_events_are_numbered_from_one_without_a_gap(session, alice):
    turn = claimed(session)
    with held(turn) as locked:
        assert locked.record(STALE, STALE, STALE, turn=turn) == locked.last_seq
    finished(turn)
    numbers = list(session.events.order_by("seq").values_list("seq", flat=True))
    session.refresh_from_db()
    assert numbers == list(range(1, session.last_seq + 1))


def test_an_event_of_a_session_that_is_gone_is_refused(session):
    gone = Session(pk="ses_gone")
    with pytest.raises(Fenced), transaction.atomic():
        gone.record(STALE)
    assert not ApprovalRequest.objects.exists()


# -- retrying --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ended", ["FAILED", "CANCELLED"])
def test_a_turn_that_failed_or_was_cancelled_is_retried_as_a_new_turn(agent, alice, bob, ended):
    session = open_session(agent, alice, "Try this.")
    first = finished(claimed(session), ended)
    again = first.retry(by=bob)
    assert (again.number, again.instruction, again.retry_of_id) == (2, "Try this.", first.pk)
    first.refresh_from_db()
    assert first.state == ended
    assert session.events.get(type="turn.queued", turn=again).data["retry_of"] == 1


def test_a_second_retry_while_the_first_has_not_ended_is_the_first(agent, alice):
    session = open_session(agent, alice)
    first = finished(claimed(session), "FAILED")
    assert first.retry(by=alice).pk == first.retry(by=alice).pk
    finished(claimed(session), "FAILED")
    assert first.retry(by=alice).number == 3


@pytest.mark.parametrize("ended", [None, "COMPLETED"])
def test_a_turn_that_did_not_fail_is_not_retried(agent, alice, ended):
    session = open_session(agent, alice)
    turn = finished(claimed(session), ended) if ended else session.turns.get()
    with pytest.raises(NotPossible):
        turn.retry(by=alice)
    assert session.turns.count() == 1

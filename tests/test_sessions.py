"""Sessions: how they open, what state follows from their turns, how they are closed and kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from procrastinate.contrib.django.models import ProcrastinateJob

from approvals_app.models import ApprovalRequest
from sessions_app import events
from sessions_app.models import Agent, Event, NotPossible, Session, Turn
from sessions_app.models.session import title_of
from sessions_app.models.states import SESSION, STATE_EVENTS, SessionState

from .scenes import (
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

pytestmark = pytest.mark.django_db


# -- opening ---------------------------------------------------------------------------------------


def test_a_session_opens_with_its_first_turn_and_its_story(agent: Agent, alice):
    session, new = Session.objects.start(
        agent=agent, owner=alice, instruction="# Restart the mailer\n\nCarefully."
    )
    assert new
    assert (session.title, session.state) == ("Restart the mailer", "ACTIVE")
    turn = session.turns.get()
    assert (turn.number, turn.state, turn.author) == (1, "QUEUED", alice)
    assert [event.payload for event in session.events.order_by("seq")] == [
        events.SessionCreated(agent="Runbook", title="Restart the mailer", by="alice"),
        events.TurnQueued(number=1, by="alice"),
        events.MessageCreated(
            role="user", text="# Restart the mailer\n\nCarefully.", author="alice"
        ),
        events.SessionActivated(by="alice"),
    ]
    assert session.last_seq == 4
    assert jobs(session) == 1


def test_a_session_that_cannot_get_its_first_turn_is_not_opened(agent, alice, monkeypatch):
    def full(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    before = everything(), ProcrastinateJob.objects.count()
    monkeypatch.setattr(Turn, "enqueue", full)
    with pytest.raises(OSError, match="disk"):
        Session.objects.start(agent=agent, owner=alice, instruction="Look.")
    assert (everything(), ProcrastinateJob.objects.count()) == before


@pytest.mark.parametrize(
    ("instruction", "title"),
    [
        ("Look at it.", "Look at it."),
        ("\n\n  ## Cut a release \nThen rest.", "Cut a release"),
        ("```sh\nls\n```", "ls"),
        ("---\n> quoted", "quoted"),
        ("", "Untitled"),
        ("\n#\n", "Untitled"),
        ("x" * 81, "x" * 79 + "…"),
    ],
)
def test_a_title_is_the_first_line_that_says_something(instruction, title):
    assert title_of(instruction) == title


# -- the same form twice ---------------------------------------------------------------------------


def start(agent: Agent, owner: Any, instruction: str = "Look.", key: str | None = "form-1"):
    return Session.objects.start(
        agent=agent, owner=owner, instruction=instruction, idempotency_key=key
    )


def test_the_same_form_again_returns_the_first_session(agent, alice):
    first, new = start(agent, alice)
    before = everything()
    assert start(agent, alice) == (first, False)
    assert new
    assert everything() == before


def test_the_same_form_with_another_instruction_or_agent_is_a_conflict(agent, alice):
    start(agent, alice)
    other = Agent.objects.create(name="Other")
    before = everything()
    with pytest.raises(NotPossible, match="sent before with another instruction"):
        start(agent, alice, "Look again.")
    with pytest.raises(NotPossible, match="sent before"):
        start(other, alice)
    assert everything() == before


def test_forms_without_a_key_and_forms_of_others_are_sessions_of_their_own(agent, alice, bob):
    opened = {start(agent, alice, key=None)[0].pk for _ in range(2)}
    opened |= {start(agent, person)[0].pk for person in (alice, bob)}
    assert len(opened) == 4


def test_the_same_turn_again_returns_the_first_turn_even_when_it_has_ended(session, alice):
    first, new = session.submit("And this.", author=alice, idempotency_key="form-2")
    assert new
    before = everything()
    assert session.submit("And this.", author=alice, idempotency_key="form-2") == (first, False)
    with pytest.raises(NotPossible, match="sent before with another instruction"):
        session.submit("And that.", author=alice, idempotency_key="form-2")
    assert everything() == before

    session.close("COMPLETED", by=alice)
    session.archive(by=alice)
    before = everything()
    assert session.submit("And this.", author=alice, idempotency_key="form-2") == (first, False)
    assert everything() == before


def test_a_person_cannot_have_two_sessions_of_one_key(agent, alice):
    start(agent, alice)
    other = open_session(agent, alice)
    with pytest.raises(IntegrityError, match="one_session_per_key"), transaction.atomic():
        Session.objects.filter(pk=other.pk).update(idempotency_key="form-1")


# -- the state follows from the turns --------------------------------------------------------------


def end_all(session: Session, *states: str) -> None:
    for state in states:
        finished(claimed(session), state)


def state_of(session: Session) -> str:
    session.refresh_from_db()
    return session.state


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        (["COMPLETED"], "WAITING_FOR_INPUT"),
        (["FAILED"], "FAILED"),
        (["CANCELLED"], "WAITING_FOR_INPUT"),
        (["COMPLETED", "FAILED"], "FAILED"),
        (["FAILED", "COMPLETED"], "WAITING_FOR_INPUT"),
        (["FAILED", "CANCELLED"], "WAITING_FOR_INPUT"),
    ],
)
def test_with_no_turn_open_the_last_one_decides(session, alice, outcomes, state):
    for _ in outcomes[1:]:
        session.submit("And this.", author=alice)
    end_all(session, *outcomes)
    assert state_of(session) == state


def test_the_turn_that_ended_last_decides_whatever_its_number(session, alice):
    running = claimed(session)
    withdrawn, _ = session.submit("Not needed.", author=alice)
    withdrawn.cancel(by=alice)
    finished(running, "FAILED")
    assert state_of(session) == "FAILED", "what was withdrawn meanwhile hides no failure"

    session.submit("Later.", author=alice)
    session.submit("Now.", author=alice, when_busy="interrupt")
    assert claimed(session).instruction == "Now."
    finished(session.turns.get(instruction="Now."))
    finished(claimed(session), "FAILED")
    assert state_of(session) == "FAILED"


def test_a_session_that_was_read_before_its_row_was_locked_cannot_be_moved(session, alice):
    stale = Session.objects.get(pk=session.pk)
    session.close("COMPLETED", by=alice)
    before = everything()
    with pytest.raises(AssertionError, match="not locked when it was read"), transaction.atomic():
        stale._move("FAILED", by="alice")
    assert everything() == before


def test_a_failed_turn_does_not_stop_the_queue(session, alice):
    session.submit("And this.", author=alice)
    end_all(session, "FAILED")
    assert state_of(session) == "ACTIVE"
    assert "session.failed" not in types(session)
    assert claimed(session).number == 2


@pytest.mark.parametrize("state", ["WAITING_FOR_INPUT", "WAITING_FOR_PERMISSION"])
def test_a_turn_that_waits_makes_its_session_wait_whatever_is_queued(session, alice, state):
    session.submit("And this.", author=alice)
    turn = parked(claimed(session), state)
    assert state_of(session) == state
    session.submit("And that.", author=alice)
    assert state_of(session) == state
    with held(turn):
        turn.resume(by="bob")
    assert state_of(session) == "ACTIVE"
    last = session.events.order_by("seq").last()
    assert (last.type, last.data["by"]) == ("session.activated", "bob")


def test_a_state_is_told_once_and_only_when_it_changes(session, alice):
    story = [
        lambda: session.submit("And this.", author=alice),
        lambda: finished(claimed(session)),
        lambda: finished(claimed(session)),
        lambda: session.submit("And that.", author=alice),
        lambda: finished(claimed(session), "FAILED"),
    ]
    for step in story:
        step()
        with transaction.atomic():
            Session.objects.lock(session.pk).settle()
    assert [type for type in types(session) if type.startswith("session.")] == [
        "session.created",
        "session.activated",
        "session.waiting_for_input",
        "session.activated",
        "session.failed",
    ]


def test_every_state_that_follows_from_turns_or_is_closed_has_an_event_of_its_name():
    assert set(STATE_EVENTS) == set(SessionState) - {"CREATED", "ARCHIVED"}
    for state, event in STATE_EVENTS.items():
        assert event.type == f"session.{state.lower()}".replace("active", "activated")


# -- every way of closing and keeping, from every state --------------------------------------------


def created(session: Session, alice: Any) -> Session:
    return Session.objects.create(agent=session.agent, owner=alice, title="Empty")


def with_a_finished_turn(session: Session, alice: Any) -> Session:
    end_all(session, "COMPLETED")
    return session


def with_a_failed_turn(session: Session, alice: Any) -> Session:
    end_all(session, "FAILED")
    return session


def waiting_for_permission(session: Session, alice: Any) -> Session:
    asked(session)
    return session


def waiting_for_an_answer(session: Session, alice: Any) -> Session:
    parked(claimed(session), "WAITING_FOR_INPUT")
    return session


def running(session: Session, alice: Any) -> Session:
    claimed(session)
    return session


def completed(session: Session, alice: Any) -> Session:
    session.close("COMPLETED", by=alice)
    return session


def cancelled(session: Session, alice: Any) -> Session:
    session.close("CANCELLED", by=alice)
    return session


def archived(session: Session, alice: Any) -> Session:
    end_all(session, "COMPLETED")
    session.archive(by=alice)
    return session


SCENES: dict[str, Callable[[Session, Any], Session]] = {
    "CREATED": created,
    "ACTIVE, queued": lambda session, alice: session,
    "ACTIVE, running": running,
    "WAITING_FOR_INPUT, a question": waiting_for_an_answer,
    "WAITING_FOR_INPUT, at rest": with_a_finished_turn,
    "WAITING_FOR_PERMISSION": waiting_for_permission,
    "FAILED": with_a_failed_turn,
    "COMPLETED": completed,
    "CANCELLED": cancelled,
    "ARCHIVED": archived,
}


def close_as_completed(session: Session, alice: Any) -> None:
    session.close("COMPLETED", by=alice, reason="Good enough.")


def close_as_cancelled(session: Session, alice: Any) -> None:
    session.close("CANCELLED", by=alice)


def archive(session: Session, alice: Any) -> None:
    session.archive(by=alice)


def unarchive(session: Session, alice: Any) -> None:
    session.unarchive(by=alice)


def submit(session: Session, alice: Any) -> None:
    session.submit("And this.", author=alice)


def refused(verb: str) -> set[str]:
    """The scenes that the table gives no way out of by this verb."""
    return {scene for scene in SCENES if scene.partition(",")[0] not in SESSION[verb].leaves}


# For each verb: the scenes in which it is refused, and where it leads otherwise.
VERBS: list[tuple[Callable[[Session, Any], None], set[str], str]] = [
    (close_as_completed, refused("close"), "COMPLETED"),
    (close_as_cancelled, refused("close"), "CANCELLED"),
    # A session that waits for input may do so at rest, or in the middle of a turn.
    (archive, {*refused("archive"), "WAITING_FOR_INPUT, a question"}, "ARCHIVED"),
    (unarchive, refused("unarchive"), "WAITING_FOR_INPUT"),
    (submit, refused("submit"), ""),
]
EVERY = [
    pytest.param(verb, scene in not_from, state, scene, id=f"{verb.__name__}-{scene}")
    for verb, not_from, state in VERBS
    for scene in SCENES
]
POSSIBLE = [
    pytest.param(case.values[0], case.values[3], id=case.id) for case in EVERY if not case.values[1]
]


@pytest.mark.parametrize(("verb", "refused", "state", "scene"), EVERY)
def test_a_verb_is_possible_in_the_states_that_allow_it(
    session, alice, verb, refused, state, scene
):
    session = SCENES[scene](session, alice)
    session.refresh_from_db()
    assert session.state == scene.partition(",")[0]
    before = everything()
    if refused:
        with pytest.raises(NotPossible):
            verb(session, alice)
        assert everything() == before
        return
    verb(session, alice)
    assert everything() != before
    parked_already = scene in {"WAITING_FOR_INPUT, a question", "WAITING_FOR_PERMISSION"}
    expected = state or (scene.partition(",")[0] if parked_already else "ACTIVE")
    assert session.state == Session.objects.get(pk=session.pk).state == expected


@pytest.mark.parametrize(("verb", "scene"), POSSIBLE)
def test_a_verb_that_is_rolled_back_leaves_nothing_behind(session, alice, verb, scene):
    session = SCENES[scene](session, alice)
    before = everything()
    with transaction.atomic():
        verb(session, alice)
        transaction.set_rollback(True)
    assert everything() == before


@pytest.mark.parametrize(("verb", "scene"), POSSIBLE)
def test_without_its_event_a_verb_does_nothing(session, alice, monkeypatch, verb, scene):
    session = SCENES[scene](session, alice)
    before = everything()

    def full(*_: Any, **__: Any) -> int:
        raise OSError("the disk is full")

    monkeypatch.setattr(type(Event.objects), "append", full)
    with pytest.raises(OSError, match="disk"):
        verb(session, alice)
    monkeypatch.undo()
    assert everything() == before


# -- closing closes everything ---------------------------------------------------------------------


@pytest.mark.parametrize("state", ["COMPLETED", "CANCELLED"])
def test_closing_ends_approvals_calls_and_queued_turns(session, alice, state):
    turn = claimed(session)
    with held(turn) as locked:
        locked.record(
            events.ToolCallStarted(call_id="one", kind="shell", tool="sh", title="one"), turn=turn
        )
        turn.release()
    request = asked(session)
    session.submit("Second.", author=alice)
    session.submit("Third.", author=alice)
    before = session.last_seq
    session.close(state, by=alice, reason="We are done here.")

    assert set(session.turns.values_list("state", flat=True)) == {"CANCELLED"}
    assert not session.turns.filter(finished_at=None).exists()
    request.refresh_from_db()
    assert request.state == "CANCELLED"
    assert session.fence == ""
    assert not Turn.objects.claim(session.pk, "worker", lease=LEASE)
    assert [event.type for event in session.events.after(before).order_by("seq")] == [
        "approval_request.resolved",
        "tool_call.completed",
        "turn.cancelled",
        "turn.cancelled",
        "turn.cancelled",
        f"session.{state.lower()}",
    ]
    last = session.events.order_by("seq").last()
    assert last.data == {"by": "alice", "reason": "We are done here."}
    assert not ApprovalRequest.objects.pending().exists()


def test_a_closed_session_is_reopened_by_a_new_turn(session, alice):
    session.close("COMPLETED", by=alice)
    turn, _ = session.submit("One more thing.", author=alice)
    assert session.state == "ACTIVE"
    assert claimed(session).pk == turn.pk
    assert types(session)[-4:-1] == ["turn.queued", "message.created", "session.activated"]


# -- keeping ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scene", ["WAITING_FOR_INPUT, at rest", "FAILED", "COMPLETED", "CANCELLED", "CREATED"]
)
def test_unarchiving_restores_the_state_that_was_archived(session, alice, bob, scene):
    session = SCENES[scene](session, alice)
    session.refresh_from_db()
    state = session.state
    session.archive(by=alice)
    assert (session.state, session.archived_from) == ("ARCHIVED", state)
    assert session not in Session.objects.active()
    session.unarchive(by=bob)
    assert (session.state, session.archived_from) == (state, "")
    assert session in Session.objects.active()
    told = [event.payload for event in session.events.order_by("-seq")[:2]]
    assert told == [events.SessionUnarchived(by="bob"), events.SessionArchived(by="alice")]


def test_a_refusal_says_what_to_do(session, alice):
    with pytest.raises(NotPossible, match="Stop it, then archive"):
        session.archive(by=alice)
    with pytest.raises(NotPossible, match="not archived"):
        session.unarchive(by=alice)
    finished(claimed(session))
    session.archive(by=alice)
    with pytest.raises(NotPossible, match="Unarchive it to go on"):
        session.submit("And this.", author=alice)
    with pytest.raises(NotPossible, match="archived already"):
        session.close("COMPLETED", by=alice)

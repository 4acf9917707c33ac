"""Every transition by page: it is done and told, or refused with a reason and nothing changes."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.http import HttpResponse

from sessions_app.models import Agent, Session, Turn

from .conftest import signed_in
from .scenes import claimed, everything, finished, open_session, parked, types

pytestmark = pytest.mark.django_db

HTMX = {"HTTP_HX_REQUEST": "true"}
both_ways = pytest.mark.parametrize("headers", [{}, HTMX], ids=["page", "htmx"])


@pytest.fixture
def session(agent: Agent, alice: User) -> Session:
    return open_session(agent, alice, "Just a word.")


def said(answer: HttpResponse) -> str:
    return html.unescape(answer.content.decode())


def was_done(answer: HttpResponse, headers: dict[str, str]) -> None:
    assert answer.status_code == (204 if headers else 302), said(answer)


def last_event(session: Session, type: str) -> dict[str, Any]:
    event = session.events.filter(type=type).order_by("seq").last()
    assert event is not None, f"nothing tells of {type}"
    return event.data


# -- submitting while there is work ----------------------------------------------------------------


def submit(user: User, session: Session, headers: dict[str, str], **form: str) -> HttpResponse:
    form = {"instruction": "And this.", **form}
    return signed_in(user).post(f"/sessions/{session.pk}/turns/", form, **headers)


@both_ways
@pytest.mark.parametrize("busy", [lambda session: None, claimed, lambda s: parked(claimed(s))])
def test_a_turn_that_may_not_wait_is_refused_and_nothing_typed_is_lost(
    session, alice, headers, busy: Callable[[Session], Any]
):
    busy(session)
    before = everything()
    answer = submit(alice, session, headers, when_busy="reject")
    assert answer.status_code == 409
    assert "Turn 1 of this session is not done yet" in said(answer)
    assert "And this." in said(answer)
    assert everything() == before


@both_ways
def test_a_turn_that_may_not_wait_is_taken_when_nothing_else_is_there(session, alice, headers):
    finished(claimed(session))
    answer = submit(alice, session, headers, when_busy="reject")
    assert answer.status_code in {200, 302}
    assert session.turns.get(number=2).state == "QUEUED"


@both_ways
@pytest.mark.parametrize("word", ["now", "QUEUE", "\x00", "x" * 5000])
def test_an_unknown_word_for_it_is_refused(session, alice, headers, word):
    before = everything()
    answer = submit(alice, session, headers, when_busy=word)
    assert answer.status_code in {400, 422}
    assert everything() == before


@both_ways
def test_a_turn_that_interrupts_stops_the_open_one_and_says_so(session, alice, bob, headers):
    parked(claimed(session))
    submit(alice, session, {}, instruction="Later.")
    answer = submit(bob, session, headers, when_busy="interrupt")
    assert answer.status_code in {200, 302}
    assert session.turns.get(number=1).state == "CANCELLED"
    told = {"by": "bob", "reason": "Turn 3 interrupted it"}
    assert last_event(session, "turn.cancelled") == told
    assert claimed(session).number == 3


# -- editing ---------------------------------------------------------------------------------------


def edit(user: User, turn: Turn, text: str, headers: dict[str, str]) -> HttpResponse:
    return signed_in(user).post(f"/turns/{turn.pk}/instruction/", {"instruction": text}, **headers)


@both_ways
def test_a_queued_turn_is_edited_by_its_author(session, alice, headers):
    turn = session.turns.get()
    assert edit(alice, turn, "Two\r\nwords.", headers).status_code == (200 if headers else 302)
    assert last_event(session, "turn.edited") == {"text": "Two\nwords.", "by": "alice"}
    assert claimed(session).instruction == "Two\nwords."


@both_ways
def test_nobody_else_edits_it(session, bob, staff, headers):
    before = everything()
    for other in (bob, staff):
        answer = edit(other, session.turns.get(), "Mine.", headers)
        assert answer.status_code == 403
        assert "Only who submitted a turn can edit it." in said(answer)
    assert everything() == before


@both_ways
@pytest.mark.parametrize(
    "gone",
    [claimed, lambda s: parked(claimed(s)), lambda s: finished(claimed(s))],
    ids=["running", "waiting", "completed"],
)
def test_a_turn_that_was_started_is_not_edited(session, alice, headers, gone):
    turn = gone(session)
    before = everything()
    answer = edit(alice, turn, "Something else.", headers)
    assert answer.status_code == 409
    assert "only a queued turn can be edited" in said(answer)
    assert everything() == before


@both_ways
def test_an_edit_with_a_mistake_is_refused_with_its_line(session, alice, headers):
    before = everything()
    answer = edit(alice, session.turns.get(), "One\n\n```sh x=y\nls\n```\n", headers)
    assert answer.status_code == 422
    assert "Line 3" in said(answer)
    assert everything() == before


@both_ways
def test_an_edit_that_changes_nothing_tells_nothing(session, alice, headers):
    before = everything()
    answer = edit(alice, session.turns.get(), "Just a word.", headers)
    assert answer.status_code == (200 if headers else 302)
    assert everything() == before


@both_ways
def test_who_may_not_use_the_agent_any_more_edits_and_retries_nothing(
    session, agent, alice, headers
):
    failed = finished(claimed(session), "FAILED")
    queued, _ = session.submit("And this.", author=alice)
    agent.members.remove(alice)
    before = everything()
    assert edit(alice, queued, "Something else.", headers).status_code == 403
    answer = signed_in(alice).post(f"/turns/{failed.pk}/retry/", **headers)
    assert answer.status_code == 403
    assert "no member" in said(answer)
    assert everything() == before


def test_an_edited_form_that_is_sent_again_is_still_the_same_form(agent, alice):
    form = {"agent": agent.pk, "instruction": "First words.", "submission": "form-1"}
    first = signed_in(alice).post("/sessions/", form)
    session = Session.objects.get()
    edit(alice, session.turns.get(), "Better words.", {})
    before = everything()
    assert signed_in(alice).post("/sessions/", form)["Location"] == first["Location"]
    again = {**form, "instruction": "Better words."}
    assert signed_in(alice).post("/sessions/", again).status_code == 409
    assert everything() == before


# -- stopping and trying again ---------------------------------------------------------------------


def cancel(user: User, turn: Turn, headers: dict[str, str]) -> HttpResponse:
    address = f"/turns/{turn.pk}/cancellation/"
    return signed_in(user).post(address, {"reason": "Wrong branch."}, **headers)


@both_ways
@pytest.mark.parametrize(
    "scene", [lambda s: s.turns.get(), lambda s: parked(claimed(s))], ids=["queued", "waiting"]
)
def test_who_stopped_a_turn_and_why_is_told(session, bob, headers, scene):
    was_done(cancel(bob, scene(session), headers), headers)
    assert last_event(session, "turn.cancelled") == {"by": "bob", "reason": "Wrong branch."}


@both_ways
def test_a_running_turn_is_asked_to_end_by_whom_and_why(session, bob, headers):
    turn = claimed(session)
    was_done(cancel(bob, turn, headers), headers)
    turn.refresh_from_db()
    assert (turn.cancel_requested_by, turn.cancel_reason) == ("bob", "Wrong branch.")


@both_ways
def test_a_retried_turn_names_the_new_one_and_a_second_click_makes_no_other(
    session, alice, headers
):
    failed = finished(claimed(session), "FAILED")
    for _ in range(2):
        was_done(signed_in(alice).post(f"/turns/{failed.pk}/retry/", **headers), headers)
    assert session.turns.count() == 2
    [told] = session.events.filter(type="turn.retried")
    assert (told.turn, told.data) == (failed, {"number": 2})
    assert told.item == session.events.get(type="turn.queued", turn=failed).item


@both_ways
@pytest.mark.parametrize(
    ("scene", "why"),
    [
        (lambda s, by: s.turns.get(), "failed or was cancelled"),
        (lambda s, by: claimed(s), "failed or was cancelled"),
        (lambda s, by: finished(claimed(s)), "failed or was cancelled"),
        (lambda s, by: archived_with_a_failed_turn(s, by), "archived"),
    ],
    ids=["queued", "running", "completed", "archived"],
)
def test_what_cannot_be_retried_is_refused(session, alice, headers, scene, why):
    turn = scene(session, alice)
    before = everything()
    answer = signed_in(alice).post(f"/turns/{turn.pk}/retry/", **headers)
    assert answer.status_code == 409
    assert why in said(answer)
    assert everything() == before


def archived_with_a_failed_turn(session: Session, by: User) -> Turn:
    turn = finished(claimed(session), "FAILED")
    session.archive(by=by)
    return turn


# -- sessions --------------------------------------------------------------------------------------


def move(
    user: User, session: Session, verb: str, headers: dict[str, str], **form: str
) -> HttpResponse:
    return signed_in(user).post(f"/sessions/{session.pk}/{verb}/", form, **headers)


CLOSING = [("completion", "completed"), ("cancellation", "cancelled")]


@both_ways
@pytest.mark.parametrize(("verb", "state"), CLOSING)
@pytest.mark.parametrize("reason", ["", "Good enough.", "a\x00b"])
def test_a_session_is_closed_with_who_and_why(session, bob, headers, verb, state, reason):
    parked(claimed(session))
    was_done(move(bob, session, verb, headers, reason=reason), headers)
    session.refresh_from_db()
    assert session.state == state.upper()
    kept = reason.replace("\x00", "\N{SYMBOL FOR NULL}")
    assert last_event(session, f"session.{state}") == {"by": "bob", "reason": kept}
    turn = last_event(session, "turn.cancelled")
    assert turn == {"by": "bob", "reason": kept or "the session was closed"}


@both_ways
@pytest.mark.parametrize("verb", ["completion", "cancellation"])
@pytest.mark.parametrize("state", ["COMPLETED", "CANCELLED", "ARCHIVED"])
def test_a_session_that_is_closed_already_is_not_closed(session, alice, headers, verb, state):
    session.close("CANCELLED" if state == "CANCELLED" else "COMPLETED", by=alice)
    if state == "ARCHIVED":
        session.archive(by=alice)
    before = everything()
    answer = move(alice, session, verb, headers)
    assert answer.status_code == 409
    assert f"{state.lower()} already" in said(answer)
    assert everything() == before


@both_ways
def test_a_session_is_archived_and_brought_back_and_each_is_told(session, bob, headers):
    finished(claimed(session))
    for verb, event in (("archival", "session.archived"), ("restoration", "session.unarchived")):
        was_done(move(bob, session, verb, headers), headers)
        assert last_event(session, event) == {"by": "bob", "reason": ""}
        assert types(session)[-1] == event


@both_ways
@pytest.mark.parametrize(
    ("verb", "why"), [("archival", "A turn is still open"), ("restoration", "not archived")]
)
def test_what_is_open_is_not_archived_and_what_is_not_archived_is_not_brought_back(
    session, alice, headers, verb, why
):
    before = everything()
    answer = move(alice, session, verb, headers)
    assert answer.status_code == 409
    assert why in said(answer)
    assert everything() == before


@both_ways
def test_a_closed_session_is_reopened_by_a_new_turn_and_that_is_told(session, alice, bob, headers):
    session.close("COMPLETED", by=alice)
    assert submit(bob, session, headers).status_code in {200, 302}
    assert last_event(session, "session.activated") == {"by": "bob", "reason": ""}

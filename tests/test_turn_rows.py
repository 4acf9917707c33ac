"""What a session's page says of its turns: how far, by whom held, how to go on, at what cost."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from html import unescape
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models.functions import Now
from django.http import HttpResponse
from django.test.utils import CaptureQueriesContext

from sessions_app import events
from sessions_app.models import Event, Session, Turn
from sessions_app.models.usage import Usage
from sessions_app.templatetags.signalbox import used
from sessions_app.timeline import fold, render_row

from .conftest import signed_in
from .pages import Node, parse
from .scenes import claimed, finished, held, let_the_lease_run_out, open_session, parked

pytestmark = pytest.mark.django_db

HTMX = {"HTTP_HX_REQUEST": "true"}


def record(turn: Turn, *payloads: events.Payload) -> None:
    with transaction.atomic():
        Session.objects.lock(turn.session_id).record(*payloads, turn=turn)


def row_of(turn: Turn) -> str:
    """The head of a turn, as pages and frames show it."""
    [item] = fold([], Event.objects.filter(item=f"turn:{turn.pk}"))
    return render_row(item)


def page(session: Session, user: Any) -> Node:
    answer = signed_in(user).get(f"/sessions/{session.pk}/")
    assert answer.status_code == 200
    return parse(answer.content.decode())


def part(session: Session, user: Any, id: str) -> Node:
    found = page(session, user).find(id)
    assert found is not None, f"there is no #{id} on the page"
    return found


def every(node: Node, tag: str) -> list[Node]:
    inner = [found for c in node.children if isinstance(c, Node) for found in every(c, tag)]
    return [node, *inner] if node.tag == tag else inner


# -- progress --------------------------------------------------------------------------------------


def test_an_open_turn_says_how_far_it_has_come(session):
    turn = claimed(session)
    assert "<progress" not in row_of(turn)
    record(turn, events.ProgressUpdated(label="Half <done>", fraction=0.25))
    record(turn, events.ProgressUpdated(label="Half <done>", fraction=0.5))
    [bar] = every(parse(row_of(turn)), "progress")
    assert bar.attributes == {"max": "1", "value": "0.5"}
    [label] = every(parse(row_of(turn)), "label")
    assert label.text().startswith("Half <done>"), "the label names the bar"


def test_progress_without_a_fraction_has_a_bar_without_a_value(session):
    turn = claimed(session)
    record(turn, events.ProgressUpdated(label="Copying"))
    [bar] = every(parse(row_of(turn)), "progress")
    assert bar.attributes == {"max": "1"}


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "CANCELLED"])
def test_a_turn_that_has_ended_shows_no_bar(session, state):
    turn = claimed(session)
    record(turn, events.ProgressUpdated(label="Copying", fraction=0.9))
    finished(turn, state)
    assert "<progress" not in row_of(turn)


def test_the_head_of_an_open_turn_is_on_the_page_however_long_ago_it_began(session, alice):
    turn = claimed(session)
    record(turn, events.ProgressUpdated(label="Far from done", fraction=0.1))
    record(turn, *(events.MessageCreated(role="assistant", text=f"{n}") for n in range(200)))
    timeline = part(session, alice, "timeline")
    assert "Far from done" in timeline.text()
    heads = [row for row in every(timeline, "li") if "data-number" in row.attributes]
    assert len(heads) == 1
    finished(turn)
    assert "Turn 1" not in part(session, alice, "timeline").text()


def test_the_head_of_an_open_turn_is_on_the_page_once(session, alice):
    claimed(session)
    heads = [row for row in every(page(session, alice), "li") if "data-number" in row.attributes]
    assert len(heads) == 1


def test_a_turn_that_was_taken_up_again_says_so_with_its_attempt(session):
    let_the_lease_run_out(claimed(session))
    assert "taken up again, attempt 2" in row_of(claimed(session, "second-worker"))


# -- retrying --------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED"])
def test_a_turn_that_ended_badly_offers_retry_until_it_was_retried(session, alice, state):
    turn = finished(claimed(session), state)
    assert f"/turns/{turn.pk}/retry/" in row_of(turn)
    again = turn.retry(by=alice)
    row = row_of(turn)
    assert f"/turns/{turn.pk}/retry/" not in row
    [link] = every(parse(row), "a")
    assert link.text() == "Retried as turn 2"
    target = page(session, alice).find(str(link.attributes["href"]).removeprefix("#"))
    assert target is not None
    assert target.attributes["data-turn"] == again.pk
    assert "retry of turn 1" in target.text()


def test_a_turn_that_ended_well_offers_no_retry(session):
    assert "retry" not in row_of(finished(claimed(session))).lower()


# -- stopping and closing, with a reason -----------------------------------------------------------


def test_a_turn_is_stopped_with_a_reason_that_its_row_shows(session, alice):
    turn = parked(claimed(session))
    header = part(session, alice, "session-header")
    assert [form.attributes["action"] for form in every(header, "form")] == [
        f"/turns/{turn.pk}/cancellation/"
    ]
    signed_in(alice).post(f"/turns/{turn.pk}/cancellation/", {"reason": "Wrong <numbers>."})
    said = parse(row_of(turn)).text()
    assert "cancelled by alice" in said
    assert "Wrong <numbers>." in said


@pytest.mark.parametrize(
    ("verb", "word"), [("completion", "completed"), ("cancellation", "cancelled")]
)
def test_a_session_is_closed_with_a_reason_that_its_row_shows(session, alice, verb, word):
    address = f"/sessions/{session.pk}/{verb}/"
    assert address in signed_in(alice).get(f"/sessions/{session.pk}/").content.decode()
    signed_in(alice).post(address, {"reason": "Nobody needs it."})
    timeline = part(session, alice, "timeline")
    assert f"Session {word} by alice : Nobody needs it." in timeline.text()


# -- who holds it ----------------------------------------------------------------------------------


def holder(session: Session, user: Any) -> Node:
    answer = signed_in(user).get(f"/sessions/{session.pk}/holder/", **HTMX)
    assert answer.status_code == 200
    found = parse(answer.content.decode()).find("holder")
    assert found is not None
    return found


def counted(node: Node, name: str) -> int:
    [found] = [e for e in every(node, "span") if name in e.attributes]
    return int(found.attributes[name] or -1)


def looks_again(node: Node) -> bool:
    return "hx-get" in node.attributes


def test_a_running_turn_shows_its_attempt_its_worker_and_how_fresh_the_lease_is(
    session, alice, settings
):
    settings.SIGNALBOX = {**settings.SIGNALBOX, "LEASE_SECONDS": 100.0}
    turn = claimed(session, "host:42:abc")
    Turn.objects.filter(pk=turn.pk).update(lease_until=Now() + timedelta(seconds=60))
    for shown in (holder(session, alice), part(session, alice, "holder")):
        assert "Attempt 1" in shown.text()
        assert "host:42:abc" in shown.text()
        assert 40_000 <= counted(shown, "data-passed") < 60_000
        assert 40_000 < counted(shown, "data-left") <= 60_000
        assert looks_again(shown)


def test_a_worker_that_does_not_answer_is_not_passed_off_as_alive(session, alice):
    let_the_lease_run_out(claimed(session))
    shown = holder(session, alice)
    assert "Lease ended" in shown.text()
    assert "does not answer" in shown.text()
    assert looks_again(shown)


def test_a_running_turn_that_nobody_holds_waits_for_a_worker(session, alice):
    turn = claimed(session)
    with held(turn):
        turn.release()
    assert "Nobody holds it: waiting for a worker." in holder(session, alice).text()


def test_where_nothing_runs_the_page_does_not_ask_again(session, alice):
    queued = holder(session, alice)
    assert "Turn 1 waits for a worker." in queued.text()
    assert not looks_again(queued)
    turn = parked(claimed(session))
    waiting = holder(session, alice)
    assert "holds no worker" in waiting.text()
    assert not looks_again(waiting)
    Turn.objects.filter(pk=turn.pk).update(state="CANCELLED", finished_at=Now())
    assert not looks_again(holder(session, alice))
    assert page(session, alice).find("holder") is None


def test_asking_who_holds_a_turn_costs_the_same_however_many_there_are(session, alice):
    claimed(session)
    client = signed_in(alice)
    counts = []
    for more in range(2):
        for n in range(20 * more):
            session.submit(f"More {n}.", author=alice)
        with CaptureQueriesContext(
            connection,
        ) as queries:
            client.get(f"/sessions/{session.pk}/holder/", **HTMX)
        counts.append(len(queries))
    assert counts[0] == counts[1]


# -- the queue -------------------------------------------------------------------------------------


@pytest.fixture
def queued(session: Session, alice: Any) -> Turn:
    """Alice's second turn, behind one that runs."""
    claimed(session)
    return session.submit("Then this.", author=alice)[0]


def edit(turn: Turn, user: Any, instruction: str, **more: Any) -> HttpResponse:
    form = {"instruction": instruction, **{k: v for k, v in more.items() if k in FIELDS}}
    headers = {k: v for k, v in more.items() if k not in FIELDS}
    return signed_in(user).post(f"/turns/{turn.pk}/instruction/", form, **headers)


FIELDS = {"as_new", "submission"}


def test_a_queued_turn_is_edited_and_its_message_shows_the_latest_text(queued, session, alice):
    for text in ("Then that.", "Then *those*."):
        assert edit(queued, alice, text, **HTMX).status_code == 200
    said = part(session, alice, "timeline").text()
    assert "Then this." not in said
    assert "Then that." not in said
    assert "Then those ." in said
    assert "edited" in said
    assert "Then *those*." in part(session, alice, "composer-state").text()


@pytest.mark.parametrize("headers", [{}, HTMX])
def test_an_edit_that_comes_too_late_keeps_the_text_to_be_sent_as_a_new_turn(
    queued, session, alice, headers
):
    queued.cancel(by=alice)
    answer = edit(queued, alice, "A better idea.", **headers)
    assert answer.status_code == 409
    said = unescape(answer.content.decode())
    assert "cancelled already" in said
    assert "A better idea." in said
    assert 'name="as_new"' in said
    for _ in range(2):
        edit(queued, alice, "A better idea.", as_new="1", submission="once", **headers)
    assert list(session.turns.filter(number__gt=2).values_list("instruction", flat=True)) == [
        "A better idea."
    ]
    queued.refresh_from_db()
    assert queued.instruction == "Then this."


def test_a_wrong_edit_is_said_beside_its_text_and_changes_nothing(queued, alice):
    wrong = "```sh gate=allow\nls\n```\n"
    answer = edit(queued, alice, wrong, **HTMX)
    assert answer.status_code == 422
    assert "Line 1" in answer.content.decode()
    assert wrong in unescape(answer.content.decode())
    queued.refresh_from_db()
    assert queued.instruction == "Then this."


def test_only_its_author_is_offered_to_edit_a_turn_and_only_they_can(queued, session, alice, bob):
    address = f"/turns/{queued.pk}/editor/"
    for person, offered in ((alice, True), (bob, False)):
        chips = part(session, person, "composer-state")
        [link] = [a for a in every(chips, "a") if a.attributes["href"] == address]
        assert ("hidden" not in link.attributes) == offered
        assert link.attributes["data-author"] == "alice"
    for headers in ({}, HTMX):
        assert signed_in(alice).get(address, **headers).status_code == 200
        assert signed_in(bob).get(address, **headers).status_code == 403
        assert edit(queued, bob, "Mine.", **headers).status_code == 403


def test_the_editor_of_a_turn_that_has_started_is_refused_with_the_reason(session, alice):
    turn = claimed(session)
    answer = signed_in(alice).get(f"/turns/{turn.pk}/editor/", **HTMX)
    assert answer.status_code == 409
    assert "running already" in answer.content.decode()


# -- sending while a turn is open ------------------------------------------------------------------


def chosen(answer: HttpResponse) -> list[str]:
    boxes = every(parse(answer.content.decode()), "input")
    return [str(box.attributes["value"]) for box in boxes if "checked" in box.attributes]


def test_what_will_happen_is_said_while_a_turn_is_open_and_only_then(session, alice):
    assert "data-open" not in part(session, alice, "composer-state").attributes
    turn = claimed(session)
    state = part(session, alice, "composer-state")
    assert state.attributes["data-open"] == "1"
    assert "runs after it" in state.text()
    assert "stops it and runs next" in state.text()
    finished(turn)
    assert "data-open" not in part(session, alice, "composer-state").attributes


@pytest.mark.parametrize("headers", [{}, HTMX])
def test_a_turn_that_interrupts_goes_first_and_the_next_form_queues_again(
    queued, session, alice, headers
):
    form = {"instruction": "At once.", "when_busy": "interrupt"}
    answer = signed_in(alice).post(f"/sessions/{session.pk}/turns/", form, **headers)
    assert answer.status_code == (200 if headers else 302)
    assert session.turns.queued().first().instruction == "At once."
    running = session.turns.get(number=1)
    assert running.cancel_requested_by == "alice"
    assert running.cancel_reason == "Turn 3 interrupted it"
    if headers:
        assert chosen(answer) == ["queue"]
    assert "alice asked it to stop: Turn 3 interrupted it" in re.sub(
        " :", ":", holder(session, alice).text()
    )


@pytest.mark.parametrize("headers", [{}, HTMX])
def test_the_choice_is_kept_when_the_text_is_refused(session, alice, headers):
    claimed(session)
    form = {"instruction": "", "when_busy": "interrupt"}
    answer = signed_in(alice).post(f"/sessions/{session.pk}/turns/", form, **headers)
    assert answer.status_code == 422
    assert chosen(answer) == ["interrupt"]


# -- usage and the reuse key -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amounts", "said"),
    [
        ({}, []),
        ({"compute_ms": 65_000}, [("Compute", "1 min 5 s")]),
        ({"storage_bytes": 1_100}, [("Artifacts", "1.1 kB")]),
        ({"output_tokens": 12_345}, [("Tokens", "0 in, 12,345 out")]),
        ({"cost": Decimal("1234.5")}, [("Cost", "$1,234.50")]),
        ({"cost": Decimal("0.000120")}, [("Cost", "$0.00012")]),
    ],
)
def test_usage_is_said_in_words_and_only_what_there_is(amounts, said):
    assert used(Turn(**amounts)) == said


def test_usage_is_shown_for_each_turn_and_for_the_session(session, alice):
    turn = finished(claimed(session))
    amounts = {"compute_ms": 2_000, "input_tokens": 7, "cost": Decimal("0.5")}
    for row in (Turn.objects.filter(pk=turn.pk), Session.objects.filter(pk=session.pk)):
        row.update(**Usage.more(**amounts))
    said = part(session, alice, "inspector").text()
    assert "compute 2.0 s · tokens 7 in, 0 out · cost $0.50" in said
    assert "Compute 2.0 s Tokens 7 in, 0 out Cost $0.50" in said


def test_an_event_of_usage_is_no_row_to_read(session, alice):
    turn = claimed(session)
    record(turn, events.UsageRecorded(input_tokens=7))
    timeline = part(session, alice, "timeline")
    assert "cannot be shown" not in timeline.text()


def test_the_reuse_key_is_shown_if_there_is_one(agent, session, alice):
    assert "Reuse key" not in part(session, alice, "inspector").text()
    kept, _ = Session.objects.start(
        agent=agent, owner=alice, instruction="Look.", reuse_key="incident <4127>"
    )
    assert "incident <4127>" in part(kept, alice, "inspector").text()


def test_a_page_costs_the_same_however_many_turns_it_shows(agent, alice):
    session = open_session(agent, alice)
    client = signed_in(alice)
    counts = []
    for more in range(2):
        for n in range(10 * more):
            session.submit(f"More {n}.", author=alice)
        with CaptureQueriesContext(connection) as queries:
            client.get(f"/sessions/{session.pk}/")
        counts.append(len(queries))
    assert counts[0] == counts[1]

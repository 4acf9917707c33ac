"""Progress, edits and retries belong to rows that are there: they change them and add none."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection, transaction

from sessions_app import timeline
from sessions_app.events import Payload, ProgressUpdated
from sessions_app.models import Session, Turn

from .scenes import claimed, finished, held

pytestmark = pytest.mark.django_db


def items(session: Session) -> list[timeline.Item]:
    session.refresh_from_db()
    return timeline.page_before(session)[0]


def row_of(session: Session, turn: Turn) -> timeline.Item:
    [row] = [item for item in items(session) if item.anchor.item == f"turn:{turn.pk}"]
    assert row.family == "turn"
    assert f'id="event-{row.seq}"' in timeline.render_row(row)
    return row


def say(turn: Turn, *payloads: Payload) -> None:
    with held(turn) as locked:
        locked.record(*payloads, turn=turn)


def test_progress_is_shown_on_its_turn_and_the_latest_counts(session, alice):
    turn = claimed(session)
    before = [item.seq for item in items(session)]
    for step in range(3):
        say(turn, ProgressUpdated(label=f"Step {step + 1} of 3", fraction=step / 3))
    assert [item.seq for item in items(session)] == before, "no row of its own"
    row = row_of(session, turn)
    assert row.parts["progress.updated"].data["label"] == "Step 3 of 3"
    assert row.data["number"] == 1, "the row is still the turn's"


def test_progress_of_one_turn_is_not_shown_on_another(session, alice):
    first = claimed(session)
    say(first, ProgressUpdated(label="First", fraction=0.5))
    finished(first)
    session.submit("And this.", author=alice)
    second = claimed(session)
    assert "progress.updated" not in row_of(session, second).parts
    say(second, ProgressUpdated(label="Second"))
    assert row_of(session, first).parts["progress.updated"].data["label"] == "First"


def test_progress_that_belongs_to_no_turn_is_a_row_alone(session):
    with transaction.atomic():
        session.record(ProgressUpdated(label="One"), ProgressUpdated(label="Two"))
    rows = [item for item in items(session) if item.family == "progress"]
    assert [row.data["label"] for row in rows] == ["One", "Two"]


def test_an_edit_changes_the_row_of_the_instruction_and_a_retry_that_of_the_turn(session, alice):
    turn = session.turns.get()
    turn.edit("Better words.", by=alice)
    [row] = [item for item in items(session) if item.anchor.item == f"instruction:{turn.pk}"]
    assert (row.family, row.last.type, row.last.data["text"]) == (
        "message", "turn.edited", "Better words.",
    )  # fmt: skip
    finished(claimed(session), "FAILED")
    count = len(items(session))
    turn.retry(by=alice)
    assert row_of(session, turn).parts["turn.retried"].data == {"number": 2}
    assert len(items(session)) == count + 3, "the new turn, its words, and the session's state"


def rows_read(session: Session, item: str) -> int:
    """How many rows the reading of an item's parts takes from the table."""
    with connection.cursor() as cursor:
        # A table as small as a test's would be read whole, whatever indexes it has.
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("SET LOCAL enable_bitmapscan = off")
        cursor.execute(
            f"EXPLAIN (ANALYZE, TIMING off, FORMAT json) {timeline.PARTS}",
            {"session": session.pk, "items": [item]},
        )
        [[[plan]]] = cursor.fetchall()

    def read(node: dict[str, Any]) -> float:
        here = node["Actual Rows"] * node["Actual Loops"] if "Relation Name" in node else 0
        return here + sum(map(read, node.get("Plans", [])))

    return round(read(plan["Plan"]))


def test_reading_a_turns_row_does_not_grow_with_its_progress(session):
    turn = claimed(session)
    reads = []
    for _ in range(2):
        say(turn, *(ProgressUpdated(label=f"{n}", fraction=0.5) for n in range(500)))
        reads.append(rows_read(session, f"turn:{turn.pk}"))
    assert 0 < reads[0] < 20
    assert reads[1] == reads[0]

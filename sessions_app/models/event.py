"""One immutable, numbered fact in a session's stream, and the one statement that appends them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import psycopg
from django.db import connection, models

from .. import events
from ..events import Payload

# Allocated under the session's row lock, so commit order equals number order and a cursor over
# `seq` loses nothing. The fence is a column of the very row that is locked: a test of another
# table in this statement would be evaluated on an old snapshot. Lists are ordered by the last
# activity: as long as that is exact to a second, most updates have no index to change.
APPEND = """
WITH numbered AS (
    UPDATE sessions_app_session
       SET last_seq = last_seq + %(count)s,
           last_activity_at = CASE WHEN last_activity_at < clock_timestamp() - interval '1 second'
               THEN clock_timestamp() ELSE last_activity_at END,
           listed_at = CASE WHEN %(listed)s THEN clock_timestamp() ELSE listed_at END
     WHERE id = %(session)s AND (%(fence)s::text IS NULL OR fence = %(fence)s)
 RETURNING last_seq
), appended AS (
    INSERT INTO sessions_app_event (session_id, seq, turn_id, type, item, data, created_at)
    SELECT %(session)s, last_seq - %(count)s + n, %(turn)s, type, item, data, clock_timestamp()
      FROM numbered,
           ROWS FROM (json_to_recordset(%(events)s) AS (type text, item text, data jsonb))
           WITH ORDINALITY AS event(type, item, data, n)
)
SELECT last_seq FROM numbered
"""

# Kinds of events that change what lists show of a session.
LISTED = ("session.", "turn.", "approval_request.")


class Fenced(Exception):
    """The writer no longer holds the turn: nothing was written, and it has to stop."""


def changes_lists(payloads: Sequence[Payload]) -> bool:
    """Whether lists of sessions show something else after these."""
    return any(payload.type.startswith(LISTED) for payload in payloads)


def append_parameters(
    session_id: str, payloads: Sequence[Payload], turn_id: str | None, fence: str | None
) -> dict[str, Any]:
    """Return what APPEND takes. `fence=None` is for writers that hold the session's row lock."""
    return {
        "session": session_id,
        "turn": turn_id,
        "fence": fence,
        "count": len(payloads),
        "listed": changes_lists(payloads),
        # One text for all of them: arrays would be quoted element by element, at a multiple of the
        # cost of everything else here.
        "events": f"[{','.join(_as_json(payload, turn_id or '') for payload in payloads)}]",
    }


def _as_json(payload: Payload, turn_id: str) -> str:
    item = json.dumps(payload.item(turn_id))
    return f'{{"type": "{payload.type}", "item": {item}, "data": {payload.model_dump_json()}}}'


class EventQuerySet(models.QuerySet["Event"]):
    def after(self, seq: int) -> EventQuerySet:
        return self.filter(seq__gt=seq)

    def append(
        self,
        session_id: str,
        payloads: Sequence[Payload],
        *,
        turn_id: str | None = None,
        fence: str | None = None,
    ) -> int:
        """Append on Django's connection and return the last seq. Use `Session.record`."""
        connection.ensure_connection()
        connection.validate_no_broken_transaction()
        # A cursor of psycopg's own: Django's sends the text anew each time, and PostgreSQL spends
        # as long on planning it as on doing it. This one has it prepared.
        with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
            cursor.execute(APPEND, append_parameters(session_id, payloads, turn_id, fence))
            return _last_seq(session_id, cursor.fetchone())


async def append_async(
    conn: psycopg.AsyncConnection[Any],
    session_id: str,
    payloads: Sequence[Payload],
    *,
    turn_id: str,
    fence: str,
) -> int:
    """Append on a connection of the async pool and return the last seq. Raises Fenced."""
    cursor = await conn.execute(APPEND, append_parameters(session_id, payloads, turn_id, fence))
    return _last_seq(session_id, await cursor.fetchone())


def _last_seq(session_id: str, row: Sequence[int] | None) -> int:
    if row is None:
        raise Fenced(f"Session {session_id} has moved on; nothing was recorded.")
    return row[0]


class Event(models.Model):
    """Appended by `Session.record`, never changed. Its rows go with the history's retention."""

    id = models.BigAutoField(primary_key=True)
    # The append's own UPDATE proves that the session exists; a constraint would look it up again
    # for every row.
    session = models.ForeignKey(
        "Session", models.CASCADE, related_name="events", db_constraint=False, db_index=False
    )
    seq = models.BigIntegerField()
    turn = models.ForeignKey(
        "Turn", models.CASCADE, related_name="events", db_constraint=False, null=True
    )
    type = models.CharField(max_length=60, db_collation="C")
    item = models.CharField(max_length=200, db_collation="C")
    data = models.JSONField()
    created_at = models.DateTimeField()

    objects = EventQuerySet.as_manager()

    class Meta:
        ordering = ["session", "seq"]
        constraints = [
            models.UniqueConstraint(fields=["session", "seq"], name="one_event_per_number"),
        ]
        indexes = [
            # Finds the rest of a timeline item, whichever page its parts are on.
            models.Index(
                fields=["session", "item", "type", "seq"],
                condition=~models.Q(item=""),
                name="event_item",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.session_id} {self.seq} {self.type}"

    @property
    def payload(self) -> Payload:
        return events.load(self.type, self.data)


class Recorded(NamedTuple):
    """An event as feeds read it: what its row says, without a model's machinery."""

    session_id: str
    seq: int
    turn_id: str | None
    type: str
    item: str
    data: dict[str, Any]
    created_at: datetime

    @property
    def payload(self) -> Payload:
        return events.load(self.type, self.data)

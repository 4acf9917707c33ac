"""The timeline: events folded into items, one row each, for pages, catch-up and live alike.

An item is everything that happened to one thing: a call and its result, a request and its
resolution. Its row stands where its first event stands and shows the latest of each type.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from django.template import TemplateDoesNotExist
from django.template.loader import render_to_string, select_template
from pydantic import ValidationError

from . import events
from .models import Event, Session, Turn
from .models.event import Recorded

logger = logging.getLogger(__name__)

PAGE = 100
# A frame ends early when it is long: it may have to wait in memory for a reader.
FRAME_BYTES = 128 * 1024
ROW_BYTES = 256 * 1024

COLUMNS = "session_id, seq, turn_id, type, item, data, created_at"
PAGE_BEFORE = f"""
SELECT {COLUMNS} FROM sessions_app_event
 WHERE session_id = %(session)s AND seq < %(before)s ORDER BY seq DESC LIMIT {PAGE}
"""  # noqa: S608
# The first event, which says where the row stands, and the latest of each type are enough to draw
# an item, however often it was updated. Its types are found by stepping through the index from one
# to the next, so that it does not matter how many events there are of each.
PARTS_OF_TOUCHED = """
types (item, type) AS (
    SELECT item, (SELECT min(type) FROM sessions_app_event AS event
                   WHERE session_id = %(session)s AND event.item = touched.item AND item <> '')
      FROM touched
    UNION ALL
    SELECT item, (SELECT min(type) FROM sessions_app_event AS event
                   WHERE session_id = %(session)s AND event.item = types.item AND item <> ''
                     AND event.type > types.type)
      FROM types WHERE type IS NOT NULL
), parts AS (
    SELECT place, part.* FROM touched JOIN types USING (item) CROSS JOIN LATERAL (
        (SELECT * FROM sessions_app_event AS latest
          WHERE session_id = %(session)s AND latest.item = types.item AND item <> ''
            AND latest.type = types.type ORDER BY seq DESC LIMIT 1)
        UNION ALL
        (SELECT * FROM sessions_app_event AS first
          WHERE session_id = %(session)s AND first.item = types.item AND item <> ''
            AND first.type = types.type ORDER BY seq LIMIT 1)
    ) AS part
)"""
PARTS = f"""
WITH RECURSIVE touched (item, place) AS (
    SELECT * FROM unnest(%(items)s::text[]) WITH ORDINALITY
), {PARTS_OF_TOUCHED}
SELECT {COLUMNS} FROM parts
"""  # noqa: S608
# As it was when `last` was recorded.
PARTS_UNTIL = PARTS.replace("= types.type ORDER BY", "= types.type AND seq <= %(last)s ORDER BY")

# What changes the regions beside the timeline.
REGIONAL = (
    "session.",
    "turn.",
    "approval_request.",
    "artifact.",
    "execution_environment.",
    "usage.",
)

FAMILIES = {
    "tool_call.started": "tool_call",
    "approval_request.created": "approval_request",
    "turn.queued": "turn",
    "message.created": "message",
    "artifact.created": "artifact",
    "progress.updated": "progress",
    "handoff_summary.created": "handoff_summary",
    "session.forked": "fork",
    "session.delegated": "delegation",
}


Fact = Event | Recorded


@dataclass
class Item:
    """One row of the timeline. `parts` holds its latest event of each type, the anchor too."""

    anchor: Fact
    parts: dict[str, Fact] = field(default_factory=dict)
    inherited: bool = False
    """Shown above a fork: a row of the session it was forked from, to be read only."""

    @property
    def seq(self) -> int:
        return self.anchor.seq

    @property
    def dom_id(self) -> str:
        return f"{'inherited' if self.inherited else 'event'}-{self.anchor.seq}"

    @property
    def data(self) -> dict[str, Any]:
        """What the first event says."""
        return self.anchor.data

    @property
    def last(self) -> Fact:
        return max(self.parts.values(), key=lambda event: event.seq, default=self.anchor)

    @property
    def family(self) -> str:
        """The name of the row's template: a kind of event is a file of its own."""
        type = self.anchor.type
        if type == "widget.created":
            return "widget"
        return FAMILIES.get(type, type.partition(".")[0])

    @cached_property
    def payload(self) -> events.Payload:
        return self.anchor.payload

    # What templates ask for; None when it has not happened.

    @property
    def result(self) -> dict[str, Any] | None:
        """What became of a call."""
        completed = self.parts.get("tool_call.completed")
        return completed.data if completed else None

    @property
    def status(self) -> str:
        """How a call ended, or that it runs."""
        return str(self.result["status"]) if self.result else "running"

    @property
    def resolved(self) -> Fact | None:
        return self.parts.get("approval_request.resolved")

    @property
    def handed_over(self) -> Fact | None:
        return self.parts.get("handoff_summary.created")

    @property
    def started(self) -> Fact | None:
        return self.parts.get("turn.started")

    @property
    def progress(self) -> Fact | None:
        return self.parts.get("progress.updated")

    @property
    def retried(self) -> Fact | None:
        return self.parts.get("turn.retried")

    @property
    def retry_id(self) -> str:
        """The row of the turn that repeats this one: its event is recorded right after ours."""
        return f"event-{self.retried.seq + 1}" if self.retried else ""

    @property
    def text(self) -> str:
        """What a message says now."""
        return str((self.edited or self.anchor).data["text"])

    @property
    def edited(self) -> Fact | None:
        return self.parts.get("turn.edited")

    @property
    def ended(self) -> Fact | None:
        for type in ("turn.completed", "turn.failed", "turn.cancelled"):
            if event := self.parts.get(type):
                return event
        return None

    @property
    def phase(self) -> str:
        """How far a turn has come: queued, open or ended."""
        return "ended" if self.ended else "open" if self.started else "queued"


def fold(page: Iterable[Fact], parts: Iterable[Fact]) -> list[Item]:
    """Fold a page of events and the parts of the items it touches into items, in their order."""
    named: dict[str, Item] = {}
    alone: list[Item] = []
    for event in sorted((*page, *parts), key=lambda event: event.seq):
        if not event.item:
            alone.append(Item(event, {event.type: event}))
        elif event.item in named:
            named[event.item].parts[event.type] = event
        else:
            named[event.item] = Item(event, {event.type: event})
    return sorted((*alone, *named.values()), key=lambda item: item.seq)


def names(page: Sequence[Fact]) -> list[str]:
    """The items that a page touches, in the order in which it does."""
    return list(dict.fromkeys(event.item for event in page if event.item))


@cache
def _template(family: str) -> Any:
    """Find the template of a family once."""
    names = [f"sessions/events/kinds/{name}.html" for name in (family, "unknown")]
    return select_template(names)


def render_row(item: Item, *, replace: bool = False) -> str:
    """Render one row. One that cannot be rendered, or is too long, becomes one that says so."""
    context = {"item": item, "data": item.data, "replace": replace}
    try:
        item.payload  # noqa: B018  -- refuses data that does not fit its type
        row = _template(item.family).render(context)
    except (TemplateDoesNotExist, ValidationError, KeyError, ValueError, TypeError):
        logger.exception("Event %s of %s cannot be shown.", item.seq, item.anchor.session_id)
        row = render_to_string("sessions/events/kinds/unknown.html", context)
    if len(row) * 4 > ROW_BYTES and len(row.encode()) > ROW_BYTES:
        return render_to_string("sessions/events/too_long.html", context)
    return row


def page_before(session: Session, before: int | None = None) -> tuple[list[Item], int, int]:
    """Return the items that begin in the page of events before `before`, its first seq, its last.

    Without `before` it is the newest page. An item that began earlier is on its own page.
    """
    limit = before if before is not None else session.last_seq + 1
    arguments = {"session": session.pk, "before": limit}
    rows = list(Event.objects.raw(with_id(PAGE_BEFORE), arguments))[::-1]
    if not rows:
        return [], 0, limit - 1
    parts = Event.objects.raw(with_id(PARTS), {"session": session.pk, "items": names(rows)})
    first = rows[0].seq
    items = [item for item in fold(rows, parts) if item.seq >= first]
    return items, first, rows[-1].seq


def head_of(turn: Turn, before: int) -> Item | None:
    """Return the row of a turn, if it began before the page of rows that begins with `before`."""
    arguments = {"session": turn.session_id, "items": [f"turn:{turn.pk}"]}
    items = fold([], Event.objects.raw(with_id(PARTS), arguments))
    return next((item for item in items if item.seq < before), None)


def with_id(sql: str) -> str:
    """A raw queryset wants the primary key too."""
    return sql.replace(COLUMNS, f"id, {COLUMNS}")


@dataclass(frozen=True)
class Frame:
    """One page of events as the fragments that put it on a page."""

    first: int
    last: int
    rows: str
    regional: bool
    full: bool

    @property
    def text(self) -> str:
        """What is sent: numbers in front, so that a page can skip what it has."""
        return f"<!--{self.first} {self.last}-->{self.rows}"


def drawing(
    after: int, page: Sequence[Fact], parts: Sequence[Fact], ahead: int = 0
) -> Generator[None, None, Frame]:
    """Draw the page of events after `after`: new rows appended, earlier ones replaced.

    The frame ends before the event that would make it too long. `ahead` is where it might have
    ended. Stops after each row, so that whoever draws it can look after others meanwhile.
    """
    items = {item.anchor.item or item.seq: item for item in fold(page, parts)}
    rows: dict[int, str] = {}
    size, taken = 0, 0
    for event in page:
        item = items[event.item or event.seq]
        if item.seq not in rows:
            row = render_row(item, replace=item.seq <= after)
            size += len(row.encode())
            if rows and size > FRAME_BYTES:
                break
            rows[item.seq] = row
            yield
        taken += 1
    last = page[taken - 1].seq
    fresh = "".join(rows[seq] for seq in sorted(rows) if seq > after)
    appended = f'<ol id="timeline" hx-swap-oob="beforeend">{fresh}</ol>' if fresh else ""
    return Frame(
        first=page[0].seq,
        last=last,
        rows=appended + "".join(rows[seq] for seq in sorted(rows) if seq <= after),
        regional=any(event.type.startswith(REGIONAL) for event in page[:taken]),
        full=len(page) == PAGE or last < ahead,
    )


def frame(after: int, page: Sequence[Fact], parts: Sequence[Fact], ahead: int = 0) -> Frame:
    """Draw a page of events in one go."""
    steps = drawing(after, page, parts, ahead)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value

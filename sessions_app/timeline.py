"""The timeline: events folded into items, one row each, for pages, catch-up and live alike.

An item is everything that happened to one thing: a call and its result, a request and its
resolution. Its row stands where its first event stands and shows the latest of each type.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any

from django.template import TemplateDoesNotExist
from django.template.loader import render_to_string, select_template
from pydantic import ValidationError

from . import events
from .models import Event, Session

logger = logging.getLogger(__name__)

PAGE = 100
# A page that is sent ends early when it is long: a frame may have to wait in memory for a reader.
READ_BYTES = 128 * 1024
FRAME_BYTES = 128 * 1024
ROW_BYTES = 256 * 1024

COLUMNS = "session_id, seq, turn_id, type, item, data, created_at"
# The last column is where the page would end if its events were short.
PAGE_AFTER = f"""
SELECT {COLUMNS}, ahead FROM (
  SELECT *, max(seq) OVER () AS ahead, sum(size) OVER (ORDER BY seq) - size AS before FROM (
    SELECT {COLUMNS}, octet_length(data::text) AS size FROM sessions_app_event
     WHERE session_id = %(session)s AND seq > %(after)s ORDER BY seq LIMIT {PAGE}) AS sized
) AS page WHERE before < {READ_BYTES} ORDER BY seq
"""  # noqa: S608
PAGE_BEFORE = f"""
SELECT {COLUMNS} FROM sessions_app_event
 WHERE session_id = %(session)s AND seq < %(before)s ORDER BY seq DESC LIMIT {PAGE}
"""  # noqa: S608
# The first event, which says where the row stands, and the latest of each type are enough to draw
# an item, however often it was updated.
PARTS = f"""
(SELECT DISTINCT ON (item, type) {COLUMNS} FROM sessions_app_event
  WHERE session_id = %(session)s AND item = ANY(%(items)s) AND item <> ''
  ORDER BY item, type, seq DESC)
UNION ALL
(SELECT DISTINCT ON (item) {COLUMNS} FROM sessions_app_event
  WHERE session_id = %(session)s AND item = ANY(%(items)s) AND item <> ''
  ORDER BY item, seq)
"""  # noqa: S608
# The same, up to a length: of the items, in their order, those that are read whole.
PARTS_WITHIN = f"""
WITH sized AS MATERIALIZED (
  SELECT parts.*, place, octet_length(data::text) AS size FROM ({PARTS}) AS parts
    JOIN unnest(%(items)s::text[]) WITH ORDINALITY AS touched (name, place) ON name = item
)
SELECT {COLUMNS} FROM (
  SELECT *, sum(size) OVER (ORDER BY place) - sum(size) OVER (PARTITION BY place) AS before
    FROM sized
) AS counted WHERE before < {READ_BYTES}
"""  # noqa: S608

# What changes the regions beside the timeline.
REGIONAL = ("session.", "turn.", "approval_request.", "artifact.", "execution_environment.")

FAMILIES = {
    "tool_call.started": "tool_call",
    "approval_request.created": "approval_request",
    "turn.queued": "turn",
    "message.created": "message",
    "artifact.created": "artifact",
    "progress.updated": "progress",
    "handoff_summary.created": "handoff_summary",
}


@dataclass
class Item:
    """One row of the timeline. `parts` holds its latest event of each type, the anchor too."""

    anchor: Event
    parts: dict[str, Event] = field(default_factory=dict)

    @property
    def seq(self) -> int:
        return self.anchor.seq

    @property
    def dom_id(self) -> str:
        return f"event-{self.anchor.seq}"

    @property
    def data(self) -> dict[str, Any]:
        """What the first event says."""
        return self.anchor.data

    @property
    def last(self) -> Event:
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
    def resolved(self) -> Event | None:
        return self.parts.get("approval_request.resolved")

    @property
    def started(self) -> Event | None:
        return self.parts.get("turn.started")

    @property
    def ended(self) -> Event | None:
        for type in ("turn.completed", "turn.failed", "turn.cancelled"):
            if event := self.parts.get(type):
                return event
        return None


def fold(page: Iterable[Event], parts: Iterable[Event]) -> list[Item]:
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


def names(page: Sequence[Event]) -> list[str]:
    """The items that a page touches, in the order in which it does."""
    return list(dict.fromkeys(event.item for event in page if event.item))


def whole(page: Sequence[Event], parts: Sequence[Event]) -> list[Event]:
    """The page up to the first event whose item was not read."""
    known = {part.item for part in parts}
    return list(takewhile(lambda event: not event.item or event.item in known, page))


def render_row(item: Item, *, replace: bool = False) -> str:
    """Render one row. One that cannot be rendered, or is too long, becomes one that says so."""
    context = {"item": item, "data": item.data, "replace": replace}
    try:
        item.payload  # noqa: B018  -- refuses data that does not fit its type
        template = select_template(
            [
                f"sessions/events/kinds/{item.family}.html",
                "sessions/events/kinds/unknown.html",
            ]
        )
        row = template.render(context)
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
    rows = list(Event.objects.raw(_with_id(PAGE_BEFORE), arguments))[::-1]
    if not rows:
        return [], 0, limit - 1
    parts = Event.objects.raw(_with_id(PARTS), {"session": session.pk, "items": names(rows)})
    first = rows[0].seq
    items = [item for item in fold(rows, parts) if item.seq >= first]
    return items, first, rows[-1].seq


def _with_id(sql: str) -> str:
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

    def text(self, regions: str = "") -> str:
        """What is sent: numbers in front, so that a page can skip what it has."""
        return f"<!--{self.first} {self.last}-->{self.rows}{regions}"


SMALL = 8_000


def is_small(page: Sequence[Event], parts: Sequence[Event]) -> bool:
    """Whether rendering these takes a moment only: Markdown and highlighting grow with the text."""
    return sum(len(str(event.data)) for event in (*page, *parts)) < SMALL


def frame(after: int, page: Sequence[Event], parts: Sequence[Event], ahead: int = 0) -> Frame:
    """Render the page of events after `after`: new rows appended, earlier ones replaced.

    It ends before the event that would make it too long. `ahead` is where it might have ended.
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

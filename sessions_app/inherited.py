"""What stands above a fork: the rows of the session it was forked from, to be read only.

They are never part of the fork's own stream. A turn of the other session is inherited if it had
ended by `forked_seq`: of one that was queued or ran later, nothing is shown, whatever had been
recorded of it by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import timeline
from .models import Event, Session
from .models.lineage import ENDS

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser, User


def page(fork: Session, user: User | AnonymousUser, before: int | None = None) -> dict[str, Any]:
    """Return the rows above a fork before the other session's seq `before`, the newest without it.

    Nothing but `above` for a session that is no fork, or where the person may not see the other.
    """
    if fork.forked_seq is None:
        return {"above": None}
    parent = Session.objects.visible_to(user).filter(pk=fork.forked_from_id).first()
    if parent is None:
        return {"above": {"parent": None, "gone": fork.forked_from_id is None}}
    end = fork.forked_seq
    limit = end + 1 if before is None else min(before, end + 1)
    arguments = {"session": parent.pk, "before": limit}
    rows = list(Event.objects.raw(timeline.with_id(timeline.PAGE_BEFORE), arguments))[::-1]
    first = rows[0].seq if rows else 0
    ours = _inherited(parent, rows, end)
    arguments = {"session": parent.pk, "items": timeline.names(ours), "last": end}
    parts = Event.objects.raw(timeline.with_id(timeline.PARTS_UNTIL), arguments)
    items = [item for item in timeline.fold(ours, parts) if item.seq >= first]
    for item in items:
        item.inherited = True
    return {"above": {"parent": parent, "items": items, "first_seq": first}}


def _inherited(parent: Session, rows: Sequence[Event], end: int) -> list[Event]:
    """Leave out what belongs to turns that had not ended by then."""
    items = {f"turn:{row.turn_id}" for row in rows if row.turn_id}
    ended = parent.events.filter(item__in=items, type__in=ENDS, seq__lte=end)
    turns = set(ended.values_list("turn_id", flat=True))
    return [row for row in rows if row.turn_id is None or row.turn_id in turns]

"""Where a session comes from and what becomes of the work it gave away.

Lock order: a child's transaction may lock its parent, always after itself; nobody who holds a
parent ever locks a child that others can see (a fork or a child is made under its parent's lock,
but then nobody else knows it yet). So sessions are locked from below to above, and no two wait for
each other.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

from .. import events
from .event import Fenced

if TYPE_CHECKING:
    from .session import Session
    from .turn import Turn

logger = logging.getLogger(__name__)

MOST_LEVELS = 5
"""How deep work may be given on: below a session that people opened, five more."""
SUMMARY = 4000
NAMED = 20
OUTCOMES: dict[str, Literal["completed", "failed", "cancelled"]] = {
    "COMPLETED": "completed",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
}


ENDS = ("turn.completed", "turn.failed", "turn.cancelled")


def level(session: Session) -> int:
    """Say how many sessions are above this one; never more than one beyond what is allowed."""
    above = 0
    parent_id = session.parent_id
    while parent_id is not None and above <= MOST_LEVELS:
        above += 1
        parents = type(session).objects.filter(pk=parent_id).values_list("parent_id", flat=True)
        parent_id = parents.first()
    return above


def last_seq_of(turn: Turn) -> int | None:
    """Return the seq of the event that ended a turn; None when it has not ended or is gone."""
    ends = turn.session.events.filter(item=f"turn:{turn.pk}", type__in=ENDS).order_by("-seq")
    return ends.values_list("seq", flat=True).first()


def hand_over(child: Session) -> None:
    """Tell the parent of a session that has come to rest how it ended: once for each time.

    Called with the child's row locked, in the transaction that ended its last open turn.
    """
    if child.parent_id is None:
        return
    parent = type(child).objects.filter(pk=child.parent_id).first()
    # By number: clocks of machines differ, and a turn that interrupted ended before earlier ones.
    ends = child.events.filter(type__in=ENDS).order_by("-seq").select_related("turn")
    last = ends.first()
    if parent is None or last is None or last.turn is None:
        return
    ended = last.turn
    # Each rest has the end of a turn of its own, so its number tells whether it was told.
    item = f"child:{child.pk}"
    told = parent.events.filter(item=item, type="handoff_summary.created", data__turn=ended.number)
    if told.exists():
        return
    try:
        parent.record(_summary(child, ended))
    except Fenced:
        # The parent was deleted meanwhile; nothing was written and the child's end stands.
        logger.info("The parent of %s is gone; nobody is told how it ended.", child.pk)


def _summary(child: Session, ended: Turn) -> events.HandoffSummaryCreated:
    made = child.artifacts.exclude(kind="log_bundle").order_by("-created_at")
    return events.HandoffSummaryCreated(
        session_id=child.pk,
        agent=child.agent.name,
        title=child.title,
        turn=ended.number,
        outcome=OUTCOMES[ended.state],
        summary=_cut(_last_words(ended)),
        artifacts=tuple(made.values_list("name", flat=True)[:NAMED]),
        artifact_count=made.count(),
    )


def _last_words(turn: Turn) -> str:
    if turn.state == "FAILED":
        return turn.error_message
    if turn.state == "CANCELLED":
        who = f"Stopped by {turn.cancel_requested_by}" if turn.cancel_requested_by else "Stopped"
        return f"{who}: {turn.cancel_reason}" if turn.cancel_reason else f"{who}."
    said = turn.events.filter(type="message.created", data__role="assistant").order_by("-seq")
    return str(said.values_list("data__text", flat=True).first() or "")


def _cut(text: str) -> str:
    return text if len(text) <= SUMMARY else text[: SUMMARY - 1].rstrip() + "…"

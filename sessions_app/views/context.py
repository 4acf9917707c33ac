"""What the workspace's regions show. The same functions serve pages and live frames."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from django.conf import settings
from django.db.models import OuterRef, Q, QuerySet
from django.db.models.functions import Now

from .. import lists
from ..models import Agent, Session, Turn
from ..models.states import FINAL, OPEN, SessionState, TurnState

if TYPE_CHECKING:
    from django.contrib.auth.models import User

RAIL_ROWS = 50
BUSY = (SessionState.ACTIVE, SessionState.WAITING_FOR_PERMISSION)
QUEUED_ROWS = 50
RELATED = 20


@dataclass(frozen=True)
class Lease:
    """How fresh the hold on a running turn is, in milliseconds of the database's clock."""

    renewed_ago: int
    ends_in: int

    @property
    def ended_ago(self) -> int:
        return max(0, -self.ends_in)


def session_context(session: Session) -> dict[str, Any]:
    """Header, composer state and inspector of a session: nothing that depends on the reader."""
    turns = list(session.turns.select_related("author").order_by("-number")[:30])
    return {
        "session": session,
        "turns": turns,
        **work_context(session),
        "environment": getattr(session, "environment", None),
        "artifacts": list(session.artifacts.order_by("created_at")[:200]),
    }


def lineage_context(session: Session, user: User) -> dict[str, Any]:
    """Where a session comes from and whom it gave work to, as far as one person may see those."""
    visible = Session.objects.visible_to(user).select_related("agent")
    above = visible.in_bulk([pk for pk in (session.parent_id, session.forked_from_id) if pk])
    return {
        "parent": above.get(session.parent_id or ""),
        "forked_from": above.get(session.forked_from_id or ""),
        "children": _below(session.children, visible),
        "forks": _below(session.forks, visible),
        "delegates_to": Agent.objects.visible_to(user).enabled(),
        "delegation_key": uuid4().hex,
    }


def _below(related: Any, visible: QuerySet[Session]) -> dict[str, Any]:
    """The latest of some sessions, and how many there are beyond what is shown."""
    ids = list(related.order_by("-created_at").values_list("pk", flat=True))
    waits_for = Turn.objects.open().filter(session=OuterRef("pk")).values("waiting_for")[:1]
    seen = visible.filter(pk__in=ids)
    shown = list(seen.annotate(waits_for=waits_for).order_by("-created_at")[:RELATED])
    may_see = seen.count() if len(shown) == RELATED else len(shown)
    return {
        "shown": shown,
        "count": len(ids),
        "more": may_see - len(shown),
        "hidden": len(ids) - may_see,
    }


def work_context(session: Session) -> dict[str, Any]:
    """What is being worked on, who holds it, and what waits behind it."""
    unfinished = session.turns.exclude(state__in=FINAL).select_related("author")
    ordered = unfinished.annotate(now=Now()).order_by("position", "number")
    waiting = list(ordered[:QUEUED_ROWS])
    open_turn = next((turn for turn in waiting if turn.state in OPEN), None)
    return {
        "open_turn": open_turn,
        "queued_turns": [turn for turn in waiting if turn.state == TurnState.QUEUED],
        "lease": _lease(open_turn) if open_turn else None,
    }


def _lease(turn: Any) -> Lease | None:
    if not turn.holder or turn.lease_until is None:
        return None
    left = turn.lease_until - turn.now
    whole = timedelta(seconds=settings.SIGNALBOX["LEASE_SECONDS"])
    millisecond = timedelta(milliseconds=1)
    return Lease(renewed_ago=max(0, (whole - left) // millisecond), ends_in=left // millisecond)


def rail_context(
    user: User, *, current: str = "", query: str = "", archived: bool = False
) -> dict[str, Any]:
    """The lists of sessions, as one person sees them: each session in one group only."""
    waits_for = Turn.objects.open().filter(session=OuterRef("pk")).values("waiting_for")[:1]
    visible = Session.objects.visible_to(user).select_related("agent").annotate(waits_for=waits_for)
    if query:
        visible = visible.filter(Q(title__icontains=query) | Q(agent__name__icontains=query))

    def newest(states: Iterable[str], *, but: list[str] | None = None) -> list[Session]:
        but = but or []
        if query:
            found = visible.filter(state__in=states)
        else:
            found = visible.filter(pk__in=lists.newest(user, states, RAIL_ROWS + len(but)))
        return list(found.exclude(pk__in=but)[:RAIL_ROWS])

    if archived:
        hidden = newest([SessionState.ARCHIVED])
        groups = [{"name": "Archived", "slug": "archived", "sessions": hidden}]
        return {"groups": groups, "needs_you_count": 0, "current": current, "query": query}
    needs_you = _asking(user, visible)
    asking = [session.pk for session in needs_you]
    # There is never much that runs: it is found by its state, whose it may be.
    busy = visible.filter(state__in=BUSY).exclude(pk__in=asking)
    rest = [state for state in SessionState if state not in (*BUSY, SessionState.ARCHIVED)]
    return {
        "groups": [
            {"name": "Needs you", "slug": "needs", "sessions": needs_you},
            {"name": "Running", "slug": "running", "sessions": list(busy[:RAIL_ROWS])},
            {"name": "Recent", "slug": "recent", "sessions": newest(rest, but=asking)},
        ],
        "needs_you_count": len(needs_you),
        "current": current,
        "query": query,
    }


def _asking(user: User, visible: QuerySet[Session]) -> list[Session]:
    """The sessions that wait for this person, found by the few turns that wait at all."""
    parked = Q(state=SessionState.WAITING_FOR_PERMISSION)
    if not user.is_staff:
        parked &= Q(agent__in=Agent.objects.visible_to(user).values("pk"))
    # Waiting for input is also how a session rests; only a question is something to do.
    asked = Q(state=SessionState.WAITING_FOR_INPUT, waits_for__gt="")
    waiting = Turn.objects.filter(
        state__in=[TurnState.WAITING_FOR_PERMISSION, TurnState.WAITING_FOR_INPUT]
    )
    return list(visible.filter(parked | asked, pk__in=waiting.values("session"))[:RAIL_ROWS])

"""The states, and for each verb the states it leaves and enters. `docs/turns.md` draws the same.

Every transition is a conditional UPDATE on the states named here; what else it demands is said
where it is made.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.db import models

from .. import events


class NotPossible(Exception):
    """A transition was refused and nothing changed; the message says why."""


class NotAllowed(NotPossible):
    """Refused to this person."""


@dataclass(frozen=True)
class Transition:
    leaves: tuple[str, ...]
    enters: tuple[str, ...]

    @property
    def arrows(self) -> set[tuple[str, str]]:
        return {(before, after) for before in self.leaves for after in self.enters}


# -- turns -------------------------------------------------------------------------------------


class TurnState(models.TextChoices):
    """Rows of every state are deleted with their session's history only."""

    QUEUED = "QUEUED", "queued"  # a worker claims it when no earlier turn is open
    RUNNING = "RUNNING", "running"  # its holder finishes or parks it; rescue when the lease ends
    WAITING_FOR_INPUT = "WAITING_FOR_INPUT", "waiting for input"  # an answer moves it on
    WAITING_FOR_PERMISSION = "WAITING_FOR_PERMISSION", "waiting for permission"  # a decision does
    COMPLETED = "COMPLETED", "completed"  # final
    FAILED = "FAILED", "failed"  # final; a retry is a new turn
    CANCELLED = "CANCELLED", "cancelled"  # final


WAITING = (TurnState.WAITING_FOR_INPUT, TurnState.WAITING_FOR_PERMISSION)
OPEN = (TurnState.RUNNING, *WAITING)
FINAL = (TurnState.COMPLETED, TurnState.FAILED, TurnState.CANCELLED)

NOWHERE = ""
"""Where a new row comes from."""

TURN = {
    "submit": Transition((NOWHERE,), (TurnState.QUEUED,)),
    "edit": Transition((TurnState.QUEUED,), (TurnState.QUEUED,)),
    # From RUNNING only when nobody holds it any more.
    "claim": Transition((TurnState.QUEUED, TurnState.RUNNING), (TurnState.RUNNING,)),
    "park": Transition((TurnState.RUNNING,), WAITING),
    "resume": Transition(WAITING, (TurnState.RUNNING,)),
    "release": Transition((TurnState.RUNNING,), (TurnState.RUNNING,)),
    "finish": Transition((TurnState.RUNNING,), FINAL),
    # Of a running turn it is a request, which its holder carries out by `finish`; only closing
    # the session ends it at once.
    "cancel": Transition((TurnState.QUEUED, *OPEN), (TurnState.CANCELLED,)),
}

# What can be submitted again, as a new turn.
RETRYABLE = (TurnState.FAILED, TurnState.CANCELLED)

ENDED: dict[str, str] = {
    TurnState.COMPLETED: "has ended",
    TurnState.FAILED: "failed",
    TurnState.CANCELLED: "was cancelled",
}


# -- sessions ----------------------------------------------------------------------------------


class SessionState(models.TextChoices):
    """The states of design: who moves them on is `settle`, except where a person is named.

    Rows are deleted by retention only.
    """

    CREATED = "CREATED", "created"  # the first turn moves it on
    ACTIVE = "ACTIVE", "running"  # a turn is queued or running
    WAITING_FOR_INPUT = "WAITING_FOR_INPUT", "waiting for input"  # done for now, or a question
    WAITING_FOR_PERMISSION = "WAITING_FOR_PERMISSION", "waiting for permission"  # a decision
    COMPLETED = "COMPLETED", "completed"  # closed by a person; a new turn reopens it
    FAILED = "FAILED", "failed"  # the last turn failed: needs review
    CANCELLED = "CANCELLED", "cancelled"  # closed by a person; a new turn reopens it
    ARCHIVED = "ARCHIVED", "archived"  # hidden from active views; unarchive restores


CLOSED = (SessionState.COMPLETED, SessionState.CANCELLED)
# What a reuse key does not lead to any more. A failed session needs review: somebody goes on.
FINISHED = (*CLOSED, SessionState.ARCHIVED)
_WAITING = (SessionState.WAITING_FOR_INPUT, SessionState.WAITING_FOR_PERMISSION)
_LIVE = (SessionState.ACTIVE, *_WAITING, SessionState.FAILED)
_RESTS = (SessionState.CREATED, SessionState.WAITING_FOR_INPUT, SessionState.FAILED, *CLOSED)

SESSION = {
    "open": Transition((NOWHERE,), (SessionState.CREATED,)),
    # One that waits for a person goes on waiting, unless the new turn interrupts.
    "submit": Transition((SessionState.CREATED, *_LIVE, *CLOSED), (SessionState.ACTIVE,)),
    # What follows from its turns, by the verb of the turn. `settle` does all four.
    "park": Transition((SessionState.ACTIVE,), _WAITING),
    "resume": Transition(_WAITING, (SessionState.ACTIVE,)),
    "finish": Transition(
        (SessionState.ACTIVE,), (SessionState.WAITING_FOR_INPUT, SessionState.FAILED)
    ),
    "cancel": Transition(
        (SessionState.ACTIVE, *_WAITING), (SessionState.ACTIVE, SessionState.WAITING_FOR_INPUT)
    ),
    "close": Transition((SessionState.CREATED, *_LIVE), CLOSED),
    # Only without an open turn.
    "archive": Transition(_RESTS, (SessionState.ARCHIVED,)),
    # Back to the state it had.
    "unarchive": Transition((SessionState.ARCHIVED,), _RESTS),
}

STATE_EVENTS: dict[str, type[events._SessionState]] = {
    SessionState.ACTIVE: events.SessionActivated,
    SessionState.WAITING_FOR_INPUT: events.SessionWaitingForInput,
    SessionState.WAITING_FOR_PERMISSION: events.SessionWaitingForPermission,
    SessionState.COMPLETED: events.SessionCompleted,
    SessionState.FAILED: events.SessionFailed,
    SessionState.CANCELLED: events.SessionCancelled,
}

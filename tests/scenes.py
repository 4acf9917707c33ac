"""What tests of turns, gates and the engine set up again and again, by the product's own verbs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from django.apps import apps
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models.functions import Now
from procrastinate.contrib.django.models import ProcrastinateJob

from approvals_app.models import ApprovalRequest
from sessions_app import events, gates
from sessions_app.gates import Question
from sessions_app.models import Agent, Artifact, Session, Turn
from sessions_app.runners.base import Action, Grant, Refusal

LEASE = timedelta(minutes=5)


def open_session(agent: Agent, owner: User, instruction: str = "Just a word.") -> Session:
    return Session.objects.start(agent=agent, owner=owner, instruction=instruction)[0]


def claimed(session: Session, holder: str = "first-worker") -> Turn:
    turn = Turn.objects.claim(session.pk, holder, lease=LEASE)
    assert turn is not None, "there was nothing to claim"
    return turn


@contextmanager
def held(turn: Turn) -> Iterator[Session]:
    """Do what the engine does around each write: a transaction with the session locked."""
    with transaction.atomic():
        turn.session = Session.objects.lock(turn.session_id)
        yield turn.session


def let_the_lease_run_out(turn: Turn) -> None:
    late = Now() - timedelta(seconds=1)
    assert Turn.objects.filter(pk=turn.pk, state="RUNNING").update(lease_until=late) == 1


def parked(turn: Turn, state: str = "WAITING_FOR_PERMISSION") -> Turn:
    with held(turn):
        turn.park(state, "approval: something")
    return turn


def finished(turn: Turn, state: str = "COMPLETED") -> Turn:
    closing: events.Payload = events.TurnCompleted(duration_ms=1)
    if state == "FAILED":
        closing = events.TurnFailed(code="step_failed", message="It did not work.")
    elif state == "CANCELLED":
        closing = events.TurnCancelled(by="alice")
    with held(turn):
        turn.finish(closing, state=state)
    return turn


def action(source: str = "echo hello", **changes: Any) -> Action:
    given = {
        "kind": "shell",
        "tool": "sh",
        "timeout": 60.0,
        "confined": False,
        "network": True,
        **changes,
    }
    return Action(source=source, **given)


def review(
    turn: Turn, wanted: Action, *, key: str = "step-1", ask: bool = False, title: str = "A step"
) -> Grant | Refusal | None:
    """Ask the gate in charge, as the engine does."""
    with held(turn) as session:
        return gates.gate().review(session, turn, Question(key, wanted, title, ask=ask))


def redeem(turn: Turn, grant: Grant, wanted: Action) -> Refusal | None:
    with held(turn) as session:
        return gates.gate().redeem(session, turn, grant, wanted.digest())


def asked(session: Session, wanted: Action | None = None, **question: Any) -> ApprovalRequest:
    """Claim the session's next turn and let it ask for an action."""
    turn = claimed(session)
    assert review(turn, wanted or action(), **{"ask": True, **question}) is None
    return ApprovalRequest.objects.get(turn=turn, state="PENDING")


def types(session: Session) -> list[str]:
    return list(session.events.order_by("seq").values_list("type", flat=True))


def jobs(session: Session) -> int:
    """How many wake-ups are waiting for a session."""
    waiting = ProcrastinateJob.objects.filter(status="todo", task_name="advance")
    return waiting.filter(args__session_id=session.pk).count()


def everything() -> dict[str, Any]:
    """Every row of ours and every wake-up for it, to be compared before and after."""
    found: dict[str, Any] = {"members": list(Agent.members.through.objects.values())}
    for label in ("sessions_app", "approvals_app"):
        for model in apps.get_app_config(label).get_models():
            found[model._meta.label] = list(model.objects.order_by("pk").values())
    sessions = list(Session.objects.values_list("pk", flat=True))
    jobs = ProcrastinateJob.objects.filter(args__session_id__in=sessions).order_by("id")
    found["jobs"] = list(jobs.values_list("id", "status"))
    return found


def artifacts(session: Session) -> list[tuple[str, str]]:
    found = Artifact.objects.filter(session=session).order_by("created_at")
    return list(found.values_list("kind", "name"))

"""Delegating: giving work to another agent, in a session of its own that reports back."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from django.db import transaction

from . import events, submission
from .models import Agent, NotAllowed, NotPossible, Session, Turn
from .models.lineage import MOST_LEVELS, level
from .models.session import title_of

if TYPE_CHECKING:
    from django.contrib.auth.models import User

MOST_PER_TURN = 10


def delegate(
    turn: Turn, *, agent: str, instruction: str, by: User, key: str, ref: str | None = None
) -> Session:
    """Open a child session with its first turn, tell the parent, and return the child.

    `agent` is a name or an id; `by` owns the child and has to be allowed to use that agent. The
    same key within the same turn returns the same child. `ref` is given when the turn itself does
    this, and names it there. Raises NotAllowed and NotPossible.
    """
    agent, instruction = submission.written(agent).strip(), submission.written(instruction)
    with transaction.atomic():
        # The parent first: keys and limits are looked at under its lock. The child that is made
        # here is known to nobody, so this is no lock from above to below (models/lineage.py).
        parent = Session.objects.lock(turn.session_id)
        name = f"delegate:{turn.pk}:{hashlib.sha256(key.encode()).hexdigest()[:24]}"
        first = Session.objects.filter(spawned_by_turn=turn, idempotency_key=name).first()
        if first is not None:
            return _same(first, agent, instruction)
        other = _agent(agent, by)
        _within_limits(parent, turn)
        if problems := submission.problems(other, instruction):
            said = " ".join(map(str, problems[:10]))
            raise NotPossible(f"{other.name} would refuse this instruction. {said}")
        child = _open(parent, turn, other, instruction, by, name)
        parent.record(
            events.SessionDelegated(
                session_id=child.pk,
                agent=other.name,
                title=child.title,
                by=by.get_username(),
                ref=ref,
            ),
            turn=turn if ref else None,
        )
        return child


def _open(
    parent: Session, turn: Turn, agent: Agent, instruction: str, by: User, name: str
) -> Session:
    child = Session.objects.create(
        agent=agent,
        owner=by,
        title=title_of(instruction),
        parent=parent,
        spawned_by_turn=turn,
        idempotency_key=name,
    )
    child.record(
        events.SessionCreated(
            agent=agent.name, title=child.title, by=by.get_username(), parent=parent.pk
        )
    )
    child.submit(instruction, author=by)
    return child


def _same(first: Session, agent: str, instruction: str) -> Session:
    # As it was given: what is queued over there can be edited.
    said = first.events.filter(type="message.created").order_by("seq")
    given = said.values_list("data__text", flat=True).first()
    if agent not in (first.agent_id, first.agent.name) or given not in (None, instruction):
        raise NotPossible(
            "This was delegated before with another agent or instruction under the same key."
        )
    return first


def _agent(named: str, by: User) -> Agent:
    """Find an agent that a person may use. One that they may not see is as good as none."""
    seen = Agent.objects.visible_to(by)
    agent = seen.filter(pk=named).first() or seen.filter(name=named).first()
    if agent is None:
        raise NotAllowed(f"There is no agent “{named[:120]}” that {by.get_username()} may use.")
    if reason := agent.why_not(by):
        raise NotAllowed(reason)
    return agent


def _within_limits(parent: Session, turn: Turn) -> None:
    if parent.state == Session.State.ARCHIVED:
        raise NotPossible("This session is archived. Unarchive it to go on.")
    if level(parent) >= MOST_LEVELS:
        raise NotPossible(
            f"Work is given on at most {MOST_LEVELS} times, and this session is the last of such "
            "a chain."
        )
    if Session.objects.filter(spawned_by_turn=turn).count() >= MOST_PER_TURN:
        raise NotPossible(f"One turn delegates at most {MOST_PER_TURN} times, and this one has.")

"""Forking: a new session that goes on from a turn of another one, with a copy of its files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asgiref.sync import async_to_sync
from django.db import IntegrityError, transaction

from . import events, ids
from .environments import registry as environments
from .environments.base import EnvironmentUnavailable
from .models import ExecutionEnvironment, NotAllowed, NotPossible, Session, Turn
from .models.lineage import last_seq_of

if TYPE_CHECKING:
    from django.contrib.auth.models import User


def fork(at: Turn, *, by: User, idempotency_key: str | None = None) -> Session:
    """Open a session that goes on from a turn that has ended, and return it.

    Its files are a copy of the environment's as it is now, whichever turn it is forked at. A
    repeat with the same key returns the first one. Raises NotAllowed and NotPossible; nothing is
    left then. Copying may take a while: not for an event loop.
    """
    at = Turn.objects.select_related("session__agent").get(pk=at.pk)
    parent = at.session
    if not Session.objects.visible_to(by).filter(pk=parent.pk).exists():
        raise NotAllowed("You may not see this session.")
    if reason := parent.agent.why_not(by):
        raise NotAllowed(reason)
    if idempotency_key and (first := _first(at, by, idempotency_key)):
        return first
    last_seq = _last_seq(at)
    fork_id = ids.session_id()
    seen, environment = _seen(parent)
    copied = environment is not None and _copy(environment, fork_id)
    try:
        with transaction.atomic():
            # The parent's lock: no turn of it starts between this look and the commit.
            _unchanged(Session.objects.lock(parent.pk), seen)
            files = environment if copied else None
            return _create(fork_id, at, last_seq, by, files, idempotency_key)
    except BaseException as error:
        # When the connection broke nobody knows whether it was committed: ask before removing.
        if copied and environment is not None and not Session.objects.filter(pk=fork_id).exists():
            async_to_sync(environments.get(environment.provider).delete)(fork_id)
        same = isinstance(error, IntegrityError) and idempotency_key
        if same and (first := _first(at, by, str(idempotency_key))):
            return first
        raise


def _first(at: Turn, by: User, key: str) -> Session | None:
    """Find what the same request made before. Raises NotPossible when it was another request."""
    first = Session.objects.filter(owner=by, idempotency_key=key).first()
    if first is not None and (first.forked_from_id, first.forked_seq) != (
        at.session_id, last_seq_of(at),
    ):  # fmt: skip
        raise NotPossible("This form was sent before for something else. Reload the page.")
    return first


def _last_seq(at: Turn) -> int:
    if not at.is_final:
        raise NotPossible(
            f"Turn {at.number} is {at.get_state_display()}. A session is forked at a turn that "
            "has ended."
        )
    last_seq = last_seq_of(at)
    if last_seq is None:
        raise NotPossible(f"The history of turn {at.number} is not kept any more.")
    return last_seq


def _seen(parent: Session) -> tuple[int, ExecutionEnvironment | None]:
    """Return the parent's last seq and its environment. Raises NotPossible while files change."""
    with transaction.atomic():
        seen = Session.objects.lock(parent.pk).last_seq
        turn = Turn.objects.open().filter(session=parent).first()
        if turn is not None:
            raise NotPossible(
                f"Turn {turn.number} of this session is {turn.get_state_display()}, so its files "
                "may change while they are copied. Fork when it has ended."
            )
        environment = ExecutionEnvironment.objects.filter(session=parent).first()
    if environment is not None and environment.state == ExecutionEnvironment.State.DELETED:
        environment = None
    return seen, environment


def _copy(environment: ExecutionEnvironment, fork_id: str) -> bool:
    provider = environments.get(environment.provider)
    try:
        return bool(async_to_sync(provider.copy)(environment.session_id, fork_id))
    except EnvironmentUnavailable as error:
        raise NotPossible(f"{error} Nothing was forked.") from error


def _unchanged(parent: Session, seen: int) -> None:
    if parent.events.after(seen).filter(type="turn.started").exists():
        raise NotPossible(
            "A turn of this session started while its files were copied. Nothing was forked; try "
            "again when it has ended."
        )


def _create(
    fork_id: str,
    at: Turn,
    last_seq: int,
    by: User,
    copied: ExecutionEnvironment | None,
    idempotency_key: str | None,
) -> Session:
    title = at.session.title.removeprefix("Fork of ")
    fork = Session.objects.create(
        id=fork_id,
        agent=at.session.agent,
        owner=by,
        title=f"Fork of {title}"[:200],
        forked_from=at.session,
        forked_seq=last_seq,
        idempotency_key=idempotency_key,
    )
    if copied is not None:
        ExecutionEnvironment.objects.create(
            session=fork,
            provider=copied.provider,
            state=ExecutionEnvironment.State.STOPPED,
            confined=copied.confined,
            network=copied.network,
            detail=copied.detail,
            last_used_at=copied.last_used_at,
        )
    fork.record(
        events.SessionForked(
            agent=fork.agent.name,
            title=fork.title,
            by=by.get_username(),
            session_id=at.session_id,
            turn=at.number,
            last_seq=last_seq,
            files=copied is not None,
        )
    )
    fork.refresh_from_db()
    return fork

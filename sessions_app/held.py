"""What a worker does to the turn it holds: each a transaction under the session's lock, and fenced.

These run in threads, since they use the ORM; the run itself lives on the event loop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from . import delegation, events, gates
from .environments.base import Environment
from .events import Payload
from .models import Artifact, ExecutionEnvironment, Fenced, Session, Turn
from .models.artifact import media_type_of
from .models.states import TurnState
from .models.usage import Usage
from .runners.base import Grant, Refusal


class HeldTurn:
    """One attempt at a turn. Every method raises Fenced when the turn is not ours any more."""

    def __init__(self, turn: Turn, holder: str) -> None:
        self.turn = turn
        self.holder = holder

    @contextlib.contextmanager
    def _held(self) -> Iterator[Session]:
        """Open a transaction with the session locked. Raises Fenced when the turn is not ours."""
        with transaction.atomic():
            session = Session.objects.lock(self.turn.session_id)
            if session.fence != self.turn.fence:
                raise Fenced(f"Turn {self.turn.pk} is not held any more.")
            self.turn.session = session
            yield session

    def review(self, question: gates.Question) -> Grant | Refusal | None:
        with self._held() as session:
            return gates.gate().review(session, self.turn, question)

    def redeem(self, grant: Grant, digest: str) -> Refusal | None:
        with self._held() as session:
            return gates.gate().redeem(session, self.turn, grant, digest)

    def artifact(self, kind: str, name: str, sha256: str, size: int, summary: str) -> str:
        name = events.storable(name)[:300]
        with self._held() as session:
            artifact, new = Artifact.objects.get_or_create(
                session=session,
                name=name,
                sha256=sha256,
                defaults={
                    "turn": self.turn,
                    "kind": kind,
                    "media_type": media_type_of(name),
                    "size": size,
                    "summary": summary,
                },
            )
            if new:
                session.record(artifact.created_event(), turn=self.turn)
                self._spend(storage_bytes=size)
            return artifact.pk

    def usage(self, usage: events.UsageRecorded) -> None:
        with self._held() as session:
            session.record(usage, turn=self.turn)
            self._spend(
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cost=usage.cost,
            )

    def computed(self, milliseconds: int) -> None:
        with self._held():
            self._spend(compute_ms=milliseconds)

    def _spend(self, **amounts: Any) -> None:
        """Add to what the turn and its session have used."""
        if more := Usage.more(**amounts):
            Turn.objects.filter(pk=self.turn.pk).update(**more)
            Session.objects.filter(pk=self.turn.session_id).update(**more)

    def delegate(self, key: str, agent: str, instruction: str) -> str:
        with self._held() as session:
            by = self.turn.author or session.owner
            child = delegation.delegate(
                self.turn, agent=agent, instruction=instruction, by=by, key=key, ref=key
            )
            return child.pk

    def environment_used(self) -> bool:
        """Whether the session has had an environment, whose files it may count on."""
        with self._held() as session:
            used = ExecutionEnvironment.objects.filter(last_used_at__isnull=False)
            return used.filter(session=session).exists()

    def environment_opened(self, kind: str, environment: Environment, duration: int) -> None:
        with self._held() as session:
            row = ExecutionEnvironment.objects.filter(session=session).first()
            ours = row is not None and row.holder == self.holder
            if ours and row.state == ExecutionEnvironment.State.ACTIVE:  # type: ignore[union-attr]
                ExecutionEnvironment.objects.filter(session=session).update(last_used_at=Now())
                return
            row, _ = ExecutionEnvironment.objects.update_or_create(
                session=session,
                defaults={
                    "provider": kind,
                    "state": ExecutionEnvironment.State.ACTIVE,
                    "confined": environment.confined,
                    "network": environment.network,
                    "detail": environment.detail,
                    "holder": self.holder,
                    "last_used_at": timezone.now(),
                },
            )
            event = events.EnvironmentResumed if environment.resumed else events.EnvironmentStarted
            session.record(
                event(
                    environment_id=row.pk,
                    provider=kind,
                    confined=environment.confined,
                    network=environment.network,
                    detail=environment.detail,
                    duration_ms=duration,
                ),
                turn=self.turn,
            )

    def environment_failed(self, kind: str, detail: str) -> None:
        with self._held() as session:
            row, _ = ExecutionEnvironment.objects.update_or_create(
                session=session,
                defaults={
                    "provider": kind,
                    "state": ExecutionEnvironment.State.FAILED,
                    "detail": detail[:500],
                    "holder": "",
                },
            )
            session.record(
                events.EnvironmentFailed(
                    environment_id=row.pk,
                    provider=kind,
                    confined=False,
                    network=False,
                    detail=detail[:500],
                ),
                turn=self.turn,
            )

    def finish(self, state: TurnState, code: str, message: str) -> None:
        with self._held():
            turn = self.turn
            closing: Payload
            if state == TurnState.COMPLETED:
                closing = events.TurnCompleted(duration_ms=turn.duration_ms)
            elif state == TurnState.FAILED:
                closing = events.TurnFailed(
                    code=code, message=message, duration_ms=turn.duration_ms
                )
            else:
                turn.refresh_from_db(fields=["cancel_requested_by", "cancel_reason"])
                closing = events.TurnCancelled(
                    by=turn.cancel_requested_by, reason=turn.cancel_reason
                )
            turn.finish(closing, state=state, code=code, message=message)

    def release(self) -> None:
        with self._held():
            self.turn.release()

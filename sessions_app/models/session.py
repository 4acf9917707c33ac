"""A durable thread for one agent: its states, its one door for events, who may see it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import IntegrityError, models, transaction
from django.urls import reverse
from django.utils import timezone

from .. import events, gates, ids, live
from ..events import Payload
from .agent import Agent
from .event import Event
from .usage import Usage

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser, User

    from .turn import Turn


class ClockTimestamp(models.Func):
    """The database's time of the statement, not of its transaction."""

    function = "clock_timestamp"
    output_field = models.DateTimeField()


class NotPossible(Exception):
    """A transition was refused and nothing changed; the message says why."""


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


# What a reuse key does not lead to any more. A failed session needs review: it is still somebody's.
FINISHED = ["COMPLETED", "CANCELLED", "ARCHIVED"]

STATE_EVENTS: dict[str, type[events._SessionState]] = {
    SessionState.ACTIVE: events.SessionActivated,
    SessionState.WAITING_FOR_INPUT: events.SessionWaitingForInput,
    SessionState.WAITING_FOR_PERMISSION: events.SessionWaitingForPermission,
    SessionState.COMPLETED: events.SessionCompleted,
    SessionState.FAILED: events.SessionFailed,
    SessionState.CANCELLED: events.SessionCancelled,
}


class SessionQuerySet(models.QuerySet["Session"]):
    def visible_to(self, user: User | AnonymousUser) -> SessionQuerySet:
        """Those that a person may see: their own, those of agents they belong to; staff all."""
        if not (user.is_authenticated and user.is_active):
            return self.none()
        if user.is_staff:
            return self
        agents = Agent.objects.visible_to(user).values("pk")
        return self.filter(models.Q(owner_id=user.pk) | models.Q(agent_id__in=agents))

    def viewers_among(self, session_ids: Iterable[str], user_ids: Iterable[int]) -> set[int]:
        """Return which of these users may see at least one of these sessions, however many.

        The same rule as `visible_to`, asked the other way round.
        """
        sessions = list(self.filter(pk__in=list(session_ids)).values_list("owner_id", "agent_id"))
        if not sessions:
            return set()
        owners, agents = {owner for owner, _ in sessions}, {agent for _, agent in sessions}
        users = get_user_model().objects.filter(pk__in=list(user_ids), is_active=True)
        allowed = models.Q(is_staff=True) | models.Q(pk__in=owners)
        memberships = Agent.members.through.objects.filter(agent_id__in=agents).values("user_id")
        return set(
            users.filter(allowed | models.Q(pk__in=memberships)).values_list("pk", flat=True)
        )

    def active(self) -> SessionQuerySet:
        return self.exclude(state=SessionState.ARCHIVED)

    def lock(self, session_id: str) -> Session:
        """Return the session with its row locked: the first lock of every transition.

        NO KEY, so that rows which refer to the session can be inserted meanwhile.
        """
        return self.select_for_update(no_key=True).get(pk=session_id)

    def start(
        self,
        *,
        agent: Agent,
        owner: User,
        instruction: str,
        idempotency_key: str | None = None,
    ) -> tuple[Session, bool]:
        """Open a session with its first turn; say whether it is new.

        A repeat with the same key and instruction returns the first one. Raises NotPossible for
        the same key with another instruction.
        """
        try:
            with transaction.atomic():
                session = self.create(
                    agent=agent,
                    owner=owner,
                    title=title_of(instruction),
                    idempotency_key=idempotency_key,
                )
                session.record(
                    events.SessionCreated(
                        agent=agent.name, title=session.title, by=owner.get_username()
                    )
                )
                session.submit(instruction, author=owner, idempotency_key=idempotency_key)
                return session, True
        except IntegrityError:
            first = self.filter(owner=owner, idempotency_key=idempotency_key).first()
            if idempotency_key is None or first is None:
                raise
            if first.agent_id != agent.pk or first.turns.get(number=1).instruction != instruction:
                raise NotPossible(
                    "This form was sent before with another instruction. "
                    "Reload the page to send this one as a new session."
                ) from None
            return first, False


def title_of(instruction: str) -> str:
    """The first line that says something, without Markdown's marks."""
    for line in instruction.splitlines():
        if line.lstrip().startswith(("```", "~~~")):
            continue
        if text := line.strip().lstrip("#>*-`").strip():
            return text if len(text) <= 80 else text[:79].rstrip() + "…"
    return "Untitled"


class Session(Usage):
    State = SessionState

    id = ids.id_field(ids.session_id)
    agent = models.ForeignKey(Agent, models.PROTECT, related_name="sessions")
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, related_name="sessions")
    title = models.CharField(max_length=200)
    state = models.CharField(
        max_length=30, choices=SessionState.choices, default=SessionState.CREATED
    )
    archived_from = models.CharField(max_length=30, blank=True, default="")
    # The number of the last event and of the last turn, allocated under this row's lock.
    last_seq = models.BigIntegerField(default=0)
    last_turn = models.IntegerField(default=0)
    # "<turn>:<attempt>" of the worker that may write; empty when none may.
    fence = models.CharField(max_length=60, blank=True, default="", db_collation="C")
    idempotency_key = models.CharField(max_length=64, null=True, blank=True)  # noqa: DJ001
    # What the work is about, in the words of whoever may continue it without knowing the id.
    reuse_key = models.CharField(max_length=200, null=True, blank=True)  # noqa: DJ001
    # Lineage. A fork goes on from `forked_seq` of another session; a child was given its work by
    # a turn of its parent.
    forked_from = models.ForeignKey(
        "self", models.SET_NULL, null=True, blank=True, related_name="forks"
    )
    forked_seq = models.BigIntegerField(null=True, blank=True)
    parent = models.ForeignKey(
        "self", models.SET_NULL, null=True, blank=True, related_name="children"
    )
    spawned_by_turn = models.ForeignKey(
        "Turn", models.SET_NULL, null=True, blank=True, related_name="spawned"
    )
    created_at = models.DateTimeField(auto_now_add=True)
    last_activity_at = models.DateTimeField(default=timezone.now)
    # When something changed that lists of sessions show.
    listed_at = models.DateTimeField(default=timezone.now, db_index=True)

    objects = SessionQuerySet.as_manager()

    class Meta:
        ordering = ["-last_activity_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["owner", "idempotency_key"], name="one_session_per_key"
            ),
            models.UniqueConstraint(
                fields=["agent", "reuse_key"],
                condition=~models.Q(state__in=FINISHED),
                name="one_unfinished_session_per_reuse_key",
            ),
        ]
        indexes = [
            models.Index(fields=["state", "-last_activity_at"], name="session_by_state"),
            models.Index(fields=["agent", "-last_activity_at"], name="session_by_agent"),
        ]

    def __str__(self) -> str:
        return self.title

    def get_absolute_url(self) -> str:
        return reverse("session_page", args=[self.pk])

    # -- the one door for events -----------------------------------------------------------

    def record(self, *payloads: Payload, turn: Turn | None = None, fence: str | None = None) -> int:
        """Append events to this session's stream and return the last number.

        Must run in the transaction that makes the facts true. Raises Fenced when `fence` is given
        and the session's is another.
        """
        assert transaction.get_connection().in_atomic_block, "record() belongs in a transaction"
        last = Event.objects.append(
            self.pk, payloads, turn_id=turn.pk if turn else None, fence=fence
        )
        self.last_seq = last
        listed = ("session.", "turn.", "approval_request.")
        changes_lists = any(payload.type.startswith(listed) for payload in payloads)
        if changes_lists:
            Session.objects.filter(pk=self.pk).update(listed_at=ClockTimestamp())
        live.session_changed(self.pk, rail=changes_lists)
        return last

    # -- turns -----------------------------------------------------------------------------

    def submit(
        self,
        instruction: str,
        *,
        author: User,
        idempotency_key: str | None = None,
        retry_of: Turn | None = None,
    ) -> tuple[Turn, bool]:
        """Add a turn to the queue; say whether it is new.

        A repeat with the same key and instruction returns the first one. Raises NotPossible for
        an archived session, and for the same key with another instruction.
        """
        from .turn import Turn

        with transaction.atomic():
            session = Session.objects.lock(self.pk)
            if idempotency_key:
                first = session.turns.filter(idempotency_key=idempotency_key).first()
                if first is not None:
                    if first.instruction != instruction:
                        raise NotPossible(
                            "This form was sent before with another instruction. "
                            "Reload the page to send this one too."
                        )
                    return first, False
            if retry_of and (again := retry_of.retries.exclude(state__in=Turn.FINAL).first()):
                return again, False
            if session.state == SessionState.ARCHIVED:
                raise NotPossible("This session is archived. Unarchive it to go on.")
            turn = Turn.objects.create(
                session=session,
                number=session.last_turn + 1,
                instruction=instruction,
                author=author,
                idempotency_key=idempotency_key,
                retry_of=retry_of,
            )
            name = author.get_username()
            Session.objects.filter(pk=session.pk).update(last_turn=turn.number)
            session.record(
                events.TurnQueued(
                    number=turn.number, by=name, retry_of=retry_of.number if retry_of else None
                ),
                events.MessageCreated(role="user", text=instruction, author=name),
                turn=turn,
            )
            session.settle(by=name)
            turn.enqueue()
            self.refresh_from_db()
            return turn, True

    def settle(self, *, by: str = "") -> None:
        """Set the state that follows from the turns. Call with the row locked."""
        from .turn import Turn, TurnState

        open_states = set(self.turns.exclude(state__in=Turn.FINAL).values_list("state", flat=True))
        if TurnState.WAITING_FOR_PERMISSION in open_states:
            state = SessionState.WAITING_FOR_PERMISSION
        elif TurnState.WAITING_FOR_INPUT in open_states:
            state = SessionState.WAITING_FOR_INPUT
        elif open_states:
            state = SessionState.ACTIVE
        else:
            last = self.turns.order_by("-number").first()
            if last is None:
                return
            failed = last.state == TurnState.FAILED
            state = SessionState.FAILED if failed else SessionState.WAITING_FOR_INPUT
        self._move(state, by=by)

    def _move(self, state: str, *, by: str, reason: str = "") -> None:
        moved = Session.objects.filter(pk=self.pk).exclude(state=state).update(state=state)
        self.state = state
        if moved:
            self.record(STATE_EVENTS[state](by=by, reason=reason))

    # -- closing and keeping ---------------------------------------------------------------

    def close(self, state: str, *, by: User, reason: str = "") -> None:
        """Complete or cancel the session, and everything open in it.

        Raises NotPossible when it is closed already or archived.
        """
        from .turn import Turn

        assert state in {SessionState.COMPLETED, SessionState.CANCELLED}
        with transaction.atomic():
            session = Session.objects.lock(self.pk)
            if session.state in {
                SessionState.COMPLETED,
                SessionState.CANCELLED,
                SessionState.ARCHIVED,
            }:
                raise NotPossible(f"This session is {session.get_state_display()} already.")
            for turn in session.turns.exclude(state__in=Turn.FINAL).order_by("number"):
                turn.session = session
                turn.end_as_cancelled(
                    by=by.get_username(), reason=reason or "the session was closed", settle=False
                )
            session._move(state, by=by.get_username(), reason=reason)
        self.refresh_from_db()

    def archive(self, *, by: User) -> None:
        """Hide the session from active views. Raises NotPossible while a turn is open."""
        from .turn import Turn

        with transaction.atomic():
            session = Session.objects.lock(self.pk)
            if session.state == SessionState.ARCHIVED:
                raise NotPossible("This session is archived already.")
            if session.turns.exclude(state__in=Turn.FINAL).exists():
                raise NotPossible("A turn is still open. Stop it, then archive the session.")
            Session.objects.filter(pk=self.pk).update(
                state=SessionState.ARCHIVED, archived_from=session.state
            )
            session.record(events.SessionArchived(by=by.get_username()))
        self.refresh_from_db()

    def unarchive(self, *, by: User) -> None:
        """Bring the session back in the state it had. Raises NotPossible when not archived."""
        with transaction.atomic():
            session = Session.objects.lock(self.pk)
            if session.state != SessionState.ARCHIVED:
                raise NotPossible("This session is not archived.")
            Session.objects.filter(pk=self.pk).update(
                state=session.archived_from or SessionState.WAITING_FOR_INPUT, archived_from=""
            )
            session.record(events.SessionUnarchived(by=by.get_username()))
        self.refresh_from_db()

    def close_turn_use(self, turn: Turn, *, by: str, reason: str) -> None:
        """End what a turn that ends still has open. Call with the row locked."""
        gates.gate().close(self, turn, by, reason)
        Session.objects.filter(pk=self.pk, fence__startswith=f"{turn.pk}:").update(fence="")

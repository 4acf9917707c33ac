"""A durable thread for one agent: its states, its one door for events, who may see it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from django.conf import settings
from django.db import IntegrityError, connection, models, transaction
from django.urls import reverse
from django.utils import timezone

from .. import events, gates, ids, live
from ..events import Payload
from .agent import Agent
from .event import Event
from .states import FINAL, FINISHED, SESSION, STATE_EVENTS, NotPossible, SessionState, TurnState
from .usage import Usage

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser, User

    from .turn import Turn


WhenBusy = Literal["queue", "reject", "interrupt"]
"""What becomes of a turn that is submitted while another one is queued, runs or waits."""

OPEN_TRIES = 10


class ClockTimestamp(models.Func):
    """The database's time of the statement, not of its transaction."""

    function = "clock_timestamp"
    output_field = models.DateTimeField()


# Which of some users may see at least one of some sessions: `visible_to` asked the other way round.
# In SQL, since a feed asks it in the statement that reads the events.
VIEWERS = """
SELECT reader.id FROM auth_user AS reader
 WHERE reader.id = ANY(%(users)s) AND reader.is_active AND EXISTS (
    SELECT FROM sessions_app_session AS session
     WHERE session.id = ANY(%(sessions)s) AND (
        reader.is_staff OR session.owner_id = reader.id OR EXISTS (
            SELECT FROM sessions_app_agent_members AS membership
             WHERE membership.agent_id = session.agent_id AND membership.user_id = reader.id)))
"""


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
        with connection.cursor() as cursor:
            cursor.execute(VIEWERS, {"sessions": list(session_ids), "users": list(user_ids)})
            return {row[0] for row in cursor.fetchall()}

    def active(self) -> SessionQuerySet:
        return self.exclude(state=SessionState.ARCHIVED)

    def lock(self, session_id: str) -> Session:
        """Return the session with its row locked: the first lock of every transition.

        NO KEY, so that rows which refer to the session can be inserted meanwhile.
        """
        return self.select_for_update(no_key=True).get(pk=session_id)

    def open(
        self,
        *,
        agent: Agent,
        owner: User,
        title: str = "",
        reuse_key: str | None = None,
        idempotency_key: str | None = None,
        parent: Session | None = None,
        spawned_by_turn: Turn | None = None,
    ) -> tuple[Session, bool]:
        """Return the agent's unfinished session with this reuse key, or a new one; say if it is.

        Of callers at the same moment one opens it and the others get that one. The session's row
        is locked. Raises IntegrityError for an idempotency key that its owner has used.
        """
        for _ in range(OPEN_TRIES):
            if found := reuse_key and self._unfinished(agent, reuse_key):
                return found, False
            try:
                with transaction.atomic():
                    session = self.create(
                        agent=agent,
                        owner=owner,
                        title=title or "Untitled",
                        reuse_key=reuse_key or None,
                        idempotency_key=idempotency_key,
                        parent=parent,
                        spawned_by_turn=spawned_by_turn,
                    )
            except IntegrityError as error:
                # Somebody else's insert came first. Ours waited for it, so it can be seen now.
                if _constraint(error) != "one_unfinished_session_per_reuse_key":
                    raise
                continue
            session.record(
                events.SessionCreated(
                    agent=agent.name,
                    title=session.title,
                    by=owner.get_username(),
                    parent=parent.pk if parent else None,
                )
            )
            return session, True
        raise NotPossible("This session is opened and finished over and over. Try again.")

    def _unfinished(self, agent: Agent, reuse_key: str) -> Session | None:
        found = self.filter(agent=agent, reuse_key=reuse_key).exclude(state__in=FINISHED)
        return found.select_for_update(no_key=True).first()

    def start(
        self,
        *,
        agent: Agent,
        owner: User,
        instruction: str,
        reuse_key: str | None = None,
        when_busy: WhenBusy = "queue",
        idempotency_key: str | None = None,
        **lineage: Any,
    ) -> tuple[Session, bool]:
        """Submit a turn to the session that has this reuse key, or to a new one; say if it is.

        A repeat with the same idempotency key and instruction changes nothing and returns the
        session of the first call. Raises NotPossible for the same key with another instruction.
        """
        key = idempotency_key
        repeated = partial(self._repeated, key, reuse_key, agent, owner, instruction)
        try:
            with transaction.atomic():
                if first := repeated():
                    return first, False
                session, new = self.open(
                    agent=agent,
                    owner=owner,
                    title=title_of(instruction),
                    reuse_key=reuse_key,
                    idempotency_key=None if reuse_key else key,
                    **lineage,
                )
                session.submit(instruction, author=owner, idempotency_key=key, when_busy=when_busy)
                return session, new
        except IntegrityError:
            # The same call at the same moment, which came first.
            if first := repeated():
                return first, False
            raise

    def _repeated(
        self,
        key: str | None,
        reuse_key: str | None,
        agent: Agent,
        owner: User,
        instruction: str,
    ) -> Session | None:
        """Find the session of an earlier call with this key. Raises NotPossible for another."""
        from .turn import Turn

        if not key:
            return None
        same = models.Q(session__owner=owner, session__idempotency_key=key)
        if reuse_key:
            same |= models.Q(session__agent=agent, session__reuse_key=reuse_key)
        turns = Turn.objects.filter(same, author=owner, idempotency_key=key)
        turn = turns.select_related("session").first()
        if turn is None:
            return None
        if turn.session.agent_id != agent.pk or turn.instruction != instruction:
            raise NotPossible(
                "This form was sent before with another instruction. "
                "Reload the page to send this one as a new session."
            )
        return turn.session


def _constraint(error: IntegrityError) -> str | None:
    """Name the constraint that a row would have broken."""
    return getattr(getattr(error.__cause__, "diag", None), "constraint_name", None)


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
        when_busy: WhenBusy = "queue",
    ) -> tuple[Turn, bool]:
        """Add a turn to the queue; say whether it is new. A closed session is reopened by it.

        `when_busy` is for a session that has work already: `reject` refuses, `interrupt` stops
        the open turn and goes before those that are queued. A repeat with the same key and
        instruction returns the first one. Raises NotPossible for an archived session, and for
        the same key with another instruction.
        """
        with transaction.atomic():
            session = Session.objects.lock(self.pk)
            first = session._submitted(instruction, idempotency_key, retry_of)
            if first is None:
                turn = session._enqueue(instruction, author, idempotency_key, retry_of, when_busy)
            self.refresh_from_db()
            return (turn, True) if first is None else (first, False)

    def _submitted(
        self, instruction: str, idempotency_key: str | None, retry_of: Turn | None
    ) -> Turn | None:
        """Find the turn that an earlier call of this kind made."""
        if idempotency_key:
            first = self.turns.filter(idempotency_key=idempotency_key).first()
            if first is not None and first.instruction != instruction:
                raise NotPossible(
                    "This form was sent before with another instruction. "
                    "Reload the page to send this one too."
                )
            return first
        return retry_of.retries.exclude(state__in=FINAL).first() if retry_of else None

    def _enqueue(
        self,
        instruction: str,
        author: User,
        idempotency_key: str | None,
        retry_of: Turn | None,
        when_busy: WhenBusy,
    ) -> Turn:
        name = author.get_username()
        if self.state not in SESSION["submit"].leaves:
            raise NotPossible("This session is archived. Unarchive it to go on.")
        waiting = list(self.turns.exclude(state__in=FINAL).order_by("position", "number"))
        if waiting and when_busy == "reject":
            raise NotPossible(f"{waiting[0]} of this session is not done yet. Try again later.")
        first = when_busy == "interrupt"
        turn = self.turns.create(
            number=self.last_turn + 1,
            position=min((other.position for other in waiting), default=0) - 1 if first else 0,
            instruction=instruction,
            author=author,
            idempotency_key=idempotency_key,
            retry_of=retry_of,
        )
        Session.objects.filter(pk=self.pk).update(last_turn=turn.number)
        if retry_of:
            self.record(events.TurnRetried(number=turn.number), turn=retry_of)
        self.record(
            events.TurnQueued(
                number=turn.number, by=name, retry_of=retry_of.number if retry_of else None
            ),
            events.MessageCreated(role="user", text=instruction, author=name),
            turn=turn,
        )
        if first:
            for other in waiting:
                if other.state != TurnState.QUEUED:
                    other.session = self
                    other.stop(by=name, reason=f"{turn} interrupted it")
        self.settle(by=name)
        turn.enqueue()
        return turn

    def settle(self, *, by: str = "") -> None:
        """Set the state that follows from the turns. Call with the row locked."""
        open_states = set(self.turns.exclude(state__in=FINAL).values_list("state", flat=True))
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
        if self.state == state:
            return
        reason = self._enter(state) or reason
        self.record(STATE_EVENTS[state](by=by, reason=reason))

    def _enter(self, state: str, **changes: Any) -> str:
        """Write a state, and what belongs to it. Say what had to be given up for it."""
        row, given_up = Session.objects.filter(pk=self.pk), ""
        try:
            with transaction.atomic(savepoint=self._comes_back(state)):
                row.update(state=state, **changes)
        except IntegrityError:
            row.update(state=state, reuse_key=None, **changes)
            given_up = f"a newer session goes on under its reuse key “{self.reuse_key}”"
            self.reuse_key = None
        self.state = state
        return given_up

    def _comes_back(self, state: str) -> bool:
        """Whether its reuse key counts again, which another session may have taken meanwhile."""
        return bool(self.reuse_key) and self.state in FINISHED and state not in FINISHED

    # -- closing and keeping ---------------------------------------------------------------

    def close(self, state: str, *, by: User, reason: str = "") -> None:
        """Complete or cancel the session, and everything open in it.

        Raises NotPossible when it is closed already or archived.
        """
        assert state in SESSION["close"].enters
        with transaction.atomic():
            session = Session.objects.lock(self.pk)
            if session.state not in SESSION["close"].leaves:
                raise NotPossible(f"This session is {session.get_state_display()} already.")
            for turn in session.turns.exclude(state__in=FINAL).order_by("number"):
                turn.session = session
                turn.end_as_cancelled(
                    by=by.get_username(), reason=reason or "the session was closed", settle=False
                )
            session._move(state, by=by.get_username(), reason=reason)
        self.refresh_from_db()

    def archive(self, *, by: User) -> None:
        """Hide the session from active views. Raises NotPossible while a turn is open."""
        with transaction.atomic():
            session = Session.objects.lock(self.pk)
            if session.state == SessionState.ARCHIVED:
                raise NotPossible("This session is archived already.")
            if session.turns.exclude(state__in=FINAL).exists():
                raise NotPossible("A turn is still open. Stop it, then archive the session.")
            session._enter(SessionState.ARCHIVED, archived_from=session.state)
            session.record(events.SessionArchived(by=by.get_username()))
        self.refresh_from_db()

    def unarchive(self, *, by: User) -> None:
        """Bring the session back in the state it had. Raises NotPossible when not archived."""
        with transaction.atomic():
            session = Session.objects.lock(self.pk)
            if session.state not in SESSION["unarchive"].leaves:
                raise NotPossible("This session is not archived.")
            state = session.archived_from or SessionState.WAITING_FOR_INPUT
            reason = session._enter(state, archived_from="")
            session.record(events.SessionUnarchived(by=by.get_username(), reason=reason))
        self.refresh_from_db()

    def close_turn_use(self, turn: Turn, *, by: str, reason: str) -> None:
        """End what a turn that ends still has open. Call with the row locked."""
        gates.gate().close(self, turn, by, reason)
        Session.objects.filter(pk=self.pk, fence__startswith=f"{turn.pk}:").update(fence="")

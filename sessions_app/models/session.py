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
from . import lineage
from .agent import Agent
from .event import Event, changes_lists
from .states import (
    FINAL,
    FINISHED,
    OPEN,
    SESSION,
    STATE_EVENTS,
    NotPossible,
    SessionState,
    TurnState,
)
from .usage import Usage

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser, User

    from .turn import Turn


WhenBusy = Literal["queue", "reject", "interrupt"]
"""What becomes of a turn that is submitted while another one is queued, runs or waits."""

OPEN_TRIES = 10
ONE_PER_KEY = "one_session_per_key"
ONE_PER_REUSE_KEY = "one_unfinished_session_per_reuse_key"
SENT_BEFORE = (
    "This form was sent before with another instruction. "
    "Reload the page to send this one as a new session."
)


class ClockTimestamp(models.Func):
    """The database's time of the statement, not of its transaction."""

    function = "clock_timestamp"
    output_field = models.DateTimeField()


# Which of some users may see at least one of some sessions: `visible_to` asked the other way round.
# In SQL, since a feed asks it in the statement that reads the events.
VIEWERS = """
SELECT reader.id FROM auth_user AS reader
 WHERE reader.id = ANY(%(users)s::int[]) AND reader.is_active AND EXISTS (
    SELECT FROM sessions_app_session AS session
     WHERE session.id = ANY(%(sessions)s::text[]) AND (
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
        return self.select_for_update(no_key=True, of=("self",)).get(pk=session_id)

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

        Of callers at the same moment one opens it and the others get that one. Within a
        transaction the session's row is locked until its end. A repeat with the same idempotency
        key returns the session of the first call, or raises NotPossible for another agent.
        """
        fields: dict[str, Any] = {
            "agent": agent,
            "owner": owner,
            "title": title or "Untitled",
            "reuse_key": reuse_key or None,
            "idempotency_key": idempotency_key or None,
            "parent": parent,
            "spawned_by_turn": spawned_by_turn,
        }
        with transaction.atomic():
            for _ in range(OPEN_TRIES):
                if found := self._opened(**fields):
                    return found, False
                if session := self._insert(**fields):
                    break
            else:
                raise NotPossible("This session is opened and finished over and over. Try again.")
            session.record(
                events.SessionCreated(
                    agent=agent.name,
                    title=session.title,
                    by=owner.get_username(),
                    parent=parent.pk if parent else None,
                )
            )
            return session, True

    def _opened(
        self,
        *,
        agent: Agent,
        owner: User,
        reuse_key: str | None,
        idempotency_key: str | None,
        **others: Any,
    ) -> Session | None:
        """Find and lock the session that an earlier call opened."""
        locked = self.select_for_update(no_key=True)
        if reuse_key:
            same = locked.filter(agent=agent, reuse_key=reuse_key)
            if found := same.exclude(state__in=FINISHED).first():
                return found
        if not idempotency_key:
            return None
        first = locked.filter(owner=owner, idempotency_key=idempotency_key).first()
        if first is not None and (first.agent_id != agent.pk or first.forked_from_id):
            raise NotPossible(SENT_BEFORE)
        return first

    def _insert(self, **fields: Any) -> Session | None:
        """Add the row, or return None when the same one was added by somebody else."""
        try:
            with transaction.atomic():
                return self.create(**fields)
        except IntegrityError as error:
            # Ours waited for the other's transaction, so that its row can be seen now.
            if _constraint(error) not in (ONE_PER_REUSE_KEY, ONE_PER_KEY):
                raise
            return None

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
        key = idempotency_key or None
        repeated = partial(self._repeated, key, reuse_key, agent, owner, instruction)
        with transaction.atomic():
            if first := repeated():
                return first, False
            session, new = self.open(
                agent=agent,
                owner=owner,
                title=title_of(instruction),
                reuse_key=reuse_key,
                # With a reuse key it is the turn that is sent once; its session may be older.
                idempotency_key=None if reuse_key else key,
                **lineage,
            )
            if not (new or reuse_key):
                # The same call at the same moment came first; or the key was used otherwise.
                if repeated():
                    return session, False
                raise NotPossible(SENT_BEFORE)
            session.submit(instruction, author=owner, idempotency_key=key, when_busy=when_busy)
            return session, new

    def _repeated(
        self,
        key: str | None,
        reuse_key: str | None,
        agent: Agent,
        owner: User,
        instruction: str,
    ) -> Session | None:
        """Find the session of an earlier call, finished or not. Raises NotPossible for another."""
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
        if turn.session.agent_id != agent.pk or turn.submitted != instruction:
            raise NotPossible(SENT_BEFORE)
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
            models.UniqueConstraint(fields=["owner", "idempotency_key"], name=ONE_PER_KEY),
            models.UniqueConstraint(
                fields=["agent", "reuse_key"],
                condition=~models.Q(state__in=FINISHED),
                name=ONE_PER_REUSE_KEY,
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
        live.session_changed(self.pk, rail=changes_lists(payloads))
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
            for name in ("state", "last_seq", "last_turn", "reuse_key"):
                setattr(self, name, getattr(session, name))
            return (turn, True) if first is None else (first, False)

    def _submitted(
        self, instruction: str, idempotency_key: str | None, retry_of: Turn | None
    ) -> Turn | None:
        """Find the turn that an earlier call of this kind made. Raises NotPossible for another."""
        if idempotency_key:
            first = self.turns.filter(idempotency_key=idempotency_key).first()
            if first is not None and first.submitted != instruction:
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
            busy = next((other for other in waiting if other.state in OPEN), waiting[0])
            raise NotPossible(f"{busy} of this session is not done yet. Try again later.")
        first = when_busy == "interrupt"
        turn = self.turns.create(
            number=self.last_turn + 1,
            position=min((other.position for other in waiting), default=0) - 1 if first else 0,
            instruction=instruction,
            author=author,
            idempotency_key=idempotency_key,
            retry_of=retry_of,
        )
        self.last_turn = turn.number
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
                if other.state in OPEN:
                    other.session = self
                    other.stop(by=name, reason=f"{turn} interrupted it")
        self.settle({turn.state, *(other.state for other in waiting)}, by=name)
        turn.enqueue()
        return turn

    def settle(self, states: Iterable[str] | None = None, *, by: str = "") -> None:
        """Set the state that follows from the turns. Call with the row locked.

        `states` are those of the turns that were not final just before, if the caller knows them.
        """
        if states is None:
            states = self.turns.exclude(state__in=FINAL).values_list("state", flat=True)
        open_states = set(states).difference(FINAL)
        if TurnState.WAITING_FOR_PERMISSION in open_states:
            state = SessionState.WAITING_FOR_PERMISSION
        elif TurnState.WAITING_FOR_INPUT in open_states:
            state = SessionState.WAITING_FOR_INPUT
        elif open_states:
            state = SessionState.ACTIVE
        else:
            # Not by number: one that interrupted was worked before others with a lower one.
            last = self.turns.order_by("-finished_at", "-number").first()
            if last is None:
                return
            failed = last.state == TurnState.FAILED
            state = SessionState.FAILED if failed else SessionState.WAITING_FOR_INPUT
        self._move(state, by=by)
        if not open_states:
            lineage.hand_over(self)

    def _move(self, state: str, *, by: str, reason: str = "") -> None:
        if self.state == state:
            return
        given_up = self._enter(state)
        told = "; ".join(part for part in (reason, given_up) if part)
        self.record(STATE_EVENTS[state](by=by, reason=told))

    def _enter(self, state: str, **changes: Any) -> str:
        """Write a state, and what belongs to it. Say what had to be given up for it."""
        comes_back = self.state in FINISHED and state not in FINISHED
        if not (comes_back and self.reuse_key):
            self._write_state(state, **changes)
            return ""
        try:
            # Its reuse key counts again, and another session may have taken it meanwhile.
            with transaction.atomic():
                self._write_state(state, **changes)
            return ""
        except IntegrityError as error:
            if _constraint(error) != ONE_PER_REUSE_KEY:
                raise
        key, self.reuse_key = self.reuse_key, None
        self._write_state(state, reuse_key=None, **changes)
        return f"a newer session goes on under its reuse key “{key}”"

    def _write_state(self, state: str, **changes: Any) -> None:
        won = Session.objects.filter(pk=self.pk, state=self.state).update(state=state, **changes)
        assert won == 1, "the session's row was not locked when it was read"
        self.state = state

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
            lineage.hand_over(session)
        self.refresh_from_db()

    def archive(self, *, by: User) -> None:
        """Hide the session from active views. Raises NotPossible while a turn is open."""
        with transaction.atomic():
            session = Session.objects.lock(self.pk)
            if session.state == SessionState.ARCHIVED:
                raise NotPossible("This session is archived already.")
            at_rest = session.state in SESSION["archive"].leaves
            if not at_rest or session.turns.exclude(state__in=FINAL).exists():
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

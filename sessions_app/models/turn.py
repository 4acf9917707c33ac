"""One piece of submitted work inside a session. Its row is the lease of whoever works on it.

Every transition is a conditional UPDATE that names the state and attempt it leaves, made under the
session's row lock, with its event in the same transaction. Lock order is session, turn, approval.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from django.conf import settings
from django.db import models, transaction
from django.db.models.functions import Now
from django.utils import timezone

from .. import events, ids, live
from ..events import Payload
from .event import Fenced
from .session import ClockTimestamp, Session, title_of
from .states import ENDED, FINAL, OPEN, RETRYABLE, TURN, NotPossible, TurnState
from .usage import Usage

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser, User

logger = logging.getLogger(__name__)


class CancelPending(Exception):
    """The turn is asked to end: its holder ends it instead of parking it."""


class TurnQuerySet(models.QuerySet["Turn"]):
    def visible_to(self, user: User | AnonymousUser) -> TurnQuerySet:
        return self.filter(session__in=Session.objects.visible_to(user))

    def open(self) -> TurnQuerySet:
        """Those that hold their session: running, or waiting for a person."""
        return self.filter(state__in=OPEN)

    def queued(self) -> TurnQuerySet:
        """Those that wait for their turn, in the order in which they will be worked."""
        return self.filter(state=TurnState.QUEUED).order_by("position", "number")

    def unheld(self) -> TurnQuerySet:
        """Running, but let go of, or nobody renews the lease. The database's clock decides."""
        return self.filter(
            models.Q(lease_until=None) | models.Q(lease_until__lt=Now()), state=TurnState.RUNNING
        )

    def claimable(self) -> TurnQuerySet:
        """Those that a worker could take now: let go of, or queued with nothing before them."""
        held = Turn.objects.open().filter(session=models.OuterRef("session"))
        unheld = Turn.objects.unheld().values("pk")
        return self.filter(
            models.Q(pk__in=unheld) | models.Q(~models.Exists(held), state=TurnState.QUEUED)
        )

    def stranded(self) -> TurnQuerySet:
        """Queued for a while with nothing before them: their wake-up was lost."""
        held = Turn.objects.open().filter(session=models.OuterRef("session"))
        return self.filter(
            ~models.Exists(held),
            state=TurnState.QUEUED,
            created_at__lt=Now() - timedelta(seconds=5),
        )

    def claim(self, session_id: str, holder: str, *, lease: timedelta) -> Turn | None:
        """Take the session's next piece of work, or return None when there is none to take.

        That is the open turn if nobody holds it any more, else the first in the queue. Of two
        callers at once only one gets it.
        """
        with transaction.atomic():
            try:
                session = Session.objects.select_related("agent").lock(session_id)
            except Session.DoesNotExist:
                return None  # A late wake-up: the session was deleted meanwhile.
            of_session = self.filter(session=session)
            # What has been started goes before what is queued.
            in_order = models.F("started_at").asc(nulls_last=True), "position", "number"
            unfinished = of_session.exclude(state__in=FINAL).select_related("author")
            turn = unfinished.order_by(*in_order).first()
            if turn is None:
                return None
            reason, lost_by = turn.reason_to_start(), turn.holder
            turn.ready_at = turn.lease_until if lost_by else session.listed_at
            # Asked again: a lease can be renewed without the session's lock.
            free = of_session.queued() if turn.state == TurnState.QUEUED else of_session.unheld()
            won = free.filter(pk=turn.pk, attempt=turn.attempt).update(
                state=TurnState.RUNNING,
                attempt=turn.attempt + 1,
                holder=holder,
                lease_until=Now() + lease,
                started_at=(started_at := turn.started_at or timezone.now()),
            )
            if won != 1:
                return None
            turn.state, turn.holder, turn.started_at = TurnState.RUNNING, holder, started_at
            turn.attempt += 1
            # By the database's clock: read from there when somebody asks.
            del turn.lease_until
            if lost_by:
                logger.warning(
                    "%s was lost by %s; %s takes it up.",
                    *(turn.pk, lost_by, holder),
                    extra={"session": session_id, "turn": turn.pk},
                )
            Session.objects.filter(pk=session.pk).update(fence=turn.fence)
            session.fence, turn.session = turn.fence, session
            session.record(events.TurnStarted(attempt=turn.attempt, reason=reason), turn=turn)
            session.settle([turn.state])
            return turn


class Turn(Usage):
    State = TurnState

    id = ids.id_field(ids.turn_id)
    session = models.ForeignKey(Session, models.CASCADE, related_name="turns")
    number = models.IntegerField()
    state = models.CharField(max_length=30, choices=TurnState.choices, default=TurnState.QUEUED)
    # Where it stands in the queue, before its number counts; one that interrupts goes first.
    position = models.IntegerField(default=0)
    instruction = models.TextField()
    author = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="turns"
    )
    attempt = models.IntegerField(default=0)
    holder = models.CharField(max_length=120, blank=True, default="")
    lease_until = models.DateTimeField(null=True, blank=True)
    cancel_requested_at = models.DateTimeField(null=True, blank=True)
    cancel_requested_by = models.CharField(max_length=150, blank=True, default="")
    cancel_reason = models.TextField(blank=True, default="")
    waiting_for = models.CharField(max_length=500, blank=True, default="")
    error_code = models.CharField(max_length=60, blank=True, default="")
    error_message = models.TextField(blank=True, default="")
    retry_of = models.ForeignKey(
        "self", models.SET_NULL, null=True, blank=True, related_name="retries"
    )
    idempotency_key = models.CharField(max_length=64, null=True, blank=True)  # noqa: DJ001
    created_at = models.DateTimeField(default=timezone.now)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    ready_at: datetime | None = None
    """Since when it could have been claimed, if it was just claimed."""

    objects = TurnQuerySet.as_manager()

    class Meta:
        ordering = ["session", "number"]
        constraints = [
            models.UniqueConstraint(fields=["session", "number"], name="one_turn_per_number"),
            models.UniqueConstraint(fields=["session", "idempotency_key"], name="one_turn_per_key"),
            models.UniqueConstraint(
                fields=["session"],
                condition=models.Q(state__in=[str(state) for state in OPEN]),
                name="one_open_turn_per_session",
            ),
            models.CheckConstraint(
                condition=models.Q(
                    finished_at__isnull=False, state__in=[str(state) for state in FINAL]
                )
                | (
                    models.Q(finished_at__isnull=True)
                    & ~models.Q(state__in=[str(state) for state in FINAL])
                ),
                name="finished_if_and_only_if_final",
            ),
        ]
        indexes = [
            # What rescue looks through: the few that are not final.
            models.Index(
                fields=["state", "lease_until"],
                condition=~models.Q(state__in=[str(state) for state in FINAL]),
                name="turn_unfinished",
            ),
        ]

    def __str__(self) -> str:
        return f"Turn {self.number}"

    @property
    def fence(self) -> str:
        """What the session's row must say for this attempt's writes to count."""
        return f"{self.pk}:{self.attempt}"

    @property
    def title(self) -> str:
        return title_of(self.instruction)

    @property
    def submitted(self) -> str:
        """The instruction as it was first sent. It may have been edited since."""
        sent = self.events.filter(type="message.created", data__role="user").order_by("seq").first()
        return sent.data["text"] if sent else self.instruction

    @property
    def duration_ms(self) -> int:
        start = self.started_at or self.created_at
        return max(0, int(((self.finished_at or timezone.now()) - start).total_seconds() * 1000))

    @property
    def is_final(self) -> bool:
        return self.state in FINAL

    def reason_to_start(self) -> Literal["started", "resumed", "rescued"]:
        """Why a claim of this row starts it: fresh, let go of on purpose, or lost by its holder."""
        if self.state == TurnState.QUEUED:
            return "started"
        return "rescued" if self.holder else "resumed"

    def enqueue(self) -> None:
        """Wake a worker for this turn's session, in the transaction that made the work.

        No lock on the job: it is only a wake-up, harmless when it comes twice or late.
        """
        from procrastinate.contrib.django import app

        app.configure_task("advance").defer(session_id=self.session_id)
        live.work_waits(self.session_id)

    # -- transitions; each is called in a transaction that holds the session's lock ----------

    def _leaving(self, verb: str) -> TurnQuerySet:
        """This row, as long as it is in a state that the verb leaves."""
        return Turn.objects.filter(pk=self.pk, state__in=TURN[verb].leaves)

    def _held(self, verb: str) -> TurnQuerySet:
        """This row, as long as this attempt is the one that holds it."""
        return self._leaving(verb).filter(attempt=self.attempt)

    def park(self, state: str, waiting_for: str) -> None:
        """Let go of the turn until a person has decided.

        Raises CancelPending when it is asked to end, Fenced when it is not ours.
        """
        ours = self._held("park")
        won = ours.filter(cancel_requested_at=None).update(
            state=state, holder="", lease_until=None, waiting_for=waiting_for[:500]
        )
        if won != 1:
            raise (
                CancelPending if ours.exists() else Fenced(f"Turn {self.pk} is not held any more.")
            )
        self.state = state
        session = self.session
        Session.objects.filter(pk=session.pk).update(fence="")
        session.settle([state])

    def resume(self, *, by: str) -> bool:
        """Put a parked turn back to work, for any worker to take; say whether it was parked."""
        won = self._leaving("resume").update(
            state=TurnState.RUNNING, lease_until=None, waiting_for=""
        )
        if won == 1:
            self.session.settle([TurnState.RUNNING], by=by)
            self.enqueue()
        return won == 1

    def release(self) -> bool:
        """Hand the turn back for another worker to take at once; say whether it was ours."""
        won = self._held("release").update(holder="", lease_until=None)
        if won == 1:
            Session.objects.filter(pk=self.session_id, fence=self.fence).update(
                fence="", listed_at=ClockTimestamp()
            )
            self.enqueue()
        return won == 1

    def finish(self, *closing: Payload, state: str, code: str = "", message: str = "") -> None:
        """End the turn as its holder. Raises Fenced when it is not ours."""
        won = self._held("finish").update(
            state=state,
            finished_at=ClockTimestamp(),
            holder="",
            lease_until=None,
            error_code=code,
            error_message=message,
        )
        if won != 1:
            raise Fenced(f"Turn {self.pk} is not held any more.")
        self.refresh_from_db(fields=["state", "finished_at"])
        self._close(self.session, closing, by="", reason=f"the turn {ENDED[state]}")

    def stop(self, *, by: str, reason: str) -> None:
        """End the turn if it is queued or waits for a person, else ask its holder to."""
        if self.state != TurnState.RUNNING:
            self.end_as_cancelled(by=by, reason=reason)
            return
        asked = self._leaving("cancel").filter(cancel_requested_at=None)
        asked.update(
            cancel_requested_at=timezone.now(), cancel_requested_by=by, cancel_reason=reason
        )
        live.cancel_requested()

    def end_as_cancelled(self, *, by: str, reason: str, settle: bool = True) -> None:
        """End a turn as cancelled, whoever holds it: its writes are fenced off from here on.

        `settle=False` when the caller sets the session's state itself.
        """
        won = self._leaving("cancel").update(
            state=TurnState.CANCELLED,
            finished_at=ClockTimestamp(),
            holder="",
            lease_until=None,
            waiting_for="",
            cancel_requested_at=ClockTimestamp(),
            cancel_requested_by=by,
            cancel_reason=reason,
        )
        if won == 1:
            self.refresh_from_db(fields=["state", "finished_at"])
            closing = events.TurnCancelled(by=by, reason=reason)
            self._close(self.session, (closing,), by=by, reason=reason, settle=settle)
            live.cancel_requested()

    def _close(
        self,
        session: Session,
        closing: tuple[Payload, ...],
        *,
        by: str,
        reason: str,
        settle: bool = True,
    ) -> None:
        session.close_turn_use(self, by=by, reason=reason)
        if calls := self._open_calls():
            session.record(
                *(
                    events.ToolCallCompleted(call_id=call, status="cancelled", error=reason)
                    for call in calls
                ),
                turn=self,
            )
        session.record(*closing, turn=self)
        if settle:
            session.settle(by=by)

    def _open_calls(self) -> list[str]:
        """Calls that were started and have no result: whatever ends the turn ends them."""
        done = self.events.filter(type="tool_call.completed", item=models.OuterRef("item"))
        started = self.events.filter(~models.Exists(done), type="tool_call.started")
        return list(started.order_by("seq").values_list("data__call_id", flat=True))

    # -- what people do ------------------------------------------------------------------------

    def edit(self, instruction: str, *, by: User) -> None:
        """Change what a queued turn will do. Raises NotPossible once it has been started."""
        with transaction.atomic():
            self.session = Session.objects.lock(self.session_id)
            self.refresh_from_db(fields=["state", "instruction"])
            if self.state not in TURN["edit"].leaves:
                raise NotPossible(
                    f"{self} is {self.get_state_display()} already; only a queued turn can be "
                    "edited. Send the change as a new turn."
                )
            if self.instruction == instruction:
                return
            self._leaving("edit").update(instruction=instruction)
            self.instruction = instruction
            self.session.record(
                events.TurnEdited(text=instruction, by=by.get_username()), turn=self
            )

    def retry(self, *, by: User) -> Turn:
        """Submit a failed or cancelled turn's instruction again, as a new turn.

        A second retry while the first has not ended returns that one. Raises NotPossible.
        """
        with transaction.atomic():
            session = Session.objects.lock(self.session_id)
            self.refresh_from_db(fields=["state", "instruction"])
            if self.state not in RETRYABLE:
                raise NotPossible("Only a turn that failed or was cancelled can be retried.")
            return session.submit(self.instruction, author=by, retry_of=self)[0]

    def cancel(self, *, by: User, reason: str = "") -> None:
        """Ask for the turn to end. One that is queued or waits for a person ends at once.

        Raises NotPossible when it has ended already.
        """
        with transaction.atomic():
            self.session = Session.objects.lock(self.session_id)
            self.refresh_from_db(fields=["state", "attempt", "holder", "cancel_requested_at"])
            if self.state not in TURN["cancel"].leaves:
                raise NotPossible(f"This turn is {self.get_state_display()} already.")
            self.stop(by=by.get_username(), reason=reason)
            if self.is_final and self.session.turns.queued().exists():
                self.enqueue()
        self.refresh_from_db()

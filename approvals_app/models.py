"""The durable question a gate asks a person, and the verdicts that people gave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django.conf import settings
from django.db import models
from django.utils import timezone

from sessions_app import ids
from sessions_app.models import Agent, AuditEntry, Session, Turn
from sessions_app.models.session import ClockTimestamp

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser, User


class ApprovalState(models.TextChoices):
    """Rows are kept: who decided what is never swept."""

    PENDING = "PENDING", "pending"  # a decision moves it on, or the end of its turn
    APPROVED = "APPROVED", "approved"  # final
    REJECTED = "REJECTED", "rejected"  # final
    EXPIRED = "EXPIRED", "expired"  # final
    CANCELLED = "CANCELLED", "cancelled"  # final: what asked has ended
    SUPERSEDED = "SUPERSEDED", "superseded"  # final: the action changed meanwhile


class ApprovalRequestQuerySet(models.QuerySet["ApprovalRequest"]):
    def visible_to(self, user: User | AnonymousUser) -> ApprovalRequestQuerySet:
        return self.filter(session__in=Session.objects.visible_to(user))

    def decidable_by(self, user: User | AnonymousUser) -> ApprovalRequestQuerySet:
        """Those whose agent lets this person decide: staff and the agent's members."""
        if not (user.is_authenticated and user.is_active):
            return self.none()
        if user.is_staff:
            return self
        return self.filter(session__agent__in=Agent.objects.visible_to(user).values("pk"))

    def pending(self) -> ApprovalRequestQuerySet:
        return self.filter(state=ApprovalState.PENDING)

    def in_time(self) -> ApprovalRequestQuerySet:
        """Those that have not expired, by the database's clock."""
        return self.filter(models.Q(expires_at=None) | models.Q(expires_at__gt=ClockTimestamp()))

    def decided(self) -> ApprovalRequestQuerySet:
        return self.exclude(state=ApprovalState.PENDING)


class ApprovalRequest(models.Model):
    """Bound by its digest to the action that was shown."""

    State = ApprovalState
    OUTCOMES: ClassVar[dict[str, str]] = {"approve": "APPROVED", "reject": "REJECTED"}

    id = ids.id_field(ids.approval_id)
    session = models.ForeignKey(Session, models.CASCADE, related_name="approval_requests")
    turn = models.ForeignKey(Turn, models.CASCADE, related_name="approval_requests")
    key = models.CharField(max_length=80)
    state = models.CharField(
        max_length=20, choices=ApprovalState.choices, default=ApprovalState.PENDING
    )
    title = models.CharField(max_length=500)
    why = models.TextField(blank=True)
    rule = models.CharField(max_length=500)
    action = models.JSONField()
    digest = models.CharField(max_length=64)
    created_at = models.DateTimeField(auto_now_add=True)
    # From then on it cannot be decided; a worker moves it on some seconds later.
    expires_at = models.DateTimeField(null=True, blank=True)
    resolved_at = models.DateTimeField(null=True, blank=True)
    resolved_by = models.CharField(max_length=150, blank=True, default="")
    reason = models.TextField(blank=True, default="")
    used_at = models.DateTimeField(null=True, blank=True)

    objects = ApprovalRequestQuerySet.as_manager()

    class Meta:
        ordering = ["created_at"]
        constraints = [
            # A runner that is run again asks again: the same key in a turn is the same question.
            models.UniqueConstraint(
                fields=["turn", "key"],
                condition=~models.Q(state="SUPERSEDED"),
                name="one_request_per_question",
            ),
            models.CheckConstraint(
                condition=models.Q(resolved_at=None, state="PENDING")
                | (models.Q(resolved_at__isnull=False) & ~models.Q(state="PENDING")),
                name="resolved_if_and_only_if_not_pending",
            ),
        ]
        indexes = [
            models.Index(
                fields=["created_at"], condition=models.Q(state="PENDING"), name="approval_pending"
            ),
            models.Index(
                fields=["expires_at"],
                condition=models.Q(state="PENDING", expires_at__isnull=False),
                name="approval_expiring",
            ),
            models.Index(fields=["-resolved_at"], name="approval_resolved"),
        ]

    def __str__(self) -> str:
        return self.title

    @property
    def is_pending(self) -> bool:
        return self.state == ApprovalState.PENDING

    @property
    def is_late(self) -> bool:
        """Whether its time is over, though nobody has moved it on yet."""
        return self.is_pending and self.expires_at is not None and self.expires_at <= timezone.now()


class DecisionQuerySet(models.QuerySet["Decision"]):
    def visible_to(self, user: User | AnonymousUser) -> DecisionQuerySet:
        return self.filter(request__in=ApprovalRequest.objects.visible_to(user))

    def add(self, **fields: Any) -> Decision:
        """Add a decision and its entry in the audit chain, in a transaction. Locks the chain."""
        decision = self.model(**fields)
        decision.entry = AuditEntry.objects.append(
            "decision",
            by=decision.by.get_username(),
            subject=decision.request_id,
            data=decision.told(),
        )
        decision.save(force_insert=True)
        return decision


class Decision(models.Model):
    """One person's verdict. Rows are only ever added, each with its entry in the audit chain."""

    request = models.ForeignKey(ApprovalRequest, models.PROTECT, related_name="decisions")
    by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, related_name="decisions")
    verdict = models.CharField(
        max_length=10, choices=[("approve", "approve"), ("reject", "reject")]
    )
    reason = models.TextField(blank=True)
    digest = models.CharField(max_length=64)
    # From where: what was decided with, and the address that it came from, if it was one.
    channel = models.CharField(max_length=20, default="page")
    address = models.CharField(max_length=45, blank=True, default="")
    entry = models.OneToOneField(AuditEntry, models.PROTECT, related_name="decision")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = DecisionQuerySet.as_manager()

    class Meta:
        ordering = ["created_at"]

    def __str__(self) -> str:
        return f"{self.verdict} by {self.by}"

    def told(self) -> dict[str, Any]:
        """What its entry in the audit chain tells of it."""
        return {
            "request": self.request_id,
            "user": self.by_id,
            "verdict": self.verdict,
            "reason": self.reason,
            "digest": self.digest,
            "channel": self.channel,
            "address": self.address,
        }

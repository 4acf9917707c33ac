"""A configured automation identity: which runner, its settings, who may use it, what it may run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.validators import MinValueValidator
from django.db import models

from .. import ids
from .usage import Usage

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser, User


class AgentQuerySet(models.QuerySet["Agent"]):
    def visible_to(self, user: User | AnonymousUser) -> AgentQuerySet:
        """Those that a person may open sessions with."""
        if not (user.is_authenticated and user.is_active):
            return self.none()
        if user.is_staff:
            return self
        # A subquery rather than a join: no duplicates, and it stays composable.
        memberships = Agent.members.through.objects.filter(user_id=user.pk).values("agent_id")
        return self.filter(pk__in=memberships)

    def enabled(self) -> AgentQuerySet:
        return self.filter(enabled=True)


class Agent(models.Model):
    id = ids.id_field(ids.agent_id)
    name = models.CharField(max_length=120, unique=True)
    description = models.CharField(max_length=500, blank=True)
    runner = models.CharField(max_length=40, default="runbook")
    runner_settings = models.JSONField(default=dict, blank=True)
    members = models.ManyToManyField(
        settings.AUTH_USER_MODEL,
        blank=True,
        related_name="agents",
        help_text="May open sessions with this agent, see all of them, and decide its approvals.",
    )
    allow_confined = models.BooleanField(
        "allow what is confined",
        default=True,
        help_text="A step runs without asking when it is confined and has no network.",
    )
    allowed_commands = models.JSONField(
        default=list,
        blank=True,
        help_text='Whole commands that run without asking, such as ["git status", "ls -l"]. '
        "A step is matched as a whole after parsing, never by its beginning.",
    )
    approvals_expire_minutes = models.PositiveIntegerField(
        "approvals expire after (minutes)",
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="What nobody has decided by then counts as rejected. Empty: it waits for ever.",
    )
    enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = AgentQuerySet.as_manager()

    class Meta:
        ordering = ["created_at"]

    def __str__(self) -> str:
        return self.name

    def usage(self) -> dict[str, Any]:
        """Sum up what the sessions of this agent have used, by the names of `Usage.FIELDS`."""
        sums = self.sessions.aggregate(**{name: models.Sum(name) for name in Usage.FIELDS})
        return {name: amount or 0 for name, amount in sums.items()}

    def why_not(self, user: User | AnonymousUser) -> str:
        """Say why a person may not give this agent work; an empty text when they may."""
        if not self.enabled:
            return f"{self.name} is switched off. An administrator can switch it on again."
        if not Agent.objects.visible_to(user).filter(pk=self.pk).exists():
            return f"You are no member of {self.name} any more: you can read, but not go on."
        return ""

    def may_decide(self, user: User | AnonymousUser) -> bool:
        """Whether a person may decide this agent's approvals: staff and members may."""
        if not (user.is_authenticated and user.is_active):
            return False
        return user.is_staff or self.members.filter(pk=user.pk).exists()

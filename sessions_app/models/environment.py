"""The retained runtime and filesystem a session works in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import models

from .. import ids
from .session import Session

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser, User


class EnvironmentState(models.TextChoices):
    """The row is kept after DELETED, as a tombstone; it goes with its session."""

    CREATING = "CREATING", "creating"  # the engine, when a turn first needs it
    STARTING = "STARTING", "starting"  # the engine, when it is used again
    ACTIVE = "ACTIVE", "active"  # usable
    STOPPING = "STOPPING", "stopping"
    STOPPED = "STOPPED", "stopped"  # files are kept
    DELETING = "DELETING", "deleting"
    DELETED = "DELETED", "deleted"
    FAILED = "FAILED", "failed"  # could not start; the next use tries again


class ExecutionEnvironmentQuerySet(models.QuerySet["ExecutionEnvironment"]):
    def visible_to(self, user: User | AnonymousUser) -> ExecutionEnvironmentQuerySet:
        return self.filter(session__in=Session.objects.visible_to(user))


class ExecutionEnvironment(models.Model):
    State = EnvironmentState

    id = ids.id_field(ids.environment_id)
    session = models.OneToOneField(Session, models.CASCADE, related_name="environment")
    provider = models.CharField(max_length=40)
    state = models.CharField(
        max_length=20, choices=EnvironmentState.choices, default=EnvironmentState.CREATING
    )
    confined = models.BooleanField(default=False)
    network = models.BooleanField(default=True)
    detail = models.CharField(max_length=500, blank=True)
    # The worker process that has it open; another one resumes it.
    holder = models.CharField(max_length=120, blank=True, default="")
    created_at = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(null=True, blank=True)

    objects = ExecutionEnvironmentQuerySet.as_manager()

    def __str__(self) -> str:
        return f"Environment of {self.session_id}"

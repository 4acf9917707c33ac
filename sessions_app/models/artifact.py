"""A produced thing: its row, and its content stored once per digest."""

from __future__ import annotations

import hashlib
import mimetypes
import os
from typing import TYPE_CHECKING, BinaryIO

from django.core.files.base import File
from django.core.files.storage import storages
from django.db import models

from .. import events, ids
from .session import Session
from .turn import Turn

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser, User


class ArtifactKind(models.TextChoices):
    CHANGE_REQUEST = "change_request", "repository change request"
    DIFF = "diff", "diff"
    SUMMARY = "summary", "summary"
    LOG_BUNDLE = "log_bundle", "log bundle"
    FILE = "file", "file"


class ArtifactQuerySet(models.QuerySet["Artifact"]):
    def visible_to(self, user: User | AnonymousUser) -> ArtifactQuerySet:
        return self.filter(session__in=Session.objects.visible_to(user))


def store(content: BinaryIO) -> tuple[str, int]:
    """Put content into storage under its SHA-256 and return (sha256, size in bytes).

    Done before the row is written: a file without a row is swept up later, a row without its file
    would be a lie.
    """
    hashed = hashlib.file_digest(content, "sha256")  # type: ignore[arg-type]
    digest = hashed.hexdigest()
    size = content.seek(0, os.SEEK_END)
    content.seek(0)
    storage = storages["artifacts"]
    name = content_name(digest)
    if not storage.exists(name):
        storage.save(name, File(content))
    return digest, size


def content_name(sha256: str) -> str:
    return f"{sha256[:2]}/{sha256}"


def media_type_of(name: str) -> str:
    """Guess the media type from the name. Downloads are never shown by it alone."""
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


class Artifact(models.Model):
    """Rows and content are deleted by retention."""

    Kind = ArtifactKind

    id = ids.id_field(ids.artifact_id)
    session = models.ForeignKey(Session, models.CASCADE, related_name="artifacts")
    turn = models.ForeignKey(Turn, models.CASCADE, related_name="artifacts")
    kind = models.CharField(max_length=20, choices=ArtifactKind.choices)
    name = models.CharField(max_length=300)
    media_type = models.CharField(max_length=120)
    size = models.BigIntegerField()
    sha256 = models.CharField(max_length=64, db_collation="C", db_index=True)
    summary = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ArtifactQuerySet.as_manager()

    class Meta:
        ordering = ["created_at"]

    def __str__(self) -> str:
        return self.name

    def open(self) -> File[bytes]:
        """Open the content. Raises FileNotFoundError when it is gone."""
        return storages["artifacts"].open(content_name(self.sha256))

    def created_event(self) -> events.ArtifactCreated:
        return events.ArtifactCreated(
            artifact_id=self.pk,
            kind=self.kind,
            name=self.name,
            media_type=self.media_type,
            size=self.size,
            sha256=self.sha256,
            summary=self.summary,
        )

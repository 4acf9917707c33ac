"""The audit chain: what people decided and did, each entry bound to the one before by its hash.

Entries are only ever added. The database refuses to change or delete one; who goes round that is
found by `verify`, because a changed, removed or reordered entry breaks every digest after it.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

from django.db import models, transaction
from django.utils import timezone

NOTHING = ""
"""What the first entry follows."""


def digest_of(
    number: int,
    at: datetime,
    kind: str,
    by: str,
    subject: str,
    data: dict[str, Any],
    previous: str,
) -> str:
    """Return the SHA-256 of an entry's content as canonical JSON, in hexadecimal."""
    instant = at.astimezone(UTC).isoformat(timespec="microseconds")
    content = [number, instant, kind, by, subject, data, previous]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class AuditEntryQuerySet(models.QuerySet["AuditEntry"]):
    def append(self, kind: str, *, by: str, subject: str, data: dict[str, Any]) -> AuditEntry:
        """Add an entry in the transaction that does what it tells.

        The head's row is locked until the end of that transaction: take this lock last.
        `data` holds texts, whole numbers, booleans, lists and objects of these.
        """
        assert transaction.get_connection().in_atomic_block, "an entry belongs to what it tells"
        head = AuditHead.objects.lock()
        entry = AuditEntry(
            number=head.number + 1,
            at=timezone.now(),
            kind=kind,
            by=by,
            subject=subject,
            data=data,
            previous=head.digest,
        )
        entry.digest = entry.computed()
        entry.save(force_insert=True)
        AuditHead.objects.filter(pk=head.pk).update(number=entry.number, digest=entry.digest)
        return entry


class AuditEntry(models.Model):
    number = models.BigIntegerField(primary_key=True)
    at = models.DateTimeField()
    kind = models.CharField(max_length=60, db_collation="C")
    by = models.CharField(max_length=150)
    # The id of what it is about.
    subject = models.CharField(max_length=60, db_collation="C", db_index=True)
    data = models.JSONField()
    previous = models.CharField(max_length=64, blank=True)
    digest = models.CharField(max_length=64)

    objects = AuditEntryQuerySet.as_manager()

    class Meta:
        ordering = ["number"]
        verbose_name_plural = "audit entries"

    def __str__(self) -> str:
        return f"{self.number} {self.kind} {self.subject} by {self.by}"

    def computed(self) -> str:
        """The digest that this content has after the one before it."""
        return digest_of(
            self.number, self.at, self.kind, self.by, self.subject, self.data, self.previous
        )


class AuditHeadQuerySet(models.QuerySet["AuditHead"]):
    def lock(self) -> AuditHead:
        """Return the head with its row locked, made at first use."""
        if (found := self.select_for_update().first()) is None:
            self.bulk_create([self.model(pk=1)], ignore_conflicts=True)
            found = self.select_for_update().get()
        return found


class AuditHead(models.Model):
    """Where the chain ends: without it, entries could be taken off its end unnoticed."""

    id = models.IntegerField(primary_key=True, default=1, editable=False)
    number = models.BigIntegerField(default=0)
    digest = models.CharField(max_length=64, blank=True, default=NOTHING)

    objects = AuditHeadQuerySet.as_manager()

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(pk=1), name="one_audit_head")]

    def __str__(self) -> str:
        return f"{self.number} {self.digest}"

"""Decisions beside their entries in the audit chain."""

from __future__ import annotations

from collections.abc import Sequence

from sessions_app.models import AuditEntry

from .models import Decision


def check(entries: Sequence[AuditEntry]) -> dict[int, str]:
    """Say by number which entries tell of a decision that is gone, or is not what they tell."""
    decisions = Decision.objects.in_bulk([entry.number for entry in entries], field_name="entry_id")
    broken = {}
    for entry in entries:
        decision = decisions.get(entry.number)
        if decision is None:
            broken[entry.number] = f"its decision on {entry.subject} is gone"
        elif any(decision.told().get(name) != told for name, told in entry.data.items()):
            broken[entry.number] = f"its decision on {entry.subject} was changed"
    return broken

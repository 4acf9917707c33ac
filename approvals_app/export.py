"""Decisions as files, for whoever keeps or examines them elsewhere: JSON Lines and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import datetime, time
from typing import TYPE_CHECKING, Any

from django import forms
from django.utils import timezone

from sessions_app.models import Agent
from sessions_app.threads import in_thread

from .models import Decision, DecisionQuerySet

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser, User

AT_A_TIME = 500
COLUMNS = (
    "entry",
    "at",
    "by",
    "verdict",
    "reason",
    "channel",
    "address",
    "approval_id",
    "title",
    "outcome",
    "agent",
    "session_id",
    "turn_id",
    "digest",
    "entry_digest",
)
# What a spreadsheet would take for a formula when a cell begins with it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Filters(forms.Form):
    """Which decisions: all that are visible, unless something narrower is asked for."""

    agent = forms.ModelChoiceField(Agent.objects.all(), required=False)
    by = forms.CharField(required=False, max_length=150)
    verdict = forms.ChoiceField(
        choices=[("", "any"), ("approve", "approve"), ("reject", "reject")], required=False
    )
    since = forms.DateField(required=False)
    until = forms.DateField(required=False)

    def problems(self) -> str:
        """Say what is wrong, field by field."""
        return " ".join(
            f"`{name}`: {' '.join(str(message) for message in messages)}"
            for name, messages in self.errors.items()
        )

    def found(self, user: User | AnonymousUser) -> DecisionQuerySet:
        """The decisions that a person may see and asked for. Call when the form is valid."""
        given = self.cleaned_data
        found = Decision.objects.visible_to(user)
        if agent := given["agent"]:
            found = found.filter(request__session__agent=agent)
        if by := given["by"]:
            found = found.filter(by__username=by)
        if verdict := given["verdict"]:
            found = found.filter(verdict=verdict)
        if since := given["since"]:
            found = found.filter(entry__at__gte=_midnight(since))
        if until := given["until"]:
            # The day that is named is in it.
            found = found.filter(entry__at__lte=_midnight(until, time.max))
        return found


def _midnight(day: Any, at: time = time.min) -> datetime:
    return timezone.make_aware(datetime.combine(day, at))


def _row(decision: Decision, *, with_address: bool) -> dict[str, Any]:
    request = decision.request
    return {
        "entry": decision.entry_id,
        "at": decision.entry.at.isoformat(),
        "by": decision.entry.by,
        "verdict": decision.verdict,
        "reason": decision.reason,
        "channel": decision.channel,
        "address": decision.address if with_address else "",
        "approval_id": request.pk,
        "title": request.title,
        "outcome": request.state.lower(),
        "agent": request.session.agent.name,
        "session_id": request.session_id,
        "turn_id": request.turn_id,
        "digest": decision.digest,
        "entry_digest": decision.entry.digest,
    }


def json_line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def csv_line(row: dict[str, Any]) -> str:
    return _csv([_cell(row[name]) for name in COLUMNS])


def _cell(value: Any) -> str:
    text = str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _csv(cells: Iterable[str]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue()


FORMATS: dict[str, tuple[str, str, Callable[[dict[str, Any]], str]]] = {
    "jsonl": ("application/jsonl", "", json_line),
    "csv": ("text/csv; charset=utf-8", _csv(COLUMNS), csv_line),
}
"""By the end of a file's name: its media type, its first line, and how a row is written."""


async def lines(found: DecisionQuerySet, *, kind: str, with_address: bool) -> AsyncIterator[str]:
    """Write the decisions in the order of the chain, some at a time, whatever their number."""
    _, head, write = FORMATS[kind]
    if head:
        yield head
    last = 0
    ordered = found.select_related("by", "entry", "request__session__agent").order_by("entry")
    while page := await in_thread(list, ordered.filter(entry__gt=last)[:AT_A_TIME]):
        last = page[-1].entry_id
        yield "".join(write(_row(decision, with_address=with_address)) for decision in page)

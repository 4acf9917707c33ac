"""What the inbox lists: which requests, narrowed by what, and a page of them at a time."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django import forms
from django.core.paginator import Page, Paginator
from django.db.models import Q
from django.db.models.functions import Now

from sessions_app.models import Agent

from .models import ApprovalRequest, ApprovalRequestQuerySet

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser, User
    from django.http import QueryDict

VIEWS = {"mine": "For me", "pending": "All pending", "decided": "Decided"}
ROWS = 50
RISKS = {
    "unconfined": Q(action__confined=False),
    "network": Q(action__network=True),
    "contained": Q(action__confined=True, action__network=False),
}
AGES = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(weeks=1)}


class Filters(forms.Form):
    """What narrows the list. A field that says nothing that there is narrows nothing."""

    agent = forms.ModelChoiceField(Agent.objects.none(), required=False, empty_label="Any agent")
    risk = forms.ChoiceField(
        choices=[
            ("", "Any risk"),
            ("unconfined", "Not confined"),
            ("network", "With network"),
            ("contained", "Confined, no network"),
        ],
        required=False,
    )
    age = forms.ChoiceField(
        choices=[
            ("", "Any age"),
            ("hour", "Older than an hour"),
            ("day", "Older than a day"),
            ("week", "Older than a week"),
        ],
        required=False,
    )

    def __init__(self, given: QueryDict, user: User | AnonymousUser) -> None:
        super().__init__(given)
        asking = ApprovalRequest.objects.visible_to(user).values("session__agent")
        self.fields["agent"].queryset = Agent.objects.filter(  # type: ignore[attr-defined]
            Q(pk__in=Agent.objects.visible_to(user)) | Q(pk__in=asking)
        ).order_by("name")
        self.is_valid()

    def narrow(self, requests: ApprovalRequestQuerySet) -> ApprovalRequestQuerySet:
        given = self.cleaned_data
        if agent := given.get("agent"):
            requests = requests.filter(session__agent=agent)
        if risk := given.get("risk"):
            requests = requests.filter(RISKS[risk])
        if age := given.get("age"):
            requests = requests.filter(created_at__lt=Now() - AGES[age])
        return requests

    @property
    def narrows(self) -> bool:
        return any(self.cleaned_data.values())


class Inbox:
    """One person's inbox, as an address asks for it."""

    def __init__(self, given: QueryDict, user: User | AnonymousUser) -> None:
        asked = str(given.get("view"))
        self.view = asked if asked in VIEWS else "mine"
        self.filters = Filters(given, user)
        self._user = user
        self._visible = ApprovalRequest.objects.visible_to(user)
        self._mine = self._visible.pending().decidable_by(user)
        self._given = given

    def tabs(self) -> list[dict[str, Any]]:
        counts = {"mine": self._mine.count(), "pending": self._visible.pending().count()}
        return [
            {"slug": slug, "name": name, "count": counts.get(slug)} for slug, name in VIEWS.items()
        ]

    def page(self) -> Page[ApprovalRequest]:
        """The rows that are shown; of a page that there is not, the nearest one."""
        listed = {
            "mine": self._mine,
            "pending": self._visible.pending(),
            "decided": self._visible.decided().order_by("-resolved_at"),
        }[self.view]
        related = listed.select_related("session__agent", "turn__author")
        return Paginator(self.filters.narrow(related), ROWS).get_page(self._given.get("page"))

    def query(self) -> str:
        """What the address says of all this, without the page."""
        said = self._given.copy()
        for name in set(said) - {"agent", "risk", "age"}:
            del said[name]
        said["view"] = self.view
        return said.urlencode()

    def decides_for(self) -> set[str]:
        """The agents whose requests this person may decide, asked once for all rows."""
        if self._user.is_staff:
            return set(Agent.objects.values_list("pk", flat=True))
        return set(Agent.objects.visible_to(self._user).values_list("pk", flat=True))

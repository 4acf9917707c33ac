"""Sessions in the admin: what staff look through, filter and search. Facts are read-only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ActionForm
from django.db.models import Field, QuerySet
from django.forms import Select
from django.http import HttpRequest

from . import submission
from .models import (
    Agent,
    Artifact,
    AuditEntry,
    Event,
    ExecutionEnvironment,
    NotPossible,
    Session,
    Turn,
)
from .models.usage import Usage
from .runners import registry

if TYPE_CHECKING:
    from django.contrib.auth.models import User

SHOWN_REFUSALS = 20


class ReadOnly:
    """For rows that are moved by transitions only, or never: looked at, not edited."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class WithReason(ActionForm):
    """Beside the choice of an action: the words that its event will tell."""

    reason = forms.CharField(required=False, max_length=500, label="Reason: ")


class Movable(ReadOnly):
    """Rows that staff who may change them move on, by the same verbs as everybody."""

    action_form = WithReason

    def has_move_permission(self, request: HttpRequest) -> bool:
        meta = self.model._meta  # type: ignore[attr-defined]
        return request.user.has_perm(f"{meta.app_label}.change_{meta.model_name}")

    def named(self, row: Any) -> str:
        return f"“{row}”"

    def move(
        self,
        request: HttpRequest,
        rows: QuerySet[Any],
        verb: Callable[[Any, User], object],
        done: str,
    ) -> None:
        """Do it to each row by itself; say how many it was done to, and why not to the others."""
        moved, refused = 0, []
        for row in rows.order_by("pk"):
            try:
                verb(row, request.user)  # type: ignore[arg-type]
                moved += 1
            except NotPossible as error:
                refused.append(f"{self.named(row)} was refused: {error}")
        summary = f"{moved} {done}" + (f", {len(refused)} refused." if refused else ".")
        level = messages.WARNING if refused else messages.SUCCESS
        self.message_user(request, summary, level)  # type: ignore[attr-defined]
        for refusal in refused[:SHOWN_REFUSALS]:
            self.message_user(request, refusal, messages.ERROR)  # type: ignore[attr-defined]


@admin.register(Agent)
class AgentAdmin(admin.ModelAdmin):
    list_display = ["name", "runner", "enabled", "allow_confined", "created_at"]
    list_filter = ["runner", "enabled"]
    search_fields = ["name", "description"]
    filter_horizontal = ["members"]
    readonly_fields = ["used", "created_at"]

    @admin.display(description="used by its sessions")
    def used(self, agent: Agent) -> str:
        return ", ".join(
            f"{amount:,} {Usage._meta.get_field(name).verbose_name}"  # type: ignore[union-attr]
            for name, amount in agent.usage().items()
        )

    def formfield_for_dbfield(self, db_field: Field, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "runner":
            kwargs["widget"] = Select(choices=registry.choices())
        return super().formfield_for_dbfield(db_field, request, **kwargs)


class TurnInline(ReadOnly, admin.TabularInline):
    model = Turn
    fields = ["number", "state", "author", "attempt", "created_at", "finished_at", "error_message"]
    ordering = ["-number"]
    show_change_link = True
    max_num = 0


@admin.register(Session)
class SessionAdmin(Movable, admin.ModelAdmin):
    list_display = ["title", "agent", "owner", "state", "last_turn", "last_seq", "last_activity_at"]
    list_filter = ["state", "agent"]
    search_fields = ["title", "=id", "owner__username"]
    list_select_related = ["agent", "owner"]
    date_hierarchy = "created_at"
    readonly_fields = Usage.FIELDS
    inlines = [TurnInline]
    actions = ["complete", "cancel", "archive", "unarchive"]

    @admin.action(description="Complete the selected sessions", permissions=["move"])
    def complete(self, request: HttpRequest, sessions: QuerySet[Session]) -> None:
        self._close(request, sessions, Session.State.COMPLETED)

    @admin.action(description="Cancel the selected sessions", permissions=["move"])
    def cancel(self, request: HttpRequest, sessions: QuerySet[Session]) -> None:
        self._close(request, sessions, Session.State.CANCELLED)

    @admin.action(description="Archive the selected sessions", permissions=["move"])
    def archive(self, request: HttpRequest, sessions: QuerySet[Session]) -> None:
        self.move(request, sessions, lambda session, by: session.archive(by=by), "archived")

    @admin.action(description="Unarchive the selected sessions", permissions=["move"])
    def unarchive(self, request: HttpRequest, sessions: QuerySet[Session]) -> None:
        self.move(request, sessions, lambda session, by: session.unarchive(by=by), "unarchived")

    def _close(self, request: HttpRequest, sessions: QuerySet[Session], state: str) -> None:
        done, reason = Session.State(state).label, _reason(request)
        self.move(
            request, sessions, lambda session, by: session.close(state, by=by, reason=reason), done
        )


@admin.register(Turn)
class TurnAdmin(Movable, admin.ModelAdmin):
    list_display = ["session", "number", "state", "author", "attempt", "holder", "lease_until"]
    list_filter = ["state", "session__agent"]
    search_fields = ["=id", "session__title", "instruction"]
    list_select_related = ["session", "author"]
    readonly_fields = Usage.FIELDS
    actions = ["cancel", "retry"]

    def named(self, row: Turn) -> str:
        return f"{row} of “{row.session}”"

    @admin.action(description="Cancel the selected turns", permissions=["move"])
    def cancel(self, request: HttpRequest, turns: QuerySet[Turn]) -> None:
        """Queued and waiting ones end at once; running ones are asked to."""
        reason = _reason(request)
        self.move(
            request,
            turns,
            lambda turn, by: turn.cancel(by=by, reason=reason),
            "cancelled or asked to end",
        )

    @admin.action(description="Retry the selected turns", permissions=["move"])
    def retry(self, request: HttpRequest, turns: QuerySet[Turn]) -> None:
        self.move(request, turns, _retry, "submitted again")


def _reason(request: HttpRequest) -> str:
    return submission.written(request.POST.get("reason", "")).strip()


def _retry(turn: Turn, by: User) -> None:
    if reason := turn.session.agent.why_not(by):
        raise NotPossible(reason)
    turn.retry(by=by)


@admin.register(Event)
class EventAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ["session", "seq", "type", "turn", "created_at"]
    list_filter = ["type"]
    search_fields = ["=session__id"]
    list_select_related = ["session", "turn"]
    show_full_result_count = False


@admin.register(ExecutionEnvironment)
class ExecutionEnvironmentAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ["session", "provider", "state", "confined", "network", "last_used_at"]
    list_filter = ["state", "provider", "confined"]
    search_fields = ["=id", "session__title", "=session__id"]
    list_select_related = ["session"]


@admin.register(Artifact)
class ArtifactAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ["name", "kind", "size", "session", "created_at"]
    list_filter = ["kind", "session__agent"]
    search_fields = ["name", "=sha256", "session__title"]
    list_select_related = ["session"]


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ["number", "at", "kind", "by", "subject", "digest"]
    list_filter = ["kind", "at"]
    search_fields = ["=subject", "by"]

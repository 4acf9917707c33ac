"""Sessions in the admin: what staff look through, filter and search. Facts are read-only."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Field
from django.forms import Select
from django.http import HttpRequest

from .models import Agent, Artifact, Event, ExecutionEnvironment, Session, Turn
from .runners import registry


class ReadOnly:
    """For rows that are moved by transitions only, or never: looked at, not edited."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Agent)
class AgentAdmin(admin.ModelAdmin):
    list_display = ["name", "runner", "enabled", "allow_confined", "created_at"]
    list_filter = ["runner", "enabled"]
    search_fields = ["name", "description"]
    filter_horizontal = ["members"]
    readonly_fields = ["created_at"]

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
class SessionAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ["title", "agent", "owner", "state", "last_turn", "last_seq", "last_activity_at"]
    list_filter = ["state", "agent"]
    search_fields = ["title", "=id", "owner__username"]
    list_select_related = ["agent", "owner"]
    date_hierarchy = "created_at"
    inlines = [TurnInline]


@admin.register(Turn)
class TurnAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ["session", "number", "state", "author", "attempt", "holder", "lease_until"]
    list_filter = ["state", "session__agent"]
    search_fields = ["=id", "session__title", "instruction"]
    list_select_related = ["session", "author"]


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

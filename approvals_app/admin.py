"""Approvals in the admin: read-only, since only `decide` may decide."""

from __future__ import annotations

from django.contrib import admin

from sessions_app.admin import ReadOnly

from .models import ApprovalRequest, Decision


class DecisionInline(ReadOnly, admin.TabularInline):
    model = Decision
    max_num = 0


@admin.register(ApprovalRequest)
class ApprovalRequestAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ["title", "state", "session", "resolved_by", "created_at", "resolved_at"]
    list_filter = ["state", "session__agent"]
    search_fields = ["title", "=id", "session__title"]
    list_select_related = ["session"]
    readonly_fields = ["created_at"]
    inlines = [DecisionInline]


@admin.register(Decision)
class DecisionAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ["entry_id", "request", "verdict", "by", "channel", "address", "created_at"]
    list_filter = ["verdict", "channel"]
    search_fields = ["request__title", "by__username"]
    list_select_related = ["request", "by"]
    readonly_fields = ["created_at"]

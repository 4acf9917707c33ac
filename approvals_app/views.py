"""The inbox across sessions, one request's page, and the decision."""

from __future__ import annotations

from collections import Counter

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_GET

from sessions_app.submission import written
from sessions_app.views.answers import posted, refused
from sessions_app.views.context import rail_context

from . import cards, decisions
from . import export as exports
from .inbox import ROWS, Inbox
from .models import ApprovalRequest


@require_GET
def inbox(request: HttpRequest) -> HttpResponse:
    """Pending for me, all pending, or decided; the same page is refreshed in place by htmx."""
    asked = Inbox(request.GET, request.user)
    page, decides_for = asked.page(), asked.decides_for()
    context = {
        **rail_context(request.user),  # type: ignore[arg-type]
        "view": asked.view,
        "views": asked.tabs(),
        "filters": asked.filters,
        "address": asked.query(),
        "page": page,
        "rows": [_row(found, found.session.agent_id in decides_for) for found in page],
    }
    template = "approvals/list.html" if request.htmx else "approvals/inbox.html"  # type: ignore[attr-defined]
    return render(request, template, context)


@require_GET
def export(request: HttpRequest, kind: str) -> HttpResponseBase:
    """Download the decisions that a person may see, as `jsonl` or `csv`."""
    filters = exports.Filters(request.GET)
    if not filters.is_valid():
        return refused(request, filters.problems(), status=400)
    user = request.user
    answer = StreamingHttpResponse(
        exports.lines(filters.found(user), kind=kind, with_address=user.is_staff),
        content_type=exports.FORMATS[kind][0],
    )
    answer["Content-Disposition"] = f'attachment; filename="decisions.{kind}"'
    return answer


def _row(found: ApprovalRequest, may_decide: bool) -> dict[str, object]:
    return {
        "card": cards.of_request(found),
        "request": found,
        "session": found.session,
        "turn": found.turn,
        "may_decide": found.is_pending and may_decide,
    }


@require_GET
def approval_page(request: HttpRequest, approval_id: str) -> HttpResponse:
    found = _visible(request, approval_id)
    row = _row(found, found.session.agent.may_decide(request.user))
    context = {**rail_context(request.user), **row}  # type: ignore[arg-type]
    return render(request, "approvals/page.html", context)


@posted(lambda approval_id: reverse("approval_page", args=[approval_id]))
def decision(request: HttpRequest, approval_id: str) -> HttpResponse:
    """Decide, and answer with the card as it is now."""
    found = _visible(request, approval_id)
    verdict = request.POST.get("verdict", "")
    if verdict not in ("approve", "reject"):
        return refused(request, "Choose Approve or Reject.", status=400)
    try:
        decisions.decide(
            found.pk,
            by=request.user,  # type: ignore[arg-type]
            verdict=verdict,  # type: ignore[arg-type]
            digest=request.POST.get("digest", ""),
            reason=written(request.POST.get("reason", "")).strip()[:2000],
            address=request.META.get("REMOTE_ADDR", ""),
        )
    except decisions.NotYours as error:
        return refused(request, str(error), status=403)
    except decisions.Conflict as error:
        return _card(request, found, error=str(error), status=409)
    if not request.htmx:  # type: ignore[attr-defined]
        return redirect(_back(request))
    return _card(request, found)


@posted(lambda: reverse("approvals"))
def bulk(request: HttpRequest) -> HttpResponse:
    """Decide the rows that were ticked, and say of each what became of it."""
    verdict = request.POST.get("verdict", "")
    if verdict not in ("approve", "reject"):
        return refused(request, "Choose Approve or Reject.", status=400)
    ticked = [each.partition(":")[::2] for each in request.POST.getlist("ticked")]
    if not ticked:
        return refused(request, "Tick the requests that you want to decide.", status=400)
    if len(ticked) > ROWS:
        return refused(request, f"Decide {ROWS} requests at a time, not more.", status=400)
    items = decisions.decide_many(
        ticked,
        by=request.user,  # type: ignore[arg-type]
        verdict=verdict,  # type: ignore[arg-type]
        reason=written(request.POST.get("reason", "")).strip()[:2000],
        address=request.META.get("REMOTE_ADDR", ""),
    )
    counts = Counter(item.outcome for item in items)
    context = {
        "items": items,
        "counts": [(name, counts[name]) for name in ("applied", "skipped", "conflicted")],
    }
    if not request.htmx:  # type: ignore[attr-defined]
        page = {**rail_context(request.user), **context}  # type: ignore[arg-type]
        return render(request, "approvals/bulk_page.html", page)
    answer = render(request, "approvals/bulk_result.html", context)
    answer["HX-Trigger-After-Settle"] = "lists-changed"
    return answer


def _card(
    request: HttpRequest, found: ApprovalRequest, *, error: str = "", status: int = 200
) -> HttpResponse:
    """The card as the request is now."""
    found.refresh_from_db(fields=["state", "resolved_at", "resolved_by", "reason", "used_at"])
    may_decide = found.is_pending and found.session.agent.may_decide(request.user)
    context = {**_row(found, may_decide), "error": error}
    if not request.htmx:  # type: ignore[attr-defined]
        page = {**rail_context(request.user), **context}  # type: ignore[arg-type]
        return render(request, "approvals/page.html", page, status=status)
    return render(request, "approvals/card.html", context, status=status)


def _back(request: HttpRequest) -> str:
    """Where a plain form came from, if that is here."""
    referer = request.headers.get("referer", "")
    ours = url_has_allowed_host_and_scheme(referer, {request.get_host()}, request.is_secure())
    return referer if ours else "/approvals/"


def _visible(request: HttpRequest, approval_id: str) -> ApprovalRequest:
    return get_object_or_404(
        ApprovalRequest.objects.visible_to(request.user).select_related(
            "session__agent", "turn__author"
        ),
        pk=approval_id,
    )

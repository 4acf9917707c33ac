"""Lineage: forking a session, delegating from one, and what is shown of its relations."""

from __future__ import annotations

from uuid import uuid4

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET

from .. import inherited
from ..delegation import delegate
from ..forking import fork
from ..models import NotAllowed, NotPossible, Session, Turn
from ..submission import written
from .answers import posted, refused, session_address
from .context import lineage_context
from .sessions import workspace_context


def _status(error: NotPossible) -> int:
    return 403 if isinstance(error, NotAllowed) else 409


@posted(lambda turn_id: reverse("home"))
def turn_fork(request: HttpRequest, turn_id: str) -> HttpResponse:
    """Open a session that goes on from a turn that has ended, and go to its page."""
    turns = Turn.objects.visible_to(request.user).select_related("session__agent")
    turn = get_object_or_404(turns, pk=turn_id)
    key = written(request.POST.get("submission", ""))[:64] or None
    try:
        made = fork(turn, by=request.user, idempotency_key=key)  # type: ignore[arg-type]
    except NotPossible as error:
        return refused(request, str(error), status=_status(error))
    if request.htmx:  # type: ignore[attr-defined]
        return HttpResponse(status=204, headers={"HX-Redirect": made.get_absolute_url()})
    return redirect(made)


@posted(session_address)
def delegation(request: HttpRequest, session_id: str) -> HttpResponse:
    """Give work to another agent in the name of the session's last turn."""
    session = _seen(request, session_id)
    wanted = {
        "agent": request.POST.get("agent", ""),
        "instruction": written(request.POST.get("delegated", "")),
    }
    turn = session.turns.order_by("-number").first()
    if turn is None:
        return _form(request, session, wanted, "Send a turn first: work is given by a turn.", 409)
    if reason := session.agent.why_not(request.user):
        return _form(request, session, wanted, reason, 403)
    key = written(request.POST.get("submission", "")) or uuid4().hex
    try:
        delegate(turn, **wanted, by=request.user, key=f"{request.user.pk}:{key}")  # type: ignore[arg-type]
    except NotPossible as error:
        return _form(request, session, wanted, str(error), _status(error))
    if not request.htmx:  # type: ignore[attr-defined]
        return redirect(session)
    return _form(request, session, {}, "", 200)


def _form(
    request: HttpRequest, session: Session, wanted: dict[str, str], error: str, status: int
) -> HttpResponse:
    """The form, with what was typed and what is wrong with it."""
    context = {"delegated": wanted, "delegation_error": error}
    if request.htmx:  # type: ignore[attr-defined]
        context |= lineage_context(session, request.user)  # type: ignore[arg-type]
        context["session"] = session  # type: ignore[assignment]
        return render(request, "sessions/delegate.html", context, status=status)
    page = {**workspace_context(request, session), **context}
    return render(request, "sessions/workspace.html", page, status=status)


@require_GET
def session_lineage(request: HttpRequest, session_id: str) -> HttpResponse:
    """Where a session comes from and what came of it, as this person may see it."""
    session = _seen(request, session_id)
    context = {"session": session, **lineage_context(session, request.user)}  # type: ignore[arg-type]
    return render(request, "sessions/lineage_list.html", context)


@require_GET
def inherited_rows(request: HttpRequest, session_id: str) -> HttpResponse:
    """The page of rows above a fork before `?before=`, for scrolling up."""
    session = _seen(request, session_id)
    before = request.GET.get("before", "")
    if not (before.isascii() and before.isdigit() and len(before) < 19):
        return refused(request, "`before` has to be a number. Reload the page.", status=400)
    context = inherited.page(session, request.user, int(before))
    if not (context["above"] and context["above"]["parent"]):
        raise Http404("There is nothing above this session that you may see.")
    return render(request, "sessions/inherited_rows.html", {"session": session, **context})


def _seen(request: HttpRequest, session_id: str) -> Session:
    visible = Session.objects.visible_to(request.user).select_related("agent", "owner")
    return get_object_or_404(visible, pk=session_id)

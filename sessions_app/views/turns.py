"""Turns: submitting one, stopping it, trying it again."""

from __future__ import annotations

from typing import get_args
from uuid import uuid4

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse

from .. import submission
from ..models import NotPossible, Session, Turn
from ..models.session import WhenBusy
from ..runners.base import Problem
from .answers import done, posted, refused, session_address
from .sessions import workspace_context


@posted(session_address)
def turn_submit(request: HttpRequest, session_id: str) -> HttpResponse:
    """Add a turn and answer with a fresh form; its row arrives on the stream."""
    session = get_object_or_404(
        Session.objects.visible_to(request.user).select_related("agent"), pk=session_id
    )
    instruction = submission.written(request.POST.get("instruction", ""))
    if reason := session.agent.why_not(request.user):
        return _composer(request, session, instruction, [Problem(1, reason)], status=403)
    when_busy = request.POST.get("when_busy") or "queue"
    if when_busy not in get_args(WhenBusy):
        problem = Problem(1, f"`when_busy` is one of {', '.join(get_args(WhenBusy))}.")
        return _composer(request, session, instruction, [problem], status=422)
    if problems := submission.problems(session.agent, instruction):
        return _composer(request, session, instruction, problems, status=422)
    try:
        session.submit(
            instruction,
            author=request.user,  # type: ignore[arg-type]
            idempotency_key=request.POST.get("submission", "")[:64] or None,
            when_busy=when_busy,  # type: ignore[arg-type]
        )
    except NotPossible as error:
        return _composer(request, session, instruction, [Problem(1, str(error))], status=409)
    if not request.htmx:  # type: ignore[attr-defined]
        return redirect("session_page", session.pk)
    return _composer(request, session)


def _composer(
    request: HttpRequest,
    session: Session,
    instruction: str = "",
    problems: list[Problem] | None = None,
    *,
    status: int = 200,
) -> HttpResponse:
    """The form, with what was typed and chosen and what is wrong with it."""
    context: dict[str, object] = {"instruction": instruction, "problems": problems or []}
    if problems:
        context["when_busy"] = request.POST.get("when_busy")
    if not request.htmx:  # type: ignore[attr-defined]
        page = {**workspace_context(request, session), **context}
        return render(request, "sessions/workspace.html", page, status=status)
    context |= {"session": session, "submission": uuid4().hex}
    return render(request, "sessions/composer_form.html", context, status=status)


@posted(lambda turn_id: reverse("home"))
def turn_retry(request: HttpRequest, turn_id: str) -> HttpResponse:
    """Submit a failed turn's instruction again, as a new turn."""
    turn = get_object_or_404(Turn.objects.visible_to(request.user), pk=turn_id)
    if reason := turn.session.agent.why_not(request.user):
        return refused(request, reason, status=403)
    try:
        turn.retry(by=request.user)  # type: ignore[arg-type]
    except NotPossible as error:
        return refused(request, str(error))
    return done(request, turn.session_id)


@posted(lambda turn_id: reverse("home"))
def turn_cancel(request: HttpRequest, turn_id: str) -> HttpResponse:
    """Stop a running or waiting turn, or withdraw a queued one."""
    turn = get_object_or_404(Turn.objects.visible_to(request.user), pk=turn_id)
    try:
        turn.cancel(by=request.user, reason=submission.written(request.POST.get("reason", "")))  # type: ignore[arg-type]
    except NotPossible as error:
        return refused(request, str(error))
    return done(request, turn.session_id)

"""The editor of a queued turn: its author changes what it will do, until it is started."""

from __future__ import annotations

from uuid import uuid4

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET

from .. import submission
from ..models import NotPossible, Turn
from ..models.states import TurnState
from ..runners.base import Problem
from .answers import posted, refused, session_address

NOT_YOURS = "Only who submitted a turn can edit it."


@require_GET
def turn_editor(request: HttpRequest, turn_id: str) -> HttpResponse:
    """Show a queued turn's instruction to its author, to be changed."""
    turn = get_object_or_404(Turn.objects.visible_to(request.user), pk=turn_id)
    if turn.author_id != request.user.pk:
        return refused(request, NOT_YOURS, status=403)
    if turn.state != TurnState.QUEUED:
        return refused(request, f"{turn} is {turn.get_state_display()} already.")
    return _editor(request, turn, turn.instruction)


@posted(lambda turn_id: reverse("home"))
def turn_edit(request: HttpRequest, turn_id: str) -> HttpResponse:
    """Change the instruction of one's own turn while it is queued.

    What comes too late is given back with the reason, and can be sent `as_new`.
    """
    turn = get_object_or_404(Turn.objects.visible_to(request.user), pk=turn_id)
    if turn.author_id != request.user.pk:
        return refused(request, NOT_YOURS, status=403)
    if reason := turn.session.agent.why_not(request.user):
        return refused(request, reason, status=403)
    instruction = submission.written(request.POST.get("instruction", ""))
    if problems := submission.problems(turn.session.agent, instruction):
        return _editor(request, turn, instruction, problems=problems, status=422)
    try:
        if "as_new" in request.POST:
            key = request.POST.get("submission", "")[:64] or None
            turn.session.submit(instruction, author=request.user, idempotency_key=key)  # type: ignore[arg-type]
        else:
            turn.edit(instruction, by=request.user)  # type: ignore[arg-type]
    except NotPossible as error:
        return _editor(request, turn, instruction, late=str(error), status=409)
    # The chips and the row come on the stream; an empty editor is a closed one.
    return HttpResponse() if request.htmx else redirect(session_address(turn.session_id))  # type: ignore[attr-defined]


def _editor(
    request: HttpRequest,
    turn: Turn,
    instruction: str,
    *,
    problems: list[Problem] | None = None,
    late: str = "",
    status: int = 200,
) -> HttpResponse:
    context = {
        "turn": turn,
        "instruction": instruction,
        "problems": problems or [],
        "late": late,
        "submission": uuid4().hex,
    }
    page = "turn_editor" if request.htmx else "turn_editor_page"  # type: ignore[attr-defined]
    return render(request, f"sessions/{page}.html", context, status=status)

"""The workspace: the first screen, a session's page, and the lists beside them."""

from __future__ import annotations

from uuid import uuid4

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET

from .. import inherited, submission, timeline
from ..models import Agent, NotPossible, Session
from ..runners.base import Problem
from ..runners.runbook.examples import examples
from .answers import posted, refused
from .context import lineage_context, rail_context, session_context, work_context


@require_GET
def home(request: HttpRequest) -> HttpResponse:
    """The first screen: examples to start with one click, and the composer."""
    return _home(request)


def _home(
    request: HttpRequest,
    *,
    instruction: str = "",
    agent_id: str = "",
    problems: list[Problem] | None = None,
    status: int = 200,
) -> HttpResponse:
    agents = list(Agent.objects.visible_to(request.user).enabled())
    context = {
        **rail_context(
            request.user,  # type: ignore[arg-type]
            query=request.GET.get("q", ""),
            archived="archived" in request.GET,
        ),
        "agents": agents,
        "agent_id": agent_id or (agents[0].pk if agents else ""),
        "runbook_agent": next((agent for agent in agents if agent.runner == "runbook"), None),
        "examples": examples(),
        "instruction": instruction,
        "problems": problems or [],
        "submission": uuid4().hex,
    }
    return render(request, "sessions/home.html", context, status=status)


@posted(lambda: reverse("home"))
def session_create(request: HttpRequest) -> HttpResponse:
    """Open a session with its first turn and go to its page."""
    agents = Agent.objects.visible_to(request.user).enabled()
    agent = agents.filter(pk=request.POST.get("agent", "")).first()
    instruction = submission.written(request.POST.get("instruction", ""))
    if example := request.POST.get("example"):
        instruction = next((e.source for e in examples() if e.slug == example), instruction)
    if agent is None:
        problem = Problem(1, "Choose an agent that you may use.")
        return _home(request, instruction=instruction, problems=[problem], status=422)
    if problems := submission.problems(agent, instruction):
        return _home(
            request, instruction=instruction, agent_id=agent.pk, problems=problems, status=422
        )
    try:
        session, _ = Session.objects.start(
            agent=agent,
            owner=request.user,  # type: ignore[arg-type]
            instruction=instruction,
            idempotency_key=request.POST.get("submission", "")[:64] or None,
        )
    except NotPossible as error:
        return _home(
            request,
            instruction=instruction,
            agent_id=agent.pk,
            problems=[Problem(1, str(error))],
            status=409,
        )
    return redirect("session_page", session.pk)


@require_GET
def session_page(request: HttpRequest, session_id: str) -> HttpResponse:
    session = get_object_or_404(
        Session.objects.visible_to(request.user).select_related("agent", "owner"), pk=session_id
    )
    return render(request, "sessions/workspace.html", workspace_context(request, session))


def workspace_context(request: HttpRequest, session: Session) -> dict[str, object]:
    """Everything on a session's page. The last seq on it is the cursor of its socket."""
    items, first, last = timeline.page_before(session)
    beside = session_context(session)
    open_turn = beside["open_turn"]
    return {
        **rail_context(request.user, current=session.pk),  # type: ignore[arg-type]
        **beside,
        **lineage_context(session, request.user),  # type: ignore[arg-type]
        **inherited.page(session, request.user),
        "items": items,
        "head": timeline.head_of(open_turn, first) if open_turn and first > 1 else None,
        "first_seq": first,
        "last_seq": last,
        "may_decide": session.agent.may_decide(request.user),
        "may_work": not session.agent.why_not(request.user),
        "submission": uuid4().hex,
    }


@require_GET
def holder(request: HttpRequest, session_id: str) -> HttpResponse:
    """Who holds the open turn and how old the last heartbeat is: leases are renewed silently."""
    session = get_object_or_404(Session.objects.visible_to(request.user), pk=session_id)
    context = {"session": session, **work_context(session)}
    return render(request, "sessions/holder.html", context)


@require_GET
def older_events(request: HttpRequest, session_id: str) -> HttpResponse:
    """The page of rows before `?before=`, for scrolling up."""
    session = get_object_or_404(Session.objects.visible_to(request.user), pk=session_id)
    before = request.GET.get("before", "")
    if not (before.isascii() and before.isdigit() and len(before) < 19):
        return refused(request, "`before` has to be a number. Reload the page.", status=400)
    items, first, _ = timeline.page_before(session, int(before))
    context = {"session": session, "items": items, "first_seq": first}
    return render(request, "sessions/events/page.html", context)


@require_GET
def raw_events(request: HttpRequest, session_id: str) -> HttpResponse:
    """The stream as it is stored, for those who want to see exactly that."""
    session = get_object_or_404(Session.objects.visible_to(request.user), pk=session_id)
    after = request.GET.get("after", "0")
    cursor = int(after) if after.isascii() and after.isdigit() and len(after) < 19 else 0
    events = list(session.events.after(cursor)[:200])
    return render(
        request,
        "sessions/raw.html",
        {
            **rail_context(request.user, current=session.pk),  # type: ignore[arg-type]
            "session": session,
            "events": events,
            "next": events[-1].seq if len(events) == 200 else None,
        },
    )


@require_GET
def rail(request: HttpRequest) -> HttpResponse:
    """The lists of sessions as they are now; a page asks for them when told of a change."""
    context = rail_context(
        request.user,  # type: ignore[arg-type]
        current=request.GET.get("current", ""),
        query=request.GET.get("q", ""),
    )
    answer = render(request, "sessions/rail_lists.html", context)
    answer["HX-Trigger-After-Settle"] = "lists-changed"
    return answer

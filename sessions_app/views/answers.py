"""How an action answers when it was refused: beside its cause, with a status that says so."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_POST

View = Callable[..., HttpResponse]


def posted(back: Callable[..., str]) -> Callable[[View], View]:
    """Let a view be posted to only; a browser that opens its address is sent to `back(…)`.

    A form that was refused leaves its address behind, to be reloaded or opened again.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            if request.method in ("GET", "HEAD"):
                return redirect(back(*args, **kwargs))
            return require_POST(view)(request, *args, **kwargs)

        return answer

    return decorate


def session_address(session_id: str) -> str:
    return reverse("session_page", args=[session_id])


def done(request: HttpRequest, session_id: str) -> HttpResponse:
    """Answer an action whose change everybody, the actor included, gets on the stream."""
    if request.htmx:  # type: ignore[attr-defined]
        return HttpResponse(status=204)
    return redirect(session_address(session_id))


def refused(request: HttpRequest, message: str, *, status: int = 409) -> HttpResponse:
    """Say why nothing was changed: in the page's notice for htmx, else on a page of its own."""
    context = {"message": message, "back": request.headers.get("referer", "/")}
    if request.htmx:  # type: ignore[attr-defined]
        answer = render(request, "notice.html", {**context, "oob": True}, status=status)
        answer["HX-Reswap"] = "none"
        return answer
    return render(request, "refused.html", context, status=status)

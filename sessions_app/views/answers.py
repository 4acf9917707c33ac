"""How an action answers when it was refused: beside its cause, with a status that says so."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render


def refused(request: HttpRequest, message: str, *, status: int = 409) -> HttpResponse:
    """Say why nothing was changed: in the page's notice for htmx, else on a page of its own."""
    context = {"message": message, "back": request.headers.get("referer", "/")}
    if request.htmx:  # type: ignore[attr-defined]
        answer = render(request, "notice.html", {**context, "oob": True}, status=status)
        answer["HX-Reswap"] = "none"
        return answer
    return render(request, "refused.html", context, status=status)

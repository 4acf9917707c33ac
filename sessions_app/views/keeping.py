"""Sessions: completing one, putting it away, and bringing it back."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404

from ..models import NotPossible, Session
from .answers import done, posted, refused, session_address


def _visible(request: HttpRequest, session_id: str) -> Session:
    return get_object_or_404(Session.objects.visible_to(request.user), pk=session_id)


@posted(session_address)
def session_completion(request: HttpRequest, session_id: str) -> HttpResponse:
    """Close the session as completed, and whatever is open in it. A new turn reopens it."""
    session = _visible(request, session_id)
    try:
        session.close(Session.State.COMPLETED, by=request.user)  # type: ignore[arg-type]
    except NotPossible as error:
        return refused(request, str(error))
    return done(request, session.pk)


@posted(session_address)
def session_archival(request: HttpRequest, session_id: str) -> HttpResponse:
    """Hide the session from active views."""
    session = _visible(request, session_id)
    try:
        session.archive(by=request.user)  # type: ignore[arg-type]
    except NotPossible as error:
        return refused(request, str(error))
    return done(request, session.pk)


@posted(session_address)
def session_restoration(request: HttpRequest, session_id: str) -> HttpResponse:
    """Bring an archived session back in the state it had."""
    session = _visible(request, session_id)
    try:
        session.unarchive(by=request.user)  # type: ignore[arg-type]
    except NotPossible as error:
        return refused(request, str(error))
    return done(request, session.pk)

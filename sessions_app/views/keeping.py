"""Sessions: completing or cancelling one, putting it away, and bringing it back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404

from .. import submission
from ..models import NotPossible, Session
from .answers import done, posted, refused, session_address

if TYPE_CHECKING:
    from django.contrib.auth.models import User


@posted(session_address)
def session_completion(request: HttpRequest, session_id: str) -> HttpResponse:
    """Close the session as completed, and whatever is open in it. A new turn reopens it."""
    return _close(request, session_id, Session.State.COMPLETED)


@posted(session_address)
def session_cancellation(request: HttpRequest, session_id: str) -> HttpResponse:
    """Close the session as cancelled, and whatever is open in it. A new turn reopens it."""
    return _close(request, session_id, Session.State.CANCELLED)


@posted(session_address)
def session_archival(request: HttpRequest, session_id: str) -> HttpResponse:
    """Hide the session from active views."""
    return _move(request, session_id, lambda session, by: session.archive(by=by))


@posted(session_address)
def session_restoration(request: HttpRequest, session_id: str) -> HttpResponse:
    """Bring an archived session back in the state it had."""
    return _move(request, session_id, lambda session, by: session.unarchive(by=by))


def _close(request: HttpRequest, session_id: str, state: str) -> HttpResponse:
    reason = submission.written(request.POST.get("reason", ""))
    return _move(
        request, session_id, lambda session, by: session.close(state, by=by, reason=reason)
    )


def _move(
    request: HttpRequest, session_id: str, verb: Callable[[Session, User], None]
) -> HttpResponse:
    session = get_object_or_404(Session.objects.visible_to(request.user), pk=session_id)
    try:
        verb(session, request.user)  # type: ignore[arg-type]
    except NotPossible as error:
        return refused(request, str(error))
    return done(request, session.pk)

"""Sessions: completing one, putting it away, and bringing it back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404

from ..models import NotPossible, Session
from .answers import done, posted, refused, session_address

if TYPE_CHECKING:
    from django.contrib.auth.models import User


@posted(session_address)
def session_completion(request: HttpRequest, session_id: str) -> HttpResponse:
    """Close the session as completed, and whatever is open in it. A new turn reopens it."""
    return _move(request, session_id, _complete)


@posted(session_address)
def session_archival(request: HttpRequest, session_id: str) -> HttpResponse:
    """Hide the session from active views."""
    return _move(request, session_id, lambda session, by: session.archive(by=by))


@posted(session_address)
def session_restoration(request: HttpRequest, session_id: str) -> HttpResponse:
    """Bring an archived session back in the state it had."""
    return _move(request, session_id, lambda session, by: session.unarchive(by=by))


def _complete(session: Session, by: User) -> None:
    session.close(Session.State.COMPLETED, by=by)


def _move(
    request: HttpRequest, session_id: str, verb: Callable[[Session, User], None]
) -> HttpResponse:
    session = get_object_or_404(Session.objects.visible_to(request.user), pk=session_id)
    try:
        verb(session, request.user)  # type: ignore[arg-type]
    except NotPossible as error:
        return refused(request, str(error))
    return done(request, session.pk)

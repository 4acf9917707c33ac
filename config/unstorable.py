"""Characters that PostgreSQL cannot hold are their sender's mistake, not the server's."""

from __future__ import annotations

from django.db import DataError
from django.http import HttpRequest, HttpResponse
from django.utils.deprecation import MiddlewareMixin

from sessions_app.views.answers import refused


class UnstorableMiddleware(MiddlewareMixin):
    """Answers 400 where an address or a field of a form holds NUL, or is beyond its column."""

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if not isinstance(error, DataError):
            return None
        return refused(
            request, "This holds characters that cannot be stored. Nothing was changed.", status=400
        )

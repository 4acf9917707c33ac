"""A page that is asked for while the database is away: try again, and one line in the log."""

from __future__ import annotations

import logging
import sys

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.defaults import server_error as failed

RETRY_SECONDS = 2


def server_error(request: HttpRequest) -> HttpResponse:
    """Answer 503 when the database is what failed, else Django's page for mistakes of ours."""
    from sessions_app.threads import AWAY

    if not isinstance(sys.exc_info()[1], AWAY):
        return failed(request)
    answer = render(None, "503.html", status=503)
    answer["Retry-After"] = str(RETRY_SECONDS)
    return answer


class InOneLine(logging.Filter):
    """Leaves out where it happened when the database was away: it was not the code."""

    def filter(self, record: logging.LogRecord) -> bool:
        from sessions_app.threads import AWAY, why

        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, AWAY):
            record.msg, record.args = f"{record.getMessage()}: {why(error)}", ()
            record.exc_info, record.levelno, record.levelname = None, logging.WARNING, "WARNING"
        return True

"""Log lines that say which session and turn they are about, for people or for programs."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime

_session: ContextVar[str] = ContextVar("session", default="")
_turn: ContextVar[str] = ContextVar("turn", default="")


@contextlib.contextmanager
def about(session_id: str, turn_id: str = "") -> Iterator[None]:
    """Say that what is logged in here, also by tasks and threads begun in here, is about these."""
    session, turn = _session.set(session_id), _turn.set(turn_id)
    try:
        yield
    finally:
        _session.reset(session)
        _turn.reset(turn)


class About(logging.Filter):
    """Write session and turn on every record, unless it says them itself (`extra=`)."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.session = getattr(record, "session", "") or _session.get()
        record.turn = getattr(record, "turn", "") or _turn.get()
        return True


class LineFormatter(logging.Formatter):
    """A line for people; session and turn in brackets where there are any."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        ids = " ".join(filter(None, (getattr(record, "session", ""), getattr(record, "turn", ""))))
        record.about = f" [{ids}]" if ids else ""
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """One JSON object per line, for programs."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        for name in ("session", "turn"):
            if value := getattr(record, name, ""):
                line[name] = value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return json.dumps(line, ensure_ascii=False, default=str)

"""Threads that are let go at the same moment, each with a database connection of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from django.db import connection, connections, transaction

from sessions_app.models import Session

PATIENCE = 60


def together(*doings: Callable[[], Any], backwards: bool = False) -> list[Any]:
    """Do all at once; return what each returned or raised, in the order given.

    `backwards` starts the threads in the other order, for races that are run many times.
    """
    start = threading.Barrier(len(doings))
    results: list[Any] = [None] * len(doings)

    def do(place: int, doing: Callable[[], Any]) -> None:
        try:
            start.wait(PATIENCE)
            results[place] = doing()
        except Exception as error:
            results[place] = error
        finally:
            connections.close_all()

    threads = [threading.Thread(target=do, args=pair, daemon=True) for pair in enumerate(doings)]
    for thread in reversed(threads) if backwards else threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "the threads block each other"
    return results


def elsewhere(doing: Callable[[], Any]) -> Any:
    """Do something on another connection, as another process would see it."""
    [result] = together(doing)
    if isinstance(result, Exception):
        raise result
    return result


def errors_in(results: Sequence[Any]) -> list[Exception]:
    return [result for result in results if isinstance(result, Exception)]


def until_somebody_waits() -> None:
    """Return when another connection waits for a lock that this thread's transaction holds."""
    waiting = """
        SELECT count(*) FROM pg_locks
         WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))
    """
    deadline = time.monotonic() + PATIENCE / 2
    while time.monotonic() < deadline:
        with connection.cursor() as cursor:
            cursor.execute(waiting)
            if cursor.fetchone()[0]:
                return
    raise AssertionError("nobody waits for a lock of this transaction")


def until_locked(session: Session) -> None:
    """Return when another connection holds the session's row."""
    deadline = time.monotonic() + PATIENCE / 2
    while time.monotonic() < deadline:
        with transaction.atomic():
            free = Session.objects.select_for_update(no_key=True, skip_locked=True)
            if not free.filter(pk=session.pk).exists():
                return
    raise AssertionError("nobody holds the session")

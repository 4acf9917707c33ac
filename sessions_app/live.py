"""The only sender to the channel layer.

What is sent here are hints ("look again") and drafts (text that is not a fact). Both may be lost:
everybody who waits, waits on a hint or a timer and then reads the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from channels.layers import get_channel_layer
from django.conf import settings
from django.db import transaction

logger = logging.getLogger(__name__)

RAIL = "rail"
WORKERS = "workers"

_home: asyncio.AbstractEventLoop | None = None
_sending: set[asyncio.Task[None]] = set()
_changed: set[str] = set()
_listed: set[str] = set()


def session_group(session_id: str) -> str:
    return f"session.{session_id}"


def attach(loop: asyncio.AbstractEventLoop) -> None:
    """Name the loop on which this process's sockets and workers live.

    The in-memory layer's queues belong to one loop; hints from threads have to be sent there.
    """
    global _home
    _home = loop


def session_changed(session_id: str, *, rail: bool = False) -> None:
    """Hint, after commit, that a session has new events; `rail` when its row in lists changed."""
    transaction.on_commit(lambda: _hint_session(session_id, rail), robust=True)


def cancel_requested() -> None:
    """Hint, after commit, that workers should look for requests to cancel."""
    look = partial(_group_send, WORKERS, {"type": "worker.look"})
    transaction.on_commit(lambda: _send(look), robust=True)


def work_waits(session_id: str) -> None:
    """Have the worker of this very process, if it is the only one, begin right after commit.

    The job that is stored with the work comes some milliseconds later, and to whoever has room.
    """
    if not settings.REDIS:
        begin = partial(_group_send, WORKERS, {"type": "worker.begin", "session": session_id})
        transaction.on_commit(lambda: _send(begin), robust=True)


def sign_in_key(session_key: str | None) -> str:
    """Name a sign-in without giving it away."""
    return hashlib.sha256((session_key or "").encode()).hexdigest()


def signed_out(session_key: str | None) -> None:
    """Have the sockets of a sign-in closed, in whichever process they are."""
    message = {"type": "person.left", "key": sign_in_key(session_key)}
    _send(partial(_group_send, RAIL, message))


async def hint_session(session_id: str, *, rail: bool = False) -> None:
    """Hint at once, from the event loop, after a commit on the async pool."""
    await _group_send(session_group(session_id), {"type": "session.changed"})
    if rail:
        await _group_send(RAIL, {"type": "rail.changed", "session": session_id})


async def draft(session_id: str, turn_id: str, ref: str, text: str) -> None:
    """Show text that is not yet a fact to whoever watches the session."""
    message = {"type": "session.draft", "item": f"{turn_id}:{ref}", "text": text}
    await _group_send(session_group(session_id), message)


def _hint_session(session_id: str, rail: bool) -> None:
    if rail:
        _listed.add(session_id)
    _changed.add(session_id)
    _send(_hint_changed)


async def _hint_changed() -> None:
    """Hint at what was committed until now: many commits make few hints when it is busy."""
    while _changed:
        session_id = _changed.pop()
        if rail := session_id in _listed:
            _listed.discard(session_id)
        await hint_session(session_id, rail=rail)


async def _group_send(group: str, message: dict[str, Any]) -> None:
    layer = get_channel_layer()
    try:
        await layer.group_send(group, message)
    except Exception as error:
        # Losing a hint costs latency, never an event: readers look for themselves by timer.
        logger.warning("A hint to %s was lost: %s", group, error)


def _send(send: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Start sending from any thread without waiting for it."""
    here = _running_loop()
    if _home is None or _home.is_closed():
        # No socket lives in this process. A shared layer still has to hear of it.
        if here is None:
            asyncio.run(send())
        else:
            _start(send)
        return
    if here is _home:
        _start(send)
    else:
        # The coroutine is made over there: a loop that closes meanwhile leaves none behind.
        with contextlib.suppress(RuntimeError):
            _home.call_soon_threadsafe(_start, send)


def _start(send: Callable[[], Coroutine[Any, Any, None]]) -> None:
    task = asyncio.get_running_loop().create_task(send())
    _sending.add(task)
    task.add_done_callback(_sending.discard)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None

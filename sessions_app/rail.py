"""Who tells people's pages that their lists have changed: one feed for all of them per process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import datetime
from typing import Any

from channels.layers import get_channel_layer
from django.conf import settings
from django.template.loader import render_to_string

from . import live
from .models import Session
from .readers import NOT_YOURS, Reader, stop, supervise
from .threads import AWAY, in_thread, pool

BREATH = 0.3
REMEMBERED = 50
# By how much the clocks of two machines may differ, in seconds.
APART = 1

LISTED = """
SELECT id, listed_at FROM sessions_app_session
 WHERE listed_at > clock_timestamp() - interval '1 minute'
"""


class RailFeed:
    """Tells people's pages that a row in their lists has changed; the page then fetches its own.

    It waits on a hint or a timer and then asks the database what has changed. A change is looked
    for a while after it was made, since it may be committed later than a newer one.
    """

    def __init__(self) -> None:
        self.readers: set[Reader] = set()
        self.wake = asyncio.Event()
        self._told: dict[str, datetime] = {}
        self._owed: set[Reader] = set()
        self._new: dict[Reader, int] = {}
        """Who came since the last look, and when their pages were made."""

    def join(self, reader: Reader, rendered_at: int | None) -> None:
        self.readers.add(reader)
        if rendered_at is not None:
            self._new[reader] = rendered_at
            self.wake.set()

    async def run(self) -> None:
        """Serve until the last reader has left. A feed that ends is never joined again."""
        try:
            await self._run()
        finally:
            self._retire()

    def _retire(self) -> None:
        global _feed
        if _feed is self:
            _feed = None

    async def _run(self) -> None:
        layer = get_channel_layer()
        channel = await layer.new_channel()
        await layer.group_add(live.RAIL, channel)
        listening = asyncio.create_task(self._listen(layer, channel))
        try:
            with contextlib.suppress(*AWAY):
                # Not known, everything of late counts as changed.
                self._told = dict(await self._changes())
            while self.readers:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(settings.SIGNALBOX["POLL_SECONDS"]):
                        await self.wake.wait()
                    # Changes come in groups; one look answers for all of them.
                    await asyncio.sleep(BREATH)
                if listening.done():
                    listening.result()
                self.wake.clear()
                with contextlib.suppress(*AWAY):
                    # Without a database, the next look finds what this one did not.
                    await self._look()
        finally:
            self._retire()
            stop(listening)
            await layer.group_discard(live.RAIL, channel)

    async def _listen(self, layer: Any, channel: str) -> None:
        while True:
            message = await layer.receive(channel)
            if message["type"] == "person.left":
                gone = [reader for reader in self.readers if reader.key == message["key"]]
                await asyncio.gather(
                    *(reader.close(NOT_YOURS) for reader in gone), return_exceptions=True
                )
            else:
                self.wake.set()

    async def _changes(self) -> list[tuple[str, datetime]]:
        async with (await pool()).connection() as conn:
            return list(await (await conn.execute(LISTED)).fetchall())

    async def _look(self) -> None:
        changes = dict(await self._changes())
        await self._look_for_new(changes)
        fresh = [session for session, at in changes.items() if self._told.get(session) != at]
        if fresh:
            users = {reader.user_id for reader in self.readers}
            concerned = await in_thread(Session.objects.viewers_among, fresh, users)
            self._owed |= {reader for reader in self.readers if reader.user_id in concerned}
        self._told = changes
        # Who has no room now is told at a later look.
        self._owed &= self.readers
        if told := {reader for reader in self._owed if reader.has_room}:
            self._owed -= told
            signal = render_to_string("sessions/rail_signal.html")
            for reader in told:
                await reader.send(signal)

    async def _look_for_new(self, changes: dict[str, datetime]) -> None:
        """See who comes with lists that have changed between their page and their socket."""
        new, self._new = self._new, {}
        oldest = time.time() - REMEMBERED
        known = {reader: at for reader, at in new.items() if at > oldest}
        # What was changed before that is not known any more.
        self._owed |= new.keys() - known.keys()
        since = min(known.values(), default=0) - APART
        fresh = [session for session, at in changes.items() if at.timestamp() > since]
        if known and fresh:
            users = {reader.user_id for reader in known}
            concerned = await in_thread(Session.objects.viewers_among, fresh, users)
            self._owed |= {reader for reader in known if reader.user_id in concerned}


_feed: RailFeed | None = None


def join(reader: Reader, rendered_at: int | None = None) -> RailFeed:
    """Let a socket hear of changed lists, starting the feed if it is the first.

    `rendered_at` says when its page was made, in seconds since 1970: what has changed since then
    is told to it too.
    """
    global _feed
    if _feed is None:
        _feed = RailFeed()
        _feed.join(reader, rendered_at)
        supervise(_feed.run(), _feed.readers)
    else:
        _feed.join(reader, rendered_at)
    return _feed


def readers() -> set[Reader]:
    """Every socket that hears of changed lists."""
    return set(_feed.readers) if _feed is not None else set()

"""Who reads and renders for the sockets: one feed per session and process.

A feed owns the reading and the rendering and hands the same bytes to every socket whose user may
see the session. It joins the session's group before it first reads; hints make it look at once,
and one poll for all feeds of the process finds what lost hints would have told.
"""

from __future__ import annotations

import asyncio
import logging
import time

from channels.layers import get_channel_layer
from django.conf import settings
from django.template.loader import render_to_string

from . import live, metrics, rail, reading, timeline
from .models import Session
from .readers import NOT_YOURS, Reader, stop, supervise
from .threads import AWAY, in_thread, pool, why

logger = logging.getLogger(__name__)

BREATH = 0.01
AT_ONCE = 4
REGIONS_BREATH = 0.05
MUCH = 48 * 1024
AT_A_TIME = 0.003
AWAY_SECONDS = 0.5
LAST_SEQS = "SELECT id, last_seq FROM sessions_app_session WHERE id = ANY(%(sessions)s)"


class Feed:
    """Reads one session's events after its readers' cursors and sends them on."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.readers: set[Reader] = set()
        self.wake = asyncio.Event()
        self._asked = time.monotonic()
        self._next = 0.0
        self._owed: set[Reader] = set()
        """Who was sent events that change what stands beside the timeline, and not that yet."""
        self._showing: asyncio.Task[None] | None = None

    def join(self, reader: Reader) -> None:
        """Add a socket whose user was just seen to be allowed."""
        self.readers.add(reader)
        self.wake.set()

    def leave(self, reader: Reader) -> None:
        self.readers.discard(reader)
        self.wake.set()

    async def run(self) -> None:
        """Serve until the last reader has left. A feed that ends is never joined again."""
        try:
            await self._run()
        finally:
            self._retire()

    def _retire(self) -> None:
        if _feeds.get(self.session_id) is self:
            del _feeds[self.session_id]

    async def _run(self) -> None:
        layer = get_channel_layer()
        channel = await layer.new_channel()
        group = live.session_group(self.session_id)
        # Joined before the first read: what is recorded after the read is hinted to us.
        await layer.group_add(group, channel)
        listening = asyncio.create_task(self._listen(layer, channel))
        listening.add_done_callback(lambda _: self.wake.set())
        try:
            while self.readers:
                if listening.done():
                    listening.result()
                self.wake.clear()
                full = await self._serve_again()
                self._show_regions()
                await asyncio.sleep(0 if full else max(0.0, self._next - time.monotonic()))
                if not full and self.readers:
                    await self.wake.wait()
        finally:
            # Before anything is awaited: whoever comes now starts a feed of their own.
            self._retire()
            stop(listening)
            if self._showing is not None:
                self._showing.cancel()
            await layer.group_discard(group, channel)

    async def _listen(self, layer: object, channel: str) -> None:
        while True:
            message = await layer.receive(channel)  # type: ignore[attr-defined]
            if message["type"] == "session.draft":
                await self._send_draft(message["item"], message["text"])
            else:
                metrics.hinted(self)
                self.wake.set()

    async def _serve_again(self) -> bool:
        """Serve; without a database keep the readers, and say that there is more to serve."""
        try:
            return await self._serve()
        except AWAY as error:
            logger.debug("%s is served when the database is back: %s", self.session_id, why(error))
            await asyncio.sleep(AWAY_SECONDS)
            return True

    async def _send_draft(self, item: str, text: str) -> None:
        # A draft brings no event with it; whether people may still see it is asked now and then.
        if time.monotonic() > self._asked + settings.SIGNALBOX["POLL_SECONDS"]:
            try:
                await self._refuse_strangers(list(self.readers))
            except AWAY:
                return
        # Who has no room misses a draft, as one may: a newer one or the fact comes after it.
        if open := [reader for reader in self.readers if reader.has_room]:
            fragment = render_to_string("sessions/draft.html", {"item": item, "text": text})
            for reader in open:
                await reader.send(fragment)

    async def _serve(self) -> bool:
        """Send one frame to everybody who is behind and has room; say whether there is more.

        Who has no room costs nothing here. It keeps its cursor and is served from there once it has
        drawn what it was sent.
        """
        more = False
        for cursor in sorted({reader.cursor for reader in self.readers if reader.has_room}):
            behind = [r for r in self.readers if r.cursor == cursor and r.has_room]
            page = await self._read(cursor)
            if page is None:
                continue
            await self._refuse(behind, page.viewers)
            frame = await self._render(cursor, page)
            for reader in behind:
                if reader in self.readers:
                    await reader.send(frame.text, frame.last)
            metrics.frame_sent(self, page.events)
            if frame.regional:
                self._owed.update(behind)
            # On average one frame per breath under load. After a rest a few go at once: an answer
            # does not wait because its question was just shown.
            self._next = max(self._next, time.monotonic() - AT_ONCE * BREATH) + BREATH
            more = more or (frame.full and any(reader.has_room for reader in behind))
        return more

    def _show_regions(self) -> None:
        """See to it that what stands beside the timeline is shown; events do not wait for it."""
        self._owed &= self.readers
        if self._showing is not None and self._showing.done():
            self._showing.result()
            self._showing = None
        if self._owed and self._showing is None:
            self._showing = asyncio.create_task(self._send_regions())
            self._showing.add_done_callback(self._shown)

    def _shown(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception():
            self.wake.set()

    async def _send_regions(self) -> None:
        while any(reader.has_room for reader in self._owed):
            # What follows at once is shown together, and the first of it is not held up.
            await asyncio.sleep(REGIONS_BREATH)
            owed = {reader for reader in self._owed if reader.has_room}
            # Taken off before it is rendered: who is owed anew meanwhile gets it anew.
            self._owed -= owed
            users = {reader.user_id for reader in owed}
            try:
                text, seeing = await in_thread(render_regions, self.session_id, users)
            except AWAY:
                self._owed |= owed & self.readers
                await asyncio.sleep(AWAY_SECONDS)
                continue
            for reader in owed & self.readers:
                if reader.user_id in seeing:
                    await reader.send(text)

    async def _render(self, cursor: int, page: reading.Page) -> timeline.Frame:
        """Draw a page of events: a little at a time here, or in a thread if there is much text.

        A thread beside the loop holds it up at every step that it takes; but Markdown and
        highlighting of one long text may take longer than anybody should wait.
        """
        given = cursor, page.events, page.parts, page.ahead
        if page.size > MUCH:
            return await asyncio.to_thread(timeline.frame, *given)
        steps, since = timeline.drawing(*given), time.monotonic()
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value
            if time.monotonic() > since + AT_A_TIME:
                await asyncio.sleep(0)
                since = time.monotonic()

    async def _read(self, cursor: int) -> reading.Page | None:
        users = {reader.user_id for reader in self.readers}
        page = await reading.read(self.session_id, cursor, users)
        self._asked = time.monotonic()
        return page

    async def _refuse_strangers(self, readers: list[Reader]) -> None:
        """Ask whether people may still see the session when nothing was read that says so."""
        users = {reader.user_id for reader in readers}
        seeing = await in_thread(Session.objects.viewers_among, [self.session_id], users)
        self._asked = time.monotonic()
        await self._refuse(readers, seeing)

    async def _refuse(self, readers: list[Reader], seeing: set[int]) -> None:
        """Close the sockets of those who may not see the session any more."""
        for reader in readers:
            if reader.user_id not in seeing:
                self.readers.discard(reader)
                await reader.close(NOT_YOURS)


def render_regions(session_id: str, users: set[int]) -> tuple[str, set[int]]:
    """Render what stands beside the timeline, the same for every reader; say who may see it."""
    from .views.context import session_context

    seeing = Session.objects.viewers_among([session_id], users)
    session = Session.objects.select_related("agent", "owner").filter(pk=session_id).first()
    if session is None or not seeing:
        return "", set()
    context = {**session_context(session), "oob": True}
    return render_to_string("sessions/regions.html", context), seeing


_feeds: dict[str, Feed] = {}


def join(session_id: str, reader: Reader) -> Feed:
    """Let a socket read a session's feed, starting the feed if this is its first reader."""
    feed = _feeds.get(session_id)
    if feed is None:
        feed = _feeds[session_id] = Feed(session_id)
        feed.join(reader)
        supervise(feed.run(), feed.readers)
        _ensure_poll()
    else:
        feed.join(reader)
    return feed


_polling: asyncio.Task[None] | None = None


def _ensure_poll() -> None:
    global _polling
    loop = asyncio.get_running_loop()
    if _polling is None or _polling.done() or _polling.get_loop() is not loop:
        _polling = loop.create_task(_poll())


async def _poll() -> None:
    """Wake the feeds whose session has gone on without a hint. Ends when there is no feed."""
    while _feeds:
        await asyncio.sleep(settings.SIGNALBOX["POLL_SECONDS"])
        try:
            async with (await pool()).connection() as conn:
                cursor = await conn.execute(LAST_SEQS, {"sessions": list(_feeds)})
                rows = await cursor.fetchall()
        except Exception as error:
            logger.warning("Looking for news failed, trying again: %s", why(error))
            continue
        for session_id, last_seq in rows:
            feed = _feeds.get(session_id)
            if feed and any(r.has_room and r.cursor < last_seq for r in feed.readers):
                metrics.found_by_timer(feed)
                feed.wake.set()


async def close_all(code: int) -> None:
    """Close every socket of this process, telling it with the code whether to come back."""
    readers = {reader for feed in _feeds.values() for reader in feed.readers} | rail.readers()
    await asyncio.gather(*(reader.close(code) for reader in readers), return_exceptions=True)

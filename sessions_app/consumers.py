"""The sockets: who may connect, from which number on, and nothing else. Feeds do the rest."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from channels.generic.websocket import AsyncWebsocketConsumer
from django.contrib.auth.models import AnonymousUser, User

from . import feeds, live, metrics, rail
from .models import Session
from .readers import NOT_YOURS, OUT_OF_STEP, Drawn, OutOfStep, Reader
from .threads import in_thread


class RailConsumer(AsyncWebsocketConsumer):
    """Tells a page that its lists have changed."""

    reader: Reader | None = None
    rail_feed: rail.RailFeed | None = None

    async def connect(self) -> None:
        # Accepted first: a refused handshake looks like a lost connection, and the page would
        # come back for ever.
        await self.accept()
        user = self.scope["user"]
        if not user.is_authenticated:
            await self.close(NOT_YOURS)
            return
        await self.admit(user)

    async def admit(self, user: User) -> None:
        self.join_rail(user, cursor=0)

    def join_rail(self, user: User, *, cursor: int) -> Reader:
        key = live.sign_in_key(self.scope["session"].session_key)
        self.reader = Reader(user.pk, cursor, self.send_text, self.close, key)
        self.rail_feed = rail.join(self.reader, _rendered_at(self.scope))
        metrics.SOCKETS.inc()
        return self.reader

    async def send_text(self, text: str) -> None:
        await self.send(text_data=text)

    async def dispatch(self, message: dict[str, Any]) -> None:
        # Channels looks after database connections before each message, in a thread that all
        # sockets share. What a page says about drawing needs none.
        if message["type"] == "websocket.receive":
            await self.websocket_receive(message)
        else:
            await super().dispatch(message)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Hear how far the page has drawn."""
        if self.reader is None:
            return
        try:
            if self.reader.acknowledge(Drawn.parse(text_data)):
                self.go_on()
        except OutOfStep as error:
            await self.reader.close(OUT_OF_STEP, f"{error} Reload the page.")

    def go_on(self) -> None:
        """Have sent what was held back. Lists are looked after by timer."""

    async def disconnect(self, code: int) -> None:
        if self.rail_feed and self.reader:
            self.reader.forget()
            self.rail_feed.readers.discard(self.reader)
            metrics.SOCKETS.dec()


class SessionConsumer(RailConsumer):
    """Streams one session from the cursor that the page hands over."""

    feed: feeds.Feed | None = None

    async def admit(self, user: User) -> None:
        session_id = self.scope["url_route"]["kwargs"]["session_id"]
        last_seq = await in_thread(_last_seq, session_id, user)
        if last_seq is None:
            await self.close(NOT_YOURS)
            return
        cursor = _cursor(self.scope)
        if cursor is None or cursor > last_seq:
            await self.close(OUT_OF_STEP, reason=_explain(cursor, last_seq))
            return
        reader = self.join_rail(user, cursor=cursor)
        self.feed = feeds.join(session_id, reader)

    def go_on(self) -> None:
        if self.feed:
            self.feed.wake.set()

    async def disconnect(self, code: int) -> None:
        await super().disconnect(code)
        if self.feed and self.reader:
            self.feed.leave(self.reader)


def _last_seq(session_id: str, user: User | AnonymousUser) -> int | None:
    """Return the session's last seq, or None when this user may not see it."""
    visible = Session.objects.visible_to(user).filter(pk=session_id)
    return visible.values_list("last_seq", flat=True).first()


def _cursor(scope: dict[str, Any]) -> int | None:
    """Return `after` from the address, None when it is not a number from 0 on."""
    given = parse_qs(scope["query_string"].decode(errors="replace")).get("after", ["0"])[0]
    return int(given) if given.isascii() and given.isdigit() and len(given) < 19 else None


def _rendered_at(scope: dict[str, Any]) -> int | None:
    """Return `at` from the address: when the page was made, in seconds since 1970."""
    given = parse_qs(scope["query_string"].decode(errors="replace")).get("at", [""])[0]
    return int(given) if given.isascii() and given.isdigit() and len(given) < 12 else None


def _explain(cursor: int | None, last_seq: int) -> str:
    if cursor is None:
        return "The cursor `after` has to be a whole number from 0 on. Reload the page."
    return f"The cursor is ahead of the session, which ends at {last_seq}. Reload the page."

"""Who reads a feed: one socket each, what it was sent and has not drawn yet, and how it is closed.

A server's `send` may never wait, so what a page does not read would be held in memory without end.
Pages therefore say how far they have drawn, and nothing more is sent to one that is too far behind.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from django.conf import settings

logger = logging.getLogger(__name__)

COME_BACK = 1011
COME_BACK_LATER = 1013
# Codes from 4000 on mean: do not come back by yourself.
OUT_OF_STEP = 4400
NOT_YOURS = 4403

UNACKNOWLEDGED = 256 * 1024
LONGEST_MESSAGE = 1024
IDLE_MESSAGES = 100


class OutOfStep(Exception):
    """A page said what cannot be; the message says what."""


class Drawn(NamedTuple):
    """What a page says it has drawn: up to which seq, and how many frames without a number."""

    seq: int
    others: int

    @classmethod
    def parse(cls, text: str | None) -> Drawn:
        """Read a message of a page. Raises OutOfStep when it is anything else."""
        if text is None or len(text) > LONGEST_MESSAGE:
            raise OutOfStep("A message is a short JSON object.")
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            raise OutOfStep("A message is a JSON object.") from None
        if not isinstance(said, dict) or not {"drawn", "others"} & said.keys():
            raise OutOfStep("A message says what was `drawn`.")
        return cls(_count(said.get("drawn", 0)), _count(said.get("others", 0)))


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise OutOfStep("`drawn` and `others` are whole numbers from 0 on.")
    return value


class Sent(NamedTuple):
    """A frame that was sent: the numbers a page has once it has drawn it."""

    seq: int
    others: int
    numbered: bool
    size: int

    def is_in(self, drawn: Drawn) -> bool:
        if self.numbered:
            return self.seq <= drawn.seq
        # Frames come in order: who has a later numbered one has this one.
        return self.others <= drawn.others or self.seq < drawn.seq


@dataclass(eq=False)
class Reader:
    """One socket: whose it is, the last seq it was sent, and how to reach it."""

    user_id: int
    cursor: int
    write: Callable[[str], Awaitable[None]]
    hang_up: Callable[[int, str], Awaitable[None]]
    key: str = ""
    """Names the sign-in that opened it, so that signing out closes it."""
    unacknowledged: int = 0
    """Bytes that were sent and are not known to be drawn."""

    _sent: deque[Sent] = field(default_factory=deque)
    _others: int = 0
    _idle: int = 0
    _closed: bool = False
    _patience: asyncio.TimerHandle | None = None

    @property
    def has_room(self) -> bool:
        """Whether it may be sent more. Who is too far behind is left alone until it has drawn."""
        return not self._closed and self.unacknowledged <= UNACKNOWLEDGED

    async def send(self, text: str, seq: int | None = None) -> None:
        """Send a frame that ends at `seq`, or one without a number.

        If the page has just gone, its disconnect is on its way to us.
        """
        if self._closed:
            return
        if seq is None:
            self._others += 1
        else:
            self.cursor = seq
        size = len(text) if text.isascii() else len(text.encode())
        self._sent.append(Sent(self.cursor, self._others, seq is not None, size))
        self.unacknowledged += size
        if not self.has_room and self._patience is None:
            self._wait()
        try:
            await self.write(text)
        except Exception as error:
            logger.debug("A page left while it was written to: %s", error)

    def acknowledge(self, drawn: Drawn) -> bool:
        """Take note of what was drawn; say whether there is room again where there was none.

        Raises OutOfStep for what was never sent, and when a page goes on saying nothing new.
        """
        if drawn.seq > self.cursor or drawn.others > self._others:
            raise OutOfStep("More was drawn than was sent.")
        had_room, before = self.has_room, len(self._sent)
        while self._sent and self._sent[0].is_in(drawn):
            self.unacknowledged -= self._sent.popleft().size
        self._idle = 0 if len(self._sent) < before else self._idle + 1
        if self._idle > IDLE_MESSAGES:
            raise OutOfStep("Too many messages that say nothing new.")
        if self._patience and not self._idle:
            self.forget()
            if not self.has_room:
                self._wait()
        return self.has_room and not had_room

    def forget(self) -> None:
        """Stop waiting for the page to draw."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _wait(self) -> None:
        seconds = settings.SIGNALBOX["STALLED_SECONDS"]
        self._patience = asyncio.get_running_loop().call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        start(self.close(COME_BACK_LATER))

    async def close(self, code: int, reason: str = "") -> None:
        """Close the socket with a code, unless the page has just gone. It is sent nothing more."""
        self._closed = True
        self.forget()
        try:
            await self.hang_up(code, reason)
        except Exception as error:
            logger.debug("A page left while it was closed: %s", error)


tasks: set[asyncio.Task[None]] = set()


def start(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run something beside what calls it, and keep hold of it while it runs."""
    task = asyncio.get_running_loop().create_task(coroutine)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def stop(task: asyncio.Task[None]) -> None:
    """Cancel a task that receives from the channel layer, once.

    It then unsubscribes, and cut off in that by a second time it would be told as a failure. At the
    end of a process everything is cancelled at once, the task and whoever stops it.
    """
    if not task.cancelling():
        task.cancel()


def supervise(running: Awaitable[None], readers: set[Reader]) -> None:
    """Run a feed. When it fails, its sockets are told to come back."""

    async def supervised() -> None:
        try:
            await running
        except Exception:
            logger.exception("A feed failed; its %s sockets have to come back.", len(readers))
            for reader in list(readers):
                await reader.close(COME_BACK)

    start(supervised())

"""Who reads a feed: one socket each, how it is reached, and with which codes it is closed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

COME_BACK = 1011
# Codes from 4000 on mean: do not come back by yourself.
OUT_OF_STEP = 4400
NOT_YOURS = 4403


@dataclass(eq=False)
class Reader:
    """One socket: whose it is, the last seq it was sent, and how to reach it."""

    user_id: int
    cursor: int
    write: Callable[[str], Awaitable[None]]
    hang_up: Callable[[int], Awaitable[None]]
    key: str = ""
    """Names the sign-in that opened it, so that signing out closes it."""

    async def send(self, text: str) -> None:
        """Send, unless the page has just gone: then its disconnect is on its way to us."""
        try:
            await self.write(text)
        except Exception as error:
            logger.debug("A page left while it was written to: %s", error)

    async def close(self, code: int) -> None:
        """Close the socket with a code, unless the page has just gone."""
        try:
            await self.hang_up(code)
        except Exception as error:
            logger.debug("A page left while it was closed: %s", error)


tasks: set[asyncio.Task[None]] = set()


def supervise(running: Awaitable[None], readers: set[Reader]) -> None:
    """Run a feed. When it fails, its sockets are told to come back."""

    async def supervised() -> None:
        try:
            await running
        except Exception:
            logger.exception("A feed failed; its %s sockets have to come back.", len(readers))
            for reader in list(readers):
                await reader.close(COME_BACK)

    task = asyncio.get_running_loop().create_task(supervised())
    tasks.add(task)
    task.add_done_callback(tasks.discard)

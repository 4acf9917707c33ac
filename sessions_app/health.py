"""Whether what a process needs is there: the database, the channel layer, somebody who works."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

import psycopg
from channels.layers import get_channel_layer

from .threads import connection_parameters

PATIENCE = 2.0
KEPT = 1.0
WORKER_BEATS = 5.0
WORKER_SILENT = 15.0

WORKERS = """
SELECT count(*) FILTER (WHERE last_heartbeat > now() - make_interval(secs => %(silent)s)),
       extract(epoch FROM now() - max(last_heartbeat))::float
  FROM procrastinate_workers
"""

Part = dict[str, Any]


class Report:
    """What was found at one look, kept for a second: asking often asks nobody more often."""

    def __init__(self) -> None:
        self.asking = asyncio.ensure_future(self._ask())
        self.loop = asyncio.get_running_loop()
        self.made = time.monotonic()

    @property
    def is_fresh(self) -> bool:
        if self.loop is not asyncio.get_running_loop():
            return False
        return not self.asking.done() or time.monotonic() < self.made + KEPT

    async def parts(self) -> dict[str, Part]:
        return await asyncio.shield(self.asking)

    async def _ask(self) -> dict[str, Part]:
        (database, worker), layer = await asyncio.gather(_database_and_worker(), _layer())
        return {"database": database, "layer": layer, "worker": worker}


_report: Report | None = None


async def report() -> dict[str, Part]:
    """Name each part, whether it is well and what is wrong with it; shows no addresses."""
    global _report
    if _report is None or not _report.is_fresh:
        _report = Report()
    return await _report.parts()


async def _database_and_worker() -> tuple[Part, Part]:
    # By a connection of its own: waiting for one of a pool would say little, and take long.
    found = await _asked(_heartbeats())
    if isinstance(found, Exception):
        unknown = "not known while the database does not answer"
        return _wrong(found), {"ok": False, "error": unknown}
    living, age = found
    worker: Part = {"ok": living > 0, "count": living}
    if age is not None:
        worker["last_heartbeat_seconds"] = round(age, 1)
    if not living:
        worker["error"] = f"no worker was heard of in the last {WORKER_SILENT:.0f} seconds"
    return {"ok": True}, worker


async def _heartbeats() -> tuple[int, float | None]:
    async with await psycopg.AsyncConnection.connect(
        **connection_parameters(), autocommit=True
    ) as opened:
        row = await (await opened.execute(WORKERS, {"silent": WORKER_SILENT})).fetchone()
    assert row is not None
    return row[0], row[1]


async def _layer() -> Part:
    ping = getattr(get_channel_layer(), "ping", None)
    if ping is None:
        return {"ok": True, "kind": "memory"}
    found = await _asked(ping())
    part = _wrong(found) if isinstance(found, Exception) else {"ok": True}
    return {**part, "kind": "redis"}


async def _asked(question: Awaitable[Any]) -> Any:
    """Return the answer, or what kept it from coming in time."""
    try:
        async with asyncio.timeout(PATIENCE):
            return await question
    except Exception as error:
        return error


def _wrong(error: Exception) -> Part:
    # The kind alone: messages name hosts, users and databases.
    return {"ok": False, "error": f"does not answer ({type(error).__name__})"}

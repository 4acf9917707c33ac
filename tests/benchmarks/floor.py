"""The floor: what the way of an event costs with nothing on it. No Django, no rendering.

A process that does, per session, what the product's design says and no more: a writer appends with
the product's own SQL statement on an async pool of psycopg and then wakes a sender; the sender
reads what is new with a plain statement, and sends the rows as JSON through the `websockets`
library to everybody who watches. Flat out, a writer appends ten events at a time, one append after
the other. There is no fence, no check of who may see what, no polling, no acknowledgement, and the
senders do not pause.

It is told by lines of JSON on its standard input and answers on its standard output.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from psycopg_pool import AsyncConnectionPool
from websockets.asyncio.server import ServerConnection, serve

from . import load

FLAT_OUT = 10
PAGE = """
SELECT seq, type, data FROM sessions_app_event
 WHERE session_id = %(session)s AND seq > %(after)s ORDER BY seq LIMIT 100
"""


class Session:
    """One session's writer and sender."""

    def __init__(self, floor: Floor, id: str) -> None:
        self.floor, self.id = floor, id
        self.viewers: set[ServerConnection] = set()
        self.wake = asyncio.Event()
        self.cursor = 0

    async def write(self, spec: load.Spec) -> None:
        batch: list[tuple[str, dict[str, Any]]] = []
        async for event in load.emitted(spec):
            batch.append(event)
            if spec.rate or len(batch) == FLAT_OUT:
                await self._append(batch)
                batch = []

    async def _append(self, batch: list[tuple[str, dict[str, Any]]]) -> None:
        events = [
            {"type": type, "item": f"call:{self.id}:{data.get('call_id')}", "data": data}
            for type, data in batch
        ]
        async with self.floor.pool.connection() as conn:
            cursor = await conn.execute(
                self.floor.append,
                {
                    "session": self.id,
                    "turn": None,
                    "fence": None,
                    "count": len(batch),
                    "listed": False,
                    "events": json.dumps(events),
                },
            )
            await cursor.fetchone()
        self.wake.set()

    async def send(self) -> None:
        while True:
            await self.wake.wait()
            self.wake.clear()
            rows = await self._page()
            while rows:
                self.cursor = rows[-1][0]
                text = json.dumps(rows)
                for viewer in list(self.viewers):
                    await viewer.send(text)
                rows = await self._page() if len(rows) == 100 else []

    async def _page(self) -> list[Any]:
        async with self.floor.pool.connection() as conn:
            arguments = {"session": self.id, "after": self.cursor}
            return await (await conn.execute(PAGE, arguments)).fetchall()


class Floor:
    def __init__(self, append: str, pool: AsyncConnectionPool[Any]) -> None:
        self.append, self.pool = append, pool
        self.sessions: dict[str, Session] = {}
        self.tasks: list[asyncio.Task[None]] = []

    def session(self, id: str) -> Session:
        if id not in self.sessions:
            self.sessions[id] = Session(self, id)
            self.tasks.append(asyncio.create_task(self.sessions[id].send()))
        return self.sessions[id]

    async def watch(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        id, _, after = connection.request.path.rpartition("/")[2].partition("?after=")
        session = self.session(id)
        session.cursor = max(session.cursor, int(after))
        session.viewers.add(connection)
        try:
            await connection.wait_closed()
        finally:
            session.viewers.discard(connection)

    async def run(self, specs: dict[str, dict[str, Any]]) -> None:
        async with asyncio.TaskGroup() as group:
            for id, spec in specs.items():
                group.create_task(self.session(id).write(load.Spec(**spec)))


async def main() -> None:
    told = json.loads(sys.stdin.readline())
    options = {"autocommit": True}
    async with AsyncConnectionPool(
        told["database"], kwargs=options, min_size=8, max_size=8
    ) as pool:
        floor = Floor(told["append"], pool)
        async with serve(
            floor.watch, "127.0.0.1", 0, compression=None, ping_interval=None
        ) as served:
            [address] = {socket.getsockname()[1] for socket in served.sockets}
            print(json.dumps({"port": address}), flush=True)
            while line := await asyncio.to_thread(sys.stdin.readline):
                await floor.run(json.loads(line))
                print(json.dumps({"done": True}), flush=True)
            for task in floor.tasks:
                task.cancel()


if __name__ == "__main__":
    asyncio.run(main())

"""The people in front of the pages: websockets in a process of their own, without Django.

It is told by lines of JSON on its standard input, and answers each with one on its standard output.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from .load import MARK

NUMBERS = re.compile(r"<!--(\d+) (\d+)-->")
QUIET = 0.5
LONGEST = 25.0
BETWEEN = 0.3


@dataclass
class Viewer:
    """One open page: says what it has drawn, and notes when each event reached it."""

    socket: ClientConnection
    arrivals: list[tuple[int, float, float]] = field(default_factory=list)
    """Number, moment of emission and moment of arrival of each event, in the order they came."""
    frames: list[tuple[float, int]] = field(default_factory=list)
    """When each frame came, and how many events it brought."""
    drawn: int = 0
    others: int = 0
    unsaid: int = 0
    newest: int = 0
    spoken: float = 0
    """When it last told what was drawn; never again when that is infinity."""
    came: asyncio.Event = field(default_factory=asyncio.Event)

    async def watch(self) -> None:
        try:
            async for message in self.socket:
                now = time.monotonic()
                assert isinstance(message, str)
                self.take(message, now)
                await self.say(message)
                self.came.set()
        except ConnectionClosed as closed:
            print(f"A socket was closed: {closed}", file=sys.stderr)

    async def say(self, message: str) -> None:
        """Tell what was drawn as pages do: after every 64 KiB, and else now and then."""
        numbers = NUMBERS.match(message)
        if numbers:
            self.drawn = int(numbers[2])
        else:
            self.others += 1
        if self.spoken == math.inf:
            return
        self.unsaid += len(message)
        if self.unsaid >= 64 * 1024 or time.monotonic() > self.spoken + 1:
            self.unsaid, self.spoken = 0, time.monotonic()
            await self.socket.send(f'{{"drawn": {self.drawn}, "others": {self.others}}}')

    def take(self, message: str, now: float) -> None:
        before = len(self.arrivals)
        # A row that is drawn again, with a result, shows its older mark a second time.
        for number, moment in sorted((int(n), m) for n, m in MARK.findall(message)):
            if number > self.newest:
                self.newest = number
                self.arrivals.append((number, float(moment), now))
        # Of two updates of one thing in a frame, the later one is what it shows.
        numbers = NUMBERS.match(message)
        count = int(numbers[2]) - int(numbers[1]) + 1 if numbers else len(self.arrivals) - before
        self.frames.append((now, count))

    def forget(self) -> None:
        self.arrivals, self.frames, self.newest = [], [], 0


class Crowd:
    def __init__(self) -> None:
        self.viewers: list[Viewer] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def connect(
        self, base: str, sockets: list[dict[str, str]], tell: bool = True
    ) -> dict[str, Any]:
        """Open sockets, some at a time, as pages would: with the cookies of a sign-in."""
        gate = asyncio.Semaphore(20)
        origin = base.replace("ws://", "http://")

        async def open_one(path: str, cookies: str) -> Viewer:
            async with gate:
                headers = {"Cookie": cookies} if cookies else {}
                socket = await connect(
                    base + path,
                    origin=origin,  # type: ignore[arg-type]
                    additional_headers=headers,
                    compression=None,
                    ping_interval=None,
                    open_timeout=30,
                    max_size=None,
                )
            return Viewer(socket, spoken=0 if tell else math.inf)

        fresh = await asyncio.gather(*(open_one(s["path"], s["cookies"]) for s in sockets))
        for viewer in fresh:
            self.viewers.append(viewer)
            self.tasks.append(asyncio.create_task(viewer.watch()))
        return {"sockets": len(self.viewers)}

    async def collect(self, start: float, until: float) -> dict[str, Any]:
        """Take what comes until it has been quiet; say how late it was, and how much came."""
        await asyncio.sleep(max(0.0, until - time.monotonic()))
        while time.monotonic() < until + LONGEST:
            newest = max((v.frames[-1][0] for v in self.viewers if v.frames), default=until)
            if time.monotonic() > max(newest, until) + QUIET:
                break
            await asyncio.sleep(0.1)
        lates = sorted(
            came - emitted
            for viewer in self.viewers
            for _, emitted, came in viewer.arrivals
            if start <= emitted <= until
        )
        counts = [c for v in self.viewers for at, c in v.frames if c and start <= at <= until]
        for viewer in self.viewers:
            viewer.forget()
        return {
            "count": len(lates),
            "p50": _share(lates, 0.5) * 1000,
            "p95": _share(lates, 0.95) * 1000,
            "received": sum(counts),
            "frames": len(counts),
        }

    async def drawn(self, last: int) -> dict[str, Any]:
        """Wait until every page shows the event of a number."""
        for viewer in self.viewers:
            while viewer.drawn < last:
                viewer.came.clear()
                async with asyncio.timeout(LONGEST):
                    await viewer.came.wait()
        return {"at": time.monotonic(), "frames": sum(len(v.frames) for v in self.viewers)}

    async def ask(self, base: str, posts: list[dict[str, str]]) -> dict[str, Any]:
        """Post one form after the other; say how long until the runner's first event showed."""
        host, port = base.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        spent, answered = [], []
        for viewer, post in zip(self.viewers, posts, strict=True):
            before = time.monotonic()
            writer.write(_request(post, f"{host}:{port}"))
            status = await _answer(reader)
            if not 200 <= status < 300:
                raise SystemExit(f"{post['path']} was answered with {status}.")
            answered.append(time.monotonic() - before)
            while not viewer.arrivals:
                viewer.came.clear()
                async with asyncio.timeout(LONGEST):
                    await viewer.came.wait()
            spent.append(viewer.arrivals[0][2] - before)
            await asyncio.sleep(BETWEEN)
        writer.close()
        for viewer in self.viewers:
            viewer.forget()
        spent, answered = sorted(spent), sorted(answered)
        return {
            "p50": _share(spent, 0.5) * 1000,
            "p95": _share(spent, 0.95) * 1000,
            "answered": _share(answered, 0.5) * 1000,
        }

    async def leave(self) -> dict[str, Any]:
        await asyncio.gather(*(viewer.socket.close() for viewer in self.viewers))
        await asyncio.gather(*self.tasks)
        self.viewers, self.tasks = [], []
        return {"sockets": 0}


def _request(post: dict[str, str], host: str) -> bytes:
    body = post["body"].encode()
    headers = [
        f"POST {post['path']} HTTP/1.1",
        f"Host: {host}",
        f"Origin: http://{host}",
        f"Cookie: {post['cookies']}",
        f"X-CSRFToken: {post['token']}",
        "HX-Request: true",
        "Content-Type: application/x-www-form-urlencoded",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*headers, "", ""]).encode() + body


async def _answer(reader: asyncio.StreamReader) -> int:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin1")
    length = re.search(r"content-length: *(\d+)", head, re.IGNORECASE)
    if length:
        await reader.readexactly(int(length[1]))
    return int(head.split(" ", 2)[1])


def _share(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


async def main() -> None:
    crowd = Crowd()
    while line := await asyncio.to_thread(sys.stdin.readline):
        told = json.loads(line)
        answer = await getattr(crowd, told.pop("do"))(**told)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main())

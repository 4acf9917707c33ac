"""Readers that behave as a page does: they put frames together, and come back where they were."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from .report import DISORDERED, DUPLICATED, LOST, OTHER, Findings
from .stage import Stage

NUMBERS = re.compile(r"<!--(\d+) (\d+)-->")
ROW = re.compile(r'<li id="event-(\d+)"')
LIST_ITEM = re.compile(r"<li\b|</li>")
REPLACED = 'hx-swap-oob="true"'
LOOK_SECONDS = 1.0
COME_BACK = {1001, 1006, 1011, 1012, 1013}
RECEIVE_BYTES = 16 * 1024


class Plug(ClientConnection):
    """A connection that can be cut off, also in the middle of what comes next."""

    fraction: float | None = None
    cut = False
    """Whether it was cut off inside a frame."""

    def data_received(self, data: bytes) -> None:
        if self.fraction is None:
            super().data_received(data)
        elif not self.transport.is_closing():
            super().data_received(data[: int(len(data) * self.fraction)])
            self.pull()

    def pull(self) -> None:
        self.cut = bool(self.protocol.reader.buffer)
        self.transport.abort()


class Rows:
    """The rows of a timeline as frames assemble them, and what was wrong with the frames."""

    def __init__(self, name: str, findings: Findings) -> None:
        self.name, self.findings = name, findings
        self.last = 0
        self.rows: dict[int, str] = {}

    def apply(self, frame: str) -> bool:
        """Take a frame in; False when something is missing before it."""
        numbers = NUMBERS.match(frame)
        assert numbers is not None
        first, last = map(int, numbers.groups())
        if first != self.last + 1:
            kind = LOST if first > self.last + 1 else DUPLICATED
            text = f"{self.name}: a frame of {first} to {last} came after {self.last}"
            self.findings.fault(kind, text)
            return last <= self.last
        self.last = last
        for seq, html in rows_in(frame):
            self._put(seq, html)
        return True

    def _put(self, seq: int, html: str) -> None:
        if REPLACED in html.partition(">")[0]:
            if seq not in self.rows:
                self.findings.fault(LOST, f"{self.name}: row {seq} is replaced, which is not there")
            html = html.replace(REPLACED, "", 1)
        elif seq in self.rows:
            self.findings.fault(DUPLICATED, f"{self.name}: row {seq} came twice")
        elif self.rows and seq < next(reversed(self.rows)):
            self.findings.fault(DISORDERED, f"{self.name}: row {seq} came late")
        self.rows[seq] = html

    def plain(self) -> dict[int, str]:
        return {seq: " ".join(html.split()).replace(" >", ">") for seq, html in self.rows.items()}


def rows_in(frame: str) -> Iterator[tuple[int, str]]:
    """Yield each row of a frame with its number; rows may hold lists of their own."""
    position = 0
    while found := ROW.search(frame, position):
        depth = 0
        for item in LIST_ITEM.finditer(frame, found.start()):
            depth += 1 if item[0] != "</li>" else -1
            if depth == 0:
                position = item.end()
                break
        else:
            raise AssertionError(f"a row that has no end: {frame[found.start() :][:200]}")
        yield int(found[1]), frame[found.start() : position]


class Reader:
    """One page that watches a session at either web process, and reconnects for ever."""

    def __init__(
        self, name: str, stage: Stage, session: str, cookies: str, random: Random, rows: Rows
    ) -> None:
        self.name, self.stage, self.session, self.cookies = name, stage, session, cookies
        self.random, self.assembled = random, rows
        self.target: int | None = None
        """Where it may stop; None while that is not known."""
        self.connected: Plug | None = None
        self.cuts = 0
        self.connections = 0
        self.codes: Counter[int] = Counter()
        self.heard: Callable[[str], None] = lambda frame: None

    @property
    def is_done(self) -> bool:
        return self.target is not None and self.assembled.last >= self.target

    async def run(self) -> None:
        while not self.is_done:
            try:
                await self._visit(self.random.choice(self.stage.webs).port)
            except (OSError, TimeoutError, InvalidHandshake):
                pass  # It is being started again.
            except ConnectionClosed as closed:
                self._note(closed)
            finally:
                self.cuts += self.connected is not None and self.connected.cut
                self.connected = None
            await asyncio.sleep(self.random.uniform(0.02, 0.3))

    def _note(self, closed: ConnectionClosed) -> None:
        code = closed.rcvd.code if closed.rcvd else 1006
        self.codes[code] += 1
        if code not in COME_BACK:
            reason = closed.rcvd.reason if closed.rcvd else ""
            text = f"{self.name}, at {self.assembled.last}, was closed with {code} {reason}"
            self.assembled.findings.fault(OTHER, text)

    async def _visit(self, port: int) -> None:
        address = f"ws://127.0.0.1:{port}/ws/sessions/{self.session}/?after={self.assembled.last}"
        headers = {"Cookie": self.cookies, "Origin": f"http://127.0.0.1:{port}"}
        # A small buffer, so that frames come in pieces and a drop is likely to cut one.
        plug = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        plug.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(plug, ("127.0.0.1", port))
        except BaseException:
            plug.close()
            raise
        opened = connect(
            address, sock=plug, create_connection=Plug, additional_headers=headers,
            compression=None, max_size=None, ping_interval=None, proxy=None,
            open_timeout=20, close_timeout=1,
        )  # fmt: skip
        async with opened as connected:
            assert isinstance(connected, Plug)
            self.connected = connected
            self.connections += 1
            await self._read(connected)

    async def _read(self, opened: ClientConnection) -> None:
        others = 0
        while not self.is_done:
            try:
                frame = str(await asyncio.wait_for(opened.recv(), LOOK_SECONDS))
            except TimeoutError:
                continue
            if not frame.startswith("<!--"):
                others += 1
                continue
            self.heard(frame)
            if not self.assembled.apply(frame):
                return
            await opened.send(json.dumps({"drawn": self.assembled.last, "others": others}))


class Readers:
    """Many readers on an event loop in a thread of its own."""

    def __init__(self) -> None:
        self.readers: list[Reader] = []
        self.loop = asyncio.new_event_loop()
        self._tasks: list[asyncio.Task[None]] = []
        self._thread = threading.Thread(target=self.loop.run_forever, name="readers", daemon=True)

    def start(self, readers: list[Reader]) -> None:
        self.readers += readers
        if not self._thread.is_alive():
            self._thread.start()
        for reader in readers:
            self.loop.call_soon_threadsafe(self._begin, reader)

    def _begin(self, reader: Reader) -> None:
        task = self.loop.create_task(reader.run(), name=reader.name)
        self._tasks.append(task)

    def finish(self, seconds: float) -> None:
        """Wait until all have read up to their targets, or none has come on for so many seconds."""

        async def finished() -> None:
            late, before = set(self._tasks), -1
            while late and (now := sum(reader.assembled.last for reader in self.readers)) > before:
                before = now
                _, late = await asyncio.wait(late, timeout=seconds)
            for task in late:
                task.cancel()
            for ended in await asyncio.gather(*self._tasks, return_exceptions=True):
                if isinstance(ended, Exception):
                    raise ended

        asyncio.run_coroutine_threadsafe(finished(), self.loop).result()
        self._tasks.clear()

    def close(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
        self.loop.close()

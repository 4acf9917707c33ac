"""Readers that stop reading: what they cost the server, and whether others notice."""

from __future__ import annotations

import asyncio
import re
import socket
import statistics
import threading
import time
from dataclasses import dataclass, field
from random import Random

import psutil
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from .drops import Texts, Writing
from .logs import check_logs
from .people import Page
from .readers import Reader, Readers
from .report import LOST, OTHER, Findings
from .stage import Member, Stage

READERS = 5
STALLED = 10
RATE = 400.0
LENGTH = 2000
MOST_BYTES = 1024 * 1024
MOST_TIMES = 2.0
TAIL_FRAMES = 3000
CATCH_UP_SECONDS = 20.0
MADE = re.compile(r"number \d+ at (\d+\.\d+)")


@dataclass
class Measured:
    """One phase: the most memory that the web process took, and how late the frames were."""

    grown: list[int] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    wrote: float = 0.0

    def heard(self, frame: str) -> None:
        """Note how long ago the newest message of a frame was made."""
        if made := MADE.findall(frame):
            self.delays.append(time.time() - float(made[-1]))

    def percentile(self, number: int) -> float:
        return statistics.quantiles(self.delays, n=100)[number - 1]

    def told(self) -> str:
        return f"p50 {1000 * self.percentile(50):.0f} ms, p95 {1000 * self.percentile(95):.0f} ms"


class Memory(threading.Thread):
    """Watches how much memory a process has taken."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process(pid)
        self.before = self.most = self.process.memory_info().rss
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.1):
            self.most = max(self.most, self.process.memory_info().rss)

    def end(self) -> int:
        self.over.set()
        self.join()
        return self.most - self.before


class Stalled:
    """Sockets that are opened and never read from again."""

    def __init__(self, readers: Readers) -> None:
        self.loop = readers.loop
        self.opened: list[ClientConnection] = []

    def open(self, address: str, headers: dict[str, str], port: int, count: int) -> None:
        async def opening() -> None:
            for _ in range(count):
                plug = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                plug.setblocking(False)
                await self.loop.sock_connect(plug, ("127.0.0.1", port))
                one = await connect(
                    address, sock=plug, additional_headers=headers, compression=None,
                    ping_interval=None, proxy=None, close_timeout=0,
                )  # fmt: skip
                one.transport.pause_reading()
                self.opened.append(one)

        asyncio.run_coroutine_threadsafe(opening(), self.loop).result(30)

    def close(self) -> None:
        async def closing() -> None:
            for one in self.opened:
                one.transport.abort()
            await asyncio.sleep(0.1)

        asyncio.run_coroutine_threadsafe(closing(), self.loop).result(30)


def stalled(stage: Stage, findings: Findings, seed: int, *, rounds: int, events: int) -> None:
    idle = stage.webs.pop()
    idle.stop()
    without, beside = Measured(), Measured()
    for number in range(rounds):
        for measured, count in ((without, 0), (beside, STALLED)):
            _restart(stage, stage.webs[0])
            _phase(stage, findings, f"{seed}/stalled/{number}", measured, count, events)
    cost = (statistics.median(beside.grown) - statistics.median(without.grown)) / STALLED
    if cost > MOST_BYTES:
        findings.fault(OTHER, f"a reader that stalls costs {cost / 1024:.0f} KiB")
    # In a few seconds, one frame that anything on this machine held up is the tail.
    worst = 95 if len(without.delays) > TAIL_FRAMES else 50
    slower = beside.percentile(worst) / without.percentile(worst)
    if slower > MOST_TIMES:
        findings.fault(OTHER, f"others get their frames {slower:.1f} times as late (p{worst})")
    findings.fact(
        f"{STALLED} readers that stopped reading beside {READERS} that read, {events} messages of "
        f"{events * LENGTH // 1_000_000} MB, with and without them in turn"
    )
    findings.fact(f"one that stalls costs {cost / 1024:.0f} KiB")
    findings.fact(f"frames of the others: {without.told()} without, {beside.told()} with them")
    stage.stop(findings)
    check_logs([*stage.webs, idle], [], findings)


def _restart(stage: Stage, web: Member) -> None:
    """Give the phase a fresh process, so that the memory is of this phase alone."""
    web.stop()
    web.start()
    stage.wait_until_ready(web)


def _phase(
    stage: Stage, findings: Findings, seed: str, measured: Measured, count: int, events: int
) -> None:
    page = Page(stage, Random(seed))
    page.sign_in("alice")
    [web] = stage.webs
    assert web.process is not None
    _warm_up(stage, findings, page, seed)
    writing = Writing(stage, events=events, rate=RATE, length=LENGTH, seed=seed)
    readers = Readers()
    several = [_reader(stage, findings, page, writing, f"{seed}/{n}") for n in range(READERS)]
    for reader in several:
        reader.heard = measured.heard
    readers.start(several)
    memory = Memory(web.process.pid)
    stopped = Stalled(readers)
    try:
        address = f"ws://127.0.0.1:{web.port}/ws/sessions/{writing.session}/?after=0"
        headers = {"Cookie": page.cookies(), "Origin": web.base.rstrip("/")}
        stopped.open(address, headers, web.port, count)
        memory.start()
        writing.begin()
        if writing.process.wait(600) != 0:
            findings.fault(OTHER, "the writers failed")
        _finish(stage, writing, readers)
        measured.grown.append(memory.end())
        stopped.close()
    except WebSocketException as error:
        findings.fault(OTHER, f"a socket could not be opened: {error}")
    finally:
        writing.end()
        readers.close()
    for reader in several:
        if reader.assembled.last != reader.target:
            findings.fault(LOST, f"{reader.name} is at {reader.assembled.last}")


def _warm_up(stage: Stage, findings: Findings, page: Page, seed: str) -> None:
    """Have everything loaded and rendered once before memory is looked at."""
    writing = Writing(stage, events=300, rate=RATE, length=LENGTH, seed=seed)
    readers = Readers()
    try:
        readers.start([_reader(stage, findings, page, writing, f"{seed}/warm")])
        writing.begin()
        writing.process.wait(60)
        _finish(stage, writing, readers)
    finally:
        writing.end()
        readers.close()


def _finish(stage: Stage, writing: Writing, readers: Readers) -> None:
    last = stage.one("SELECT last_seq FROM sessions_app_session WHERE id = %s", writing.session)
    for reader in readers.readers:
        reader.target = last
    readers.finish(CATCH_UP_SECONDS)


def _reader(stage: Stage, findings: Findings, page: Page, writing: Writing, name: str) -> Reader:
    rows = Texts(name, findings)
    return Reader(name, stage, writing.session, page.cookies(), Random(name), rows)

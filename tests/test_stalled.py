"""The real server and readers that stop reading: what they cost, and what becomes of them."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import websockets

from sessions_app import events

from .installation import Browser, Installation, installation, wait_for
from .test_serve import submit

pytestmark = pytest.mark.timeout(600)

OUTPUT = ("some output of a step that says a lot, line after line\n" * 1200)[: 60 * 1024]
STALLED = 10


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Installation]:
    with installation(tmp_path) as made:
        yield made


def address(place: Installation, session: str, after: int = 0) -> str:
    return f"ws://127.0.0.1:{place.port}/ws/sessions/{session}/?after={after}"


def headers(place: Installation, cookies: str) -> dict[str, str]:
    return {"Cookie": cookies, "Origin": place.base.rstrip("/")}


def stalled(place: Installation, session: str, cookies: str) -> socket.socket:
    """Open a socket that reads the handshake's answer and never again. Its own buffer is small."""
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    opened.settimeout(20)
    opened.connect(("127.0.0.1", place.port))
    more = "".join(f"{name}: {value}\r\n" for name, value in headers(place, cookies).items())
    opened.sendall(
        f"GET /ws/sessions/{session}/?after=0 HTTP/1.1\r\nHost: 127.0.0.1:{place.port}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n{more}\r\n".encode()
    )
    assert b"101" in opened.recv(64)
    return opened


def masked(text: str) -> bytes:
    """One short text frame as a browser sends it; the mask is zero."""
    payload = text.encode()
    if len(payload) < 126:
        return struct.pack("!BB", 0x81, 0x80 | len(payload)) + bytes(4) + payload
    return struct.pack("!BBH", 0x81, 0x80 | 126, len(payload)) + bytes(4) + payload


def is_open(server: psutil.Process, client: socket.socket) -> bool:
    """Whether the server still holds its end of a client's connection."""
    mine = client.getsockname()[1]
    return any(
        each.raddr and each.raddr.port == mine and each.status != psutil.CONN_CLOSE
        for each in server.net_connections("tcp4")
    )


def server_of(place: Installation) -> psutil.Process:
    assert place.process is not None
    return psutil.Process(place.process.pid)


def session_at_rest(place: Installation, browser: Browser) -> str:
    session = submit(browser, place, "Just a word.")
    wait_for(
        lambda: place.one(
            "SELECT 1 FROM sessions_app_turn WHERE session_id = %s AND state = 'COMPLETED'", session
        ),
        "the turn does not end",
    )
    return session


def record_outputs(place: Installation, session: str, count: int) -> None:
    """Record calls and what they printed, ten at a time."""
    output = events.Output(head=OUTPUT, size=len(OUTPUT))
    calls: list[events.Payload] = []
    for ref in (f"step-{number}" for number in range(count)):
        calls += [
            events.ToolCallStarted(call_id=ref, kind="shell", tool="sh", title=ref),
            events.ToolCallCompleted(call_id=ref, status="succeeded", exit_code=0, output=output),
        ]
    for start in range(0, len(calls), 20):
        place.record(session, *calls[start : start + 20])


async def read_all(place: Installation, session: str, cookies: str, last: int) -> int:
    """Read and acknowledge frames up to a seq, refuse gaps, and return how many bytes they were."""
    taken, at = 0, 0
    async with websockets.connect(
        address(place, session), additional_headers=headers(place, cookies), max_size=None
    ) as opened:
        while at < last:
            frame = str(await asyncio.wait_for(opened.recv(), 120))
            if found := re.match(r"<!--(\d+) (\d+)-->", frame):
                assert int(found.group(1)) == at + 1
                at = int(found.group(2))
                await opened.send(json.dumps({"drawn": at}))
            taken += len(frame)
    return taken


def test_readers_that_stop_reading_cost_less_than_a_megabyte_each_and_slow_nobody(place):
    place.start(SIGNALBOX_POLL_SECONDS="0.05", SIGNALBOX_STALLED_SECONDS="600")
    browser = place.browser()
    cookies = browser.cookies()
    last_seq = "SELECT last_seq FROM sessions_app_session WHERE id = %s"

    def read_while_recorded(session: str, count: int = 1000) -> int:
        """Record 60 MB while somebody reads them, and return how many bytes those were."""
        begun = int(place.one(last_seq, session))

        async def both() -> int:
            reading = asyncio.create_task(read_all(place, session, cookies, begun + 2 * count))
            await asyncio.to_thread(record_outputs, place, session, count)
            return await asyncio.wait_for(reading, 240)

        return asyncio.run(both())

    server = server_of(place)
    # The same without anybody who stalls: what reading and rendering need for themselves.
    assert read_while_recorded(session_at_rest(place, browser)) > 60_000_000
    before = server.memory_info().rss
    session = session_at_rest(place, browser)
    with ExitStack() as ending:
        clients = [ending.enter_context(stalled(place, session, cookies)) for _ in range(STALLED)]
        assert read_while_recorded(session) > 60_000_000
        each = (server.memory_info().rss - before) / STALLED
        assert all(is_open(server, client) for client in clients), "they are not stalled but closed"
        assert each < 1024 * 1024
    assert place.stop() == 0
    assert place.log() == ""


def test_a_peer_that_never_reads_again_is_cut_off(place):
    place.start(SIGNALBOX_POLL_SECONDS="0.05", SIGNALBOX_STALLED_SECONDS="0.5")
    browser = place.browser()
    session = session_at_rest(place, browser)
    server = server_of(place)
    with stalled(place, session, browser.cookies()) as client:
        assert is_open(server, client)
        record_outputs(place, session, 20)
        wait_for(lambda: not is_open(server, client), "the server keeps its end", patience=15)


def test_a_program_that_acknowledges_nothing_comes_back_and_gets_everything(place):
    place.start(SIGNALBOX_POLL_SECONDS="0.05", SIGNALBOX_STALLED_SECONDS="0.3")
    browser = place.browser()
    session = session_at_rest(place, browser)
    record_outputs(place, session, 20)
    last = int(place.one("SELECT last_seq FROM sessions_app_session WHERE id = %s", session))
    known = headers(place, browser.cookies())

    async def program() -> list[int | None]:
        codes: list[int | None] = []
        at = 0
        while at < last:
            opened = await websockets.connect(
                address(place, session, at), additional_headers=known, max_size=None
            )
            try:
                while at < last:
                    frame = str(await asyncio.wait_for(opened.recv(), 20))
                    if found := re.match(r"<!--(\d+) (\d+)-->", frame):
                        assert int(found.group(1)) == at + 1
                        at = int(found.group(2))
            except websockets.ConnectionClosed:
                codes.append(opened.close_code)
            await opened.close()
        return codes

    codes = asyncio.run(program())
    assert codes
    assert set(codes) == {1013}


def closed_with(
    place: Installation, browser: Browser, session: str, *messages: str
) -> tuple[Any, str]:
    known = headers(place, browser.cookies())

    async def talk() -> tuple[Any, str]:
        async with websockets.connect(
            address(place, session), additional_headers=known, max_size=None
        ) as opened:
            for message in messages:
                await opened.send(message)
            await asyncio.wait_for(opened.wait_closed(), 20)
            return opened.close_code, opened.close_reason or ""

    return asyncio.run(talk())


def test_junk_is_answered_with_a_code_and_a_reason(place):
    place.start()
    browser = place.browser()
    session = session_at_rest(place, browser)
    code, reason = closed_with(place, browser, session, "junk")
    assert code == 4400
    assert reason.endswith("Reload the page.")
    # What is far too long is not even read to its end.
    assert closed_with(place, browser, session, "x" * 100_000)[0] == 1006
    assert place.stop() == 0
    assert place.log() == ""


def test_a_flood_of_messages_costs_little_and_ends_the_flooder(place):
    place.start()
    browser = place.browser()
    session = session_at_rest(place, browser)
    server = server_of(place)
    cookies = browser.cookies()
    before = server.memory_info().rss
    used = sum(server.cpu_times()[:2])
    for _ in range(5):
        with stalled(place, session, cookies) as client:
            with suppress(OSError):
                for _ in range(1000):
                    client.sendall(masked('{"drawn": 0}') * 100)
            wait_for(lambda client=client: not is_open(server, client), "a flooder stays")
    # Each of them sent, or tried to send, 1.8 MB.
    assert sum(server.cpu_times()[:2]) - used < 10
    assert server.memory_info().rss - before < 20 * 1024 * 1024
    assert browser.get(f"/sessions/{session}/")[0] == 200
    assert place.stop() == 0
    assert place.log() == ""

"""Several web and worker processes of one installation, with a Redis between them."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from .installation import PATIENCE, ROOT, Browser, Installation, free_port, installation, wait_for
from .redis_server import RedisServer, redis_server


class Member:
    """One process of the fleet, with a log of its own."""

    def __init__(self, fleet: Fleet, name: str, *command: str, port: int = 0, **more: str) -> None:
        self.fleet, self.name, self.port = fleet, name, port or free_port()
        self.log_path = fleet.place.data / f"{name}.log"
        environment = fleet.place.environment(PORT=str(self.port), **fleet.shared, **more)
        with self.log_path.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, *(part.format(port=self.port) for part in command)],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def ready(self) -> str:
        """Wait for the line it prints when it is ready, and return it."""
        assert self.process.stdout is not None
        printed, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        line = self.process.stdout.readline() if printed else ""
        assert line, f"{self.name} says nothing; its log: {self.log()}"
        return line

    def log(self) -> str:
        return self.log_path.read_text()

    def ask_to_stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def ended(self) -> int:
        """Wait for its end and return its exit code."""
        code = self.process.wait(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def stop(self) -> int:
        self.ask_to_stop()
        return self.ended()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """End it whatever state it is in."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        if self.process.poll() is None or not getattr(self.process.stdout, "closed", True):
            self.ended()


class Web(Member):
    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def browser(self, like: Browser | None = None) -> Browser:
        """A browser here; `like` another one it has that one's cookies, and so is signed in."""
        browser = Browser(self.base)
        if like is not None:
            for cookie in like.jar:
                browser.jar.set_cookie(cookie)
        return browser

    def answers(self) -> bool:
        """Whether it listens, for a server that does not say so."""
        try:
            return Browser(self.base).get("/healthz")[0] == 200
        except urllib.error.URLError:
            return False

    def watch(self, session: str, browser: Browser, after: int = 0) -> ClientConnection:
        address = f"ws://127.0.0.1:{self.port}/ws/sessions/{session}/?after={after}"
        headers = {"Cookie": browser.cookies(), "Origin": self.base.rstrip("/")}
        return connect(address, additional_headers=headers)


class Fleet:
    def __init__(self, place: Installation, redis: RedisServer | None, **shared: str) -> None:
        self.place, self.redis = place, redis
        self.shared = {"SECRET_KEY": "the same in all of them", **shared}
        if redis is not None:
            self.shared["REDIS_URL"] = redis.url
        self.members: list[Member] = []
        self._link = ""

    def web(self, name: str) -> Web:
        """Start a web process; `started` waits for it."""
        return self._add(Web(self, name, "manage.py", "serve", "--web-only"))

    def daphne(self, name: str) -> Web:
        """Start plain Daphne on the ASGI application; it prints nothing when it listens."""
        command = ["-m", "daphne", "-b", "127.0.0.1", "-p", "{port}", "config.asgi:application"]
        return self._add(Web(self, name, *command))

    def worker(self, name: str, *options: str) -> Member:
        return self._add(Member(self, name, "manage.py", "worker", *options))

    def _add(self, member: Any) -> Any:
        self.members.append(member)
        return member

    def sign_in(self, web: Web, line: str) -> Browser:
        """Follow the link in the line that a web process printed."""
        found = re.search(r"http://\S+", line)
        assert found, line
        browser = web.browser()
        assert browser.get(found.group())[0] == 200
        return browser

    def end(self) -> None:
        for member in self.members:
            member.end()


@contextmanager
def fleet(data: Path, **shared: str) -> Iterator[Fleet]:
    with installation(data) as place, redis_server(data) as redis:
        made = Fleet(place, redis, **shared)
        try:
            yield made
        finally:
            made.end()


def submit(browser: Browser, place: Installation, instruction: str) -> str:
    """Open a session by the form, and return its id."""
    agent = place.one("SELECT id FROM sessions_app_agent")
    _, address, body = browser.post("/sessions/", agent=agent, instruction=instruction)
    assert "/sessions/ses_" in address, body
    return address.rstrip("/").rpartition("/")[2]


def state_of(place: Installation, session: str) -> str:
    return str(
        place.one("SELECT state FROM sessions_app_turn WHERE session_id = %s", session) or ""
    )


def wait_for_state(place: Installation, session: str, *states: str) -> str:
    return str(
        wait_for(
            lambda: (state := state_of(place, session)) in states and state,
            f"the turn of {session} is not {' or '.join(states)}",
        )
    )


def read_until(socket: ClientConnection, words: str, patience: float = 15.0) -> str:
    """Return everything that came up to the frame with these words."""
    said = ""
    while words not in said:
        said += str(socket.recv(timeout=patience))
    return said

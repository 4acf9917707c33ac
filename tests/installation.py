"""A real installation in processes of its own: started, used over HTTP, killed, started again."""

from __future__ import annotations

import http.cookiejar
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
from django.db import connection

if TYPE_CHECKING:
    from sessions_app.events import Payload

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 40.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: Callable[[], Any], message: str, patience: float = PATIENCE) -> Any:
    """Ask until the answer is true, for what another process does; fail with the message."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if answer := what():
            return answer
        select.select([], [], [], 0.05)
    raise AssertionError(f"{message}, within {patience} s")


class Browser:
    """As much of a browser as forms need: cookies, redirects and the CSRF token."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.jar = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.jar))

    def get(self, path: str) -> tuple[int, str, str]:
        """Return (status, address arrived at, body)."""
        return self._open(urllib.request.Request(urllib.parse.urljoin(self.base, path)))

    def post(self, path: str, **fields: str) -> tuple[int, str, str]:
        fields["csrfmiddlewaretoken"] = self.cookie("csrftoken")
        body = urllib.parse.urlencode(fields).encode()
        request = urllib.request.Request(urllib.parse.urljoin(self.base, path), body)
        request.add_header("Referer", self.base)
        return self._open(request)

    def cookie(self, name: str) -> str:
        return next((cookie.value or "" for cookie in self.jar if cookie.name == name), "")

    def cookies(self) -> str:
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in self.jar)

    def _open(self, request: urllib.request.Request) -> tuple[int, str, str]:
        try:
            with self._opener.open(request, timeout=20) as answer:
                return answer.status, answer.url, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.url, error.read().decode()


class Installation:
    """One database and one data directory, with `serve` on them as often as it is started."""

    def __init__(self, data: Path, database: str = "") -> None:
        """Without the address of a database it is the embedded one."""
        self.data, self.database = data, database
        self.port = free_port()
        self.process: subprocess.Popen[str] | None = None
        self.link = ""

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def environment(self, **more: str) -> dict[str, str]:
        ours = {"SIGNALBOX_DATA": str(self.data), "PORT": str(self.port), "HOST": "127.0.0.1"}
        if self.database:
            ours["DATABASE_URL"] = self.database
        return {**os.environ, **ours, **more}

    def launch(self, **more: str) -> subprocess.Popen[str]:
        with (self.data / "serve.log").open("a") as log:
            return subprocess.Popen(
                [sys.executable, "manage.py", "serve"],
                cwd=ROOT,
                env=self.environment(**more),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def start(self, **more: str) -> str:
        """Start `serve`, wait for the line it prints, and return the sign-in link in it."""
        self.process = self.launch(**more)
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        line = self.process.stdout.readline() if ready else ""
        found = re.search(r"http://\S+", line)
        assert found, f"serve said {line!r}; its log: {self.log()}"
        self.link = found.group()
        return self.link

    def kill(self) -> None:
        """End it the hard way, as a power cut would: no handler runs."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE)
        self._close()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop and return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self._close()
        return code

    def _close(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None

    def log(self) -> str:
        path = self.data / "serve.log"
        return path.read_text() if path.exists() else ""

    def browser(self) -> Browser:
        """A browser that has followed the sign-in link."""
        browser = Browser(self.base)
        status, _, body = browser.get(self.link)
        assert status == 200, body
        return browser

    def rows(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database, autocommit=True) as opened:
            return opened.execute(sql, arguments).fetchall()  # type: ignore[arg-type]

    def one(self, sql: str, *arguments: object) -> Any:
        rows = self.rows(sql, *arguments)
        return rows[0][0] if rows else None

    def record(self, session: str, *payloads: Payload) -> None:
        """Record events as another process would that has no way to hint."""
        # Not before it is needed: models need settings, which make a database.
        from sessions_app.models.event import APPEND, append_parameters

        with psycopg.connect(self.database) as opened:
            opened.execute(APPEND, append_parameters(session, payloads, None, None))

    def turn_state(self, number: int = 1) -> str:
        return str(self.one("SELECT state FROM sessions_app_turn WHERE number = %s", number))

    def wait_for_turn(self, *states: str, number: int = 1) -> str:
        return str(
            wait_for(
                lambda: (state := self.turn_state(number)) in states and state,
                f"turn {number} is not {' or '.join(states)}: {self.log()}",
            )
        )


@contextmanager
def installation(data: Path) -> Iterator[Installation]:
    """Make an installation on an empty database of the tests' cluster, and take it away again."""
    name = f"installation_{uuid4().hex[:12]}"
    parameters = connection.get_connection_params()
    named = ("user", "password", "host", "port")
    known = {name: parameters[name] for name in named if name in parameters}
    with psycopg.connect(**known, dbname="postgres", autocommit=True) as cluster:
        cluster.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
        info = cluster.info
        host = urllib.parse.quote(info.host, safe="")
        url = f"postgresql://{info.user}@/{name}?host={host}&port={info.port}"
        made = Installation(data, url)
        try:
            yield made
        finally:
            if made.process is not None:
                made.kill()
            cluster.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[call-overload]

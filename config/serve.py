"""Web and worker in one process, on one event loop: how it starts, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Any

# First of all: it installs the reactor on the loop that everything else uses.
from daphne.server import Server, twisted_loop  # isort:skip

from daphne.endpoints import build_endpoint_description_strings
from django.conf import settings
from procrastinate.contrib.django import app
from twisted.internet import reactor

from config.asgi import application
from config.sockets import Socket
from sessions_app import feeds, live
from sessions_app.engine import worker
from sessions_app.readers import LONGEST_MESSAGE
from sessions_app.threads import close_pool

logger = logging.getLogger(__name__)

COME_BACK = 1012
GOODBYE_SECONDS = 2.0
LAST_WORDS = 5
UNSENT_BYTES = 1024 * 1024
STALLED_SECONDS = 60.0


class AddressInUse(Exception):
    """The address cannot be listened on; the message says what to do."""


def check_address(host: str, port: int) -> None:
    """Raise AddressInUse when nobody could listen there, before anything else is started."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise AddressInUse(
                f"Cannot listen on {host}:{port} ({error.strerror}). "
                "Stop what uses it, or set PORT (or HOST) to another one."
            ) from None


class WebServer(Server):
    """Daphne, told to say when it listens and to fail loudly when it cannot."""

    def __init__(self, host: str, port: int, listening: Callable[[], None]) -> None:
        super().__init__(
            application=application,
            endpoints=build_endpoint_description_strings(host=host, port=port),
            signal_handlers=False,
            server_name="signalbox",
            websocket_max_message_size=LONGEST_MESSAGE,
            websocket_max_frame_size=LONGEST_MESSAGE,
        )
        self.listening = listening
        self.failed = False

    def listen_success(self, port: object) -> None:
        super().listen_success(port)
        self.ws_factory.protocol = Socket
        self.ports = [*getattr(self, "ports", []), port]
        self.listening()

    async def handle_reply(self, protocol: Any, message: dict[str, Any]) -> None:
        """Send what the application says, and wait while a long answer is not read."""
        await super().handle_reply(protocol, message)
        if message["type"] == "http.response.body" and message.get("more_body"):
            await self._until_read(protocol)

    async def _until_read(self, protocol: Any) -> None:
        """Wait until a client has taken most of a long answer; drop one that stops reading.

        Daphne writes without ever waiting, so an unread answer would be held in memory whole.
        """
        deadline = asyncio.get_running_loop().time() + STALLED_SECONDS
        before = unsent = _unsent(protocol)
        while unsent > UNSENT_BYTES and "disconnected" not in self.connections.get(protocol, {}):
            await asyncio.sleep(0.02)
            unsent = _unsent(protocol)
            if unsent < before:
                before, deadline = unsent, asyncio.get_running_loop().time() + STALLED_SECONDS
            elif asyncio.get_running_loop().time() > deadline:
                protocol.transport.abortConnection()
                return

    def listen_error(self, failure: object) -> None:
        self.failed = True
        super().listen_error(failure)


def _unsent(protocol: Any) -> int:
    """Bytes that were written to a connection and not yet taken by the system's buffer."""
    transport = getattr(protocol, "transport", None)
    # What an HTTP request calls its transport is the channel, which wraps the real one.
    transport = getattr(transport, "transport", transport)
    if transport is None:
        return 0
    waiting = getattr(transport, "_tempDataLen", 0)
    return len(getattr(transport, "dataBuffer", b"")) - getattr(transport, "offset", 0) + waiting


class Process:
    """The life of `serve`: everything it starts, it ends."""

    def __init__(self, host: str, port: int, listening: Callable[[], None]) -> None:
        self.loop: asyncio.AbstractEventLoop = twisted_loop
        self.web = WebServer(host, port, listening)
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping: asyncio.Task[None] | None = None

    def run(self) -> int:
        """Serve until a signal says stop; return the exit code."""
        asyncio.set_event_loop(self.loop)
        live.attach(self.loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self._stop)
        self._tasks = [
            self.loop.create_task(_keep("the worker", _work)),
            self.loop.create_task(_keep("the worker's loops", worker().look_after)),
        ]
        self.web.run()
        self._end_loop()
        return 1 if self.web.failed else 0

    def _stop(self) -> None:
        if self._stopping is None:
            self._stopping = self.loop.create_task(self._stop_in_order())

    async def _stop_in_order(self) -> None:
        try:
            for port in getattr(self.web, "ports", []):
                port.stopListening()
            await worker().stop(settings.SIGNALBOX["STOP_GRACE_SECONDS"])
            await feeds.close_all(COME_BACK)
            await self._goodbyes()
        except Exception:
            logger.exception("Stopping did not go in order; stopping all the same.")
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await close_pool()
            reactor.stop()  # type: ignore[misc]

    async def _goodbyes(self) -> None:
        """Give sockets a moment to answer the close, so that browsers see its code."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_SECONDS):
                while any("disconnected" not in c for c in self.web.connections.values()):
                    await asyncio.sleep(0.02)

    def _end_loop(self) -> None:
        """Cancel and await what is left before the loop goes.

        A loop torn down under running tasks ended the process in a segmentation fault.
        """
        for _ in range(LAST_WORDS):
            if not (left := asyncio.all_tasks(self.loop)):
                break
            for task in left:
                task.cancel()
            self.loop.run_until_complete(asyncio.wait(left, timeout=1))
        else:
            logger.error("Tasks that do not let themselves be cancelled: %s", left)
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


async def _work() -> None:
    """Take wake-ups from the job table until cancelled."""
    connector = app.connector.get_worker_connector()  # type: ignore[attr-defined]
    jobs = app.with_connector(connector)
    async with jobs.open_async():
        worker().jobs = jobs.job_manager
        await jobs.run_worker_async(
            concurrency=settings.SIGNALBOX["CONCURRENCY"],
            delete_jobs="always",
            install_signal_handlers=False,
            shutdown_graceful_timeout=1.0,
        )


async def _keep(name: str, task: Callable[[], Awaitable[None]]) -> None:
    """Run a task for as long as the process lives: one that fails is logged and started again."""
    while True:
        try:
            await task()
        except Exception:
            logger.exception("%s failed; starting again in a second.", name)
        await asyncio.sleep(1)

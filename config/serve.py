"""The web server, in one process and on one event loop with a worker or without."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

# First of all: it installs the reactor on the loop that everything else uses.
from daphne.server import Server, twisted_loop  # isort:skip

from daphne.endpoints import build_endpoint_description_strings
from django.conf import settings
from twisted.internet import reactor

from config.asgi import application
from config.process import BEHIND_SECONDS, Process
from config.sockets import Socket
from sessions_app import feeds
from sessions_app.readers import LONGEST_MESSAGE

COME_BACK = 1012
GOODBYE_SECONDS = 2.0
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


class WebProcess(Process):
    """The life of `serve`: everything it starts, it ends."""

    def __init__(
        self, host: str, port: int, listening: Callable[[], None], *, concurrency: int
    ) -> None:
        super().__init__(concurrency, twisted_loop)
        self.behind = 0.0 if settings.REDIS else BEHIND_SECONDS
        self.web = WebServer(host, port, listening)

    def _live(self) -> int:
        self.web.run()
        return 1 if self.web.failed else 0

    def _leave(self) -> None:
        reactor.stop()  # type: ignore[misc]

    def _stop_listening(self) -> None:
        for port in getattr(self.web, "ports", []):
            port.stopListening()

    async def _say_goodbye(self) -> None:
        """Tell sockets to come back, and give them a moment to answer so that browsers see it."""
        await feeds.close_all(COME_BACK)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_SECONDS):
                while any("disconnected" not in c for c in self.web.connections.values()):
                    await asyncio.sleep(0.02)

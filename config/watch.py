"""What a worker shows to whoever watches it: /metrics and /healthz on a port of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from sessions_app import metrics

ANSWER_SECONDS = 2.0


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = 5

    def log_message(self, *args: Any) -> None:
        """Being watched is no news."""


def listen(host: str, port: int, loop: asyncio.AbstractEventLoop) -> WSGIServer:
    """Answer in a thread, so that a loop that is stuck can be seen. Raises OSError."""

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/healthz":
            status, body = ("200 OK", b"ok\n") if _turns(loop) else ("503 Stuck", b"stuck\n")
        elif environ["PATH_INFO"] != "/metrics":
            status, body = "404 Not Found", b"/metrics and /healthz are here.\n"
        elif not metrics.may_read(environ.get("HTTP_AUTHORIZATION", ""), open_without_token=True):
            status, body = "401 Unauthorized", b"The metrics need their token.\n"
        else:
            status, body = "200 OK", metrics.exposition()
        kind = metrics.CONTENT_TYPE if status == "200 OK" else "text/plain; charset=utf-8"
        start(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [body]

    try:
        server = make_server(host, port, answer, _Server, _Handler)
    except OSError as error:
        raise OSError(f"Cannot listen on {host}:{port} for metrics ({error.strerror}).") from None
    threading.Thread(target=server.serve_forever, daemon=True, name="signalbox-watch").start()
    return server


def _turns(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the loop comes round."""
    came = threading.Event()
    try:
        loop.call_soon_threadsafe(came.set)
    except RuntimeError:
        return False
    return came.wait(ANSWER_SECONDS)

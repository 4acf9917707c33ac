"""What a server runs: Django over HTTP, Channels over websockets from our own pages only."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

import django
from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpRequest
from django.http.response import HttpResponseBase

# Before anything that imports models.
django.setup(set_prefix=False)

from channels.auth import AuthMiddlewareStack
from channels.routing import URLRouter
from channels.security.websocket import WebsocketDenier
from django.conf import settings
from django.http.request import split_domain_port, validate_host

from sessions_app import live
from sessions_app.readers import COME_BACK
from sessions_app.routing import websocket_urlpatterns
from sessions_app.threads import AWAY, why

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

logger = logging.getLogger(__name__)


class OneThread(ASGIHandler):
    """Django's handler, with all of a request's middleware and its view in one thread.

    On the loop, each middleware that is not asynchronous goes to that thread and back twice.
    """

    def load_middleware(self, is_async: bool = False) -> None:
        super().load_middleware(is_async=False)

    async def get_response_async(self, request: HttpRequest) -> HttpResponseBase:
        return await sync_to_async(self.get_response)(request)


http = OneThread()
websocket = AuthMiddlewareStack(URLRouter(websocket_urlpatterns))
denier = WebsocketDenier.as_asgi()


def from_our_pages(scope: Scope) -> bool:
    """Whether a handshake comes from a page of this very host, or of a trusted origin.

    Browsers send cookies with handshakes from any page; the origin is what tells them apart.
    """
    headers = {name: value.decode("latin1") for name, value in scope["headers"]}
    origin, host = headers.get(b"origin", ""), headers.get(b"host", "").lower()
    if not validate_host(split_domain_port(host)[0], settings.ALLOWED_HOSTS):
        return False
    return urlsplit(origin).netloc.lower() == host or origin in settings.CSRF_TRUSTED_ORIGINS


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one connection. Hints from threads find the loop that it lives on."""
    live.attach(asyncio.get_running_loop())
    if scope["type"] != "websocket":
        await http(scope, receive, send)  # type: ignore[arg-type]
    elif from_our_pages(scope):
        try:
            await websocket(scope, receive, send)
        except AWAY as error:
            logger.warning("A page has to come back for its socket: %s", why(error))
            await send({"type": "websocket.close", "code": COME_BACK})
    else:
        await denier(scope, receive, send)

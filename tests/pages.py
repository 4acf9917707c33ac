"""A page without a browser: its timeline, as the page renders it or as frames assemble it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import User
from django.test import Client

from config.asgi import application
from sessions_app.models import Session
from sessions_app.threads import in_thread

from .conftest import signed_in

VOID = {"area", "br", "col", "hr", "img", "input", "link", "meta", "wbr"}


@dataclass
class Node:
    tag: str
    attributes: dict[str, str | None]
    children: list[Node | str] = field(default_factory=list)

    def find(self, id: str) -> Node | None:
        if self.attributes.get("id") == id:
            return self
        for child in self.children:
            if isinstance(child, Node) and (found := child.find(id)):
                return found
        return None

    def text(self) -> str:
        said = (c if isinstance(c, str) else c.text() for c in self.children)
        return " ".join(" ".join(said).split())

    def plain(self) -> Any:
        """The node without white space between words and without how it got here."""
        attributes = {k: v for k, v in self.attributes.items() if k != "hx-swap-oob"}
        children = [
            c.plain() if isinstance(c, Node) else " ".join(c.split()) for c in self.children
        ]
        return (self.tag, attributes, [child for child in children if child])


class _Tree(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Node("root", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        for index in range(len(self.open) - 1, 0, -1):
            if self.open[index].tag == tag:
                del self.open[index:]
                return

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(html: str) -> Node:
    tree = _Tree()
    tree.feed(html)
    return tree.root


class Timeline:
    """The rows of a timeline, in order, and the number of the last event in them."""

    def __init__(self, session: Session, client: Client) -> None:
        answer = client.get(f"/sessions/{session.pk}/")
        assert answer.status_code == 200
        page = parse(answer.content.decode())
        found = page.find("timeline")
        assert found is not None
        self.last = int(found.attributes["data-last"] or 0)
        self.rows = {
            str(child.attributes["id"]): child
            for child in found.children
            if isinstance(child, Node) and str(child.attributes.get("id")).startswith("event-")
        }

    def apply(self, frame: str) -> None:
        """Do what the page's script and htmx do with a frame."""
        numbers = re.match(r"<!--(\d+) (\d+)-->", frame)
        if numbers is None:
            return
        first, last = map(int, numbers.groups())
        assert first == self.last + 1, (
            f"the frame starts at {first} on a page that ends {self.last}"
        )
        self.last = last
        for node in parse(frame).children:
            if not isinstance(node, Node):
                continue
            if node.attributes.get("id") == "timeline":
                for row in node.children:
                    if isinstance(row, Node):
                        assert row.attributes["id"] not in self.rows, "a row came twice"
                        self.rows[str(row.attributes["id"])] = row
            elif str(node.attributes.get("id")) in self.rows:
                self.rows[str(node.attributes["id"])] = node

    def plain(self) -> Any:
        return {name: row.plain() for name, row in self.rows.items()}

    def text(self) -> str:
        return " ".join(row.text() for row in self.rows.values())


class Watcher:
    """One person's open page: a timeline and the socket that keeps it current."""

    def __init__(self, session: Session, user: User, *, origin: str = "http://testserver") -> None:
        self.session, self.user, self.origin = session, user, origin
        self.closed_with: int | None = None
        self.acknowledges = True
        self.drawn: int | None = None
        self.others = 0

    async def __aenter__(self) -> Watcher:
        self.client = await in_thread(signed_in, self.user)
        self.timeline = await in_thread(Timeline, self.session, self.client)
        await self.connect()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.disconnect()

    async def connect(self, after: str | None = None) -> None:
        cursor = str(self.timeline.last) if after is None else after
        self.socket = socket(
            self.client, f"/ws/sessions/{self.session.pk}/?after={cursor}", origin=self.origin
        )
        connected, _ = await self.socket.connect()
        assert connected
        self.drawn, self.others = None, 0

    async def disconnect(self) -> None:
        await self.socket.disconnect()

    async def frame(self) -> str | None:
        """Wait for what the socket says next; None when it was closed."""
        message = await self.socket.receive_output(timeout=5)
        if message["type"] == "websocket.close":
            self.closed_with = message["code"]
            return None
        if found := re.match(r"<!--\d+ (\d+)-->", message["text"]):
            self.drawn = int(found.group(1))
        else:
            self.others += 1
        if self.acknowledges:
            await self.acknowledge()
        return message["text"]

    async def acknowledge(self) -> None:
        """Say what was drawn, as the page's script does."""
        said = {"drawn": self.drawn, "others": self.others}
        said = {name: number for name, number in said.items() if number is not None}
        await self.socket.send_to(json.dumps(said))

    async def catch_up(self) -> Timeline:
        """Apply frames until the page shows everything that is recorded."""
        last = await in_thread(_last_seq, self.session)
        while self.timeline.last < last:
            frame = await self.frame()
            assert frame is not None, f"the socket was closed with {self.closed_with}"
            self.timeline.apply(frame)
        return self.timeline


def socket(
    client: Client, path: str, *, origin: str = "http://testserver"
) -> WebsocketCommunicator:
    cookies = "; ".join(f"{name}={morsel.value}" for name, morsel in client.cookies.items())
    headers = [
        (b"host", b"testserver"),
        (b"origin", origin.encode()),
        (b"cookie", cookies.encode()),
    ]
    return WebsocketCommunicator(application, path, headers=headers)


def _last_seq(session: Session) -> int:
    return Session.objects.values_list("last_seq", flat=True).get(pk=session.pk)

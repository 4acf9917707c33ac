"""Pages and sockets while the database is away: try again, and nothing that was shown is lost."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from django import db
from django.db import transaction

from sessions_app import feeds, rail
from sessions_app.events import MessageCreated
from sessions_app.models import Session
from sessions_app.threads import in_thread

from .conftest import signed_in
from .pages import Watcher, socket

pytestmark = pytest.mark.django_db(transaction=True)


class Failing:
    """Stands in for an asynchronous method and fails the first few times."""

    def __init__(self, method: Any, times: int) -> None:
        self.method, self.times, self.calls = method, times, 0

    def __get__(self, instance: object, owner: type) -> Any:
        async def call(*args: Any) -> Any:
            self.calls += 1
            if self.calls <= self.times:
                raise psycopg.OperationalError("the connection is lost")
            return await self.method(instance, *args)

        return call


def note(session: Session, text: str) -> None:
    with transaction.atomic():
        session.record(MessageCreated(role="assistant", text=text))


def test_a_page_without_a_database_says_to_try_again_and_the_log_takes_one_line(
    alice, monkeypatch, caplog
):
    client = signed_in(alice)
    client.raise_request_exception = False

    def fail(*args: object, **kwargs: object) -> None:
        raise db.OperationalError("server closed the connection unexpectedly\nand more")

    monkeypatch.setattr("sessions_app.views.sessions.rail_context", fail)
    answer = client.get("/")
    assert (answer.status_code, answer["Retry-After"]) == (503, "2")
    assert "The database does not answer" in answer.content.decode()
    [record] = [r for r in caplog.records if r.name == "django.request"]
    assert record.getMessage().endswith("/: server closed the connection unexpectedly")
    assert (record.levelname, record.exc_info) == ("WARNING", None)


def test_a_mistake_of_ours_is_still_one_and_the_log_says_where(alice, monkeypatch, caplog):
    client = signed_in(alice)
    client.raise_request_exception = False
    monkeypatch.setattr("sessions_app.views.sessions.rail_context", lambda *args, **kwargs: 1 / 0)
    assert client.get("/").status_code == 500
    [record] = [r for r in caplog.records if r.name == "django.request"]
    assert record.levelname == "ERROR"
    assert record.exc_info is not None


@pytest.mark.usefixtures("one_loop")
async def test_a_feed_keeps_its_readers_while_the_database_is_away(session, alice, monkeypatch):
    failing = Failing(feeds.Feed._read, times=2)
    monkeypatch.setattr(feeds.Feed, "_read", failing)
    monkeypatch.setattr(feeds, "AWAY_SECONDS", 0.01)
    async with Watcher(session, alice) as watcher:
        await in_thread(note, session, "said while nobody could read")
        timeline = await watcher.catch_up()
        assert "said while nobody could read" in timeline.text()
        assert failing.calls > 2


@pytest.mark.usefixtures("one_loop")
async def test_lists_are_told_at_the_next_look_what_could_not_be_asked_at_this_one(
    session, alice, monkeypatch
):
    failing = Failing(rail.RailFeed._changes, times=2)
    monkeypatch.setattr(rail.RailFeed, "_changes", failing)
    async with Watcher(session, alice) as watcher:
        frame = await watcher.frame()
        while frame is not None and "<!--" in frame:
            frame = await watcher.frame()
        assert frame is not None, "the socket was closed"
        assert "lists" in frame
        assert failing.calls > 2


@pytest.mark.usefixtures("one_loop")
async def test_a_socket_that_finds_no_database_is_told_to_come_back(session, alice, monkeypatch):
    def fail(*args: object) -> None:
        raise db.OperationalError("the database system is starting up")

    client = await in_thread(signed_in, alice)
    monkeypatch.setattr("sessions_app.consumers._last_seq", fail)
    opened = socket(client, f"/ws/sessions/{session.pk}/?after=0")
    assert (await opened.connect())[0]
    message = await opened.receive_output(timeout=5)
    assert (message["type"], message["code"]) == ("websocket.close", 1011)

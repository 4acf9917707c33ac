"""The cast and the stage: alice owns, bob approves, charlie is an outsider."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client

from sessions_app import engine, feeds, live, rail, readers
from sessions_app.environments import registry as environments
from sessions_app.environments.local import LocalProvider
from sessions_app.models import Agent, Session
from sessions_app.threads import close_pool


@pytest.fixture(autouse=True)
def _own_files(settings, tmp_path_factory) -> Iterator[None]:
    """Give every test its own artifacts and environments, and passwords that cost nothing."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    root: Path = tmp_path_factory.mktemp("data")
    settings.STORAGES = {
        **settings.STORAGES,
        "artifacts": {
            "BACKEND": "sessions_app.storage.ContentStorage",
            "OPTIONS": {"location": root / "artifacts"},
        },
    }
    provider = environments._providers["local"]
    environments._providers["local"] = LocalProvider(root / "environments")
    yield
    environments._providers["local"] = provider


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker) -> Iterator[None]:
    """At the end, close what threads of the tests still have open, so that it can be dropped."""
    yield
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


@pytest.fixture(autouse=True)
def _fresh_process() -> Iterator[None]:
    """No worker and no home loop is carried from one test to the next."""
    engine.replace_worker(None)
    live._home = None
    yield
    engine.replace_worker(None)
    live._home = None


@pytest.fixture
async def one_loop() -> AsyncIterator[None]:
    """Everything of a test with sockets lives on its loop and ends with it."""
    live.attach(asyncio.get_running_loop())
    yield
    for feed in list(feeds._feeds.values()):
        feed.readers.clear()
        feed.wake.set()
    if rail._feed is not None:
        rail._feed.readers.clear()
    here = asyncio.get_running_loop()
    tasks = [*readers.tasks, *([feeds._polling] if feeds._polling else [])]
    # A test without this may have left some behind, on a loop that is closed.
    tasks = [task for task in tasks if task.get_loop() is here]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    feeds._feeds.clear()
    rail._feed = feeds._polling = None
    await close_pool()
    await _end_what_is_left()


async def _end_what_is_left() -> None:
    """Cancel as often as it takes, as a process does at its end.

    Python 3.11 may lose a cancellation that comes together with what a task waits for.
    """
    this = asyncio.current_task()
    for _ in range(5):
        if not (left := asyncio.all_tasks() - {this}):
            return
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=1)


@pytest.fixture
def alice(db: None) -> User:
    return User.objects.create_user("alice", password="alice")


@pytest.fixture
def bob(db: None) -> User:
    return User.objects.create_user("bob", password="bob")


@pytest.fixture
def charlie(db: None) -> User:
    return User.objects.create_user("charlie", password="charlie")


@pytest.fixture
def staff(db: None) -> User:
    return User.objects.create_superuser("admin", password="admin")


@pytest.fixture
def agent(alice: User, bob: User) -> Agent:
    agent = Agent.objects.create(name="Runbook", runner="runbook")
    agent.members.set([alice, bob])
    return agent


@pytest.fixture
def session(agent: Agent, alice: User) -> Session:
    """A session with one queued turn."""
    session, _ = Session.objects.start(agent=agent, owner=alice, instruction="Just a word.")
    return session


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


async def work(session_id: str) -> None:
    """Do what a worker does when it is woken for a session."""
    live.attach(asyncio.get_running_loop())
    try:
        await engine.worker().advance(session_id)
    finally:
        await close_pool()

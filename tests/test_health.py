"""What machines that watch are told, and how quickly."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from channels.layers import channel_layers
from django.db import connection
from django.test import AsyncClient, Client

from config import watch
from sessions_app import health
from sessions_app.hints import HintLayer
from sessions_app.threads import connection_parameters, in_thread

from .fleet import Fleet
from .installation import Installation, free_port


@pytest.fixture(autouse=True)
def _ask_anew(monkeypatch) -> None:
    monkeypatch.setattr(health, "_report", None)


@pytest.fixture
def silence() -> Iterator[int]:
    """The port of somebody who takes calls and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def _no_workers(transactional_db) -> Iterator[None]:
    """The table is not one of Django's, so nobody empties it for us."""
    forget_workers()
    yield
    forget_workers()


def forget_workers() -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM procrastinate_workers")


def beat(seconds_ago: float) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO procrastinate_workers (last_heartbeat)"
            " VALUES (now() - make_interval(secs => %s))",
            [seconds_ago],
        )


async def ready() -> tuple[int, dict[str, Any]]:
    answer = await AsyncClient().get("/readyz")
    return answer.status_code, answer.json()


def database_at(monkeypatch, port: int) -> None:
    elsewhere = {**connection_parameters(), "host": "127.0.0.1", "port": port}
    monkeypatch.setattr(health, "connection_parameters", lambda: elsewhere)


def test_healthz_answers_anybody_and_asks_nobody():
    # Without a database mark: a query would fail the test.
    answer = Client().get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"ok": True})
    assert "no-store" in answer["Cache-Control"]


@pytest.mark.usefixtures("_no_workers")
async def test_readyz_names_every_part_and_is_well_when_all_are():
    await in_thread(beat, 3)
    status, said = await ready()
    age = said["worker"].pop("last_heartbeat_seconds")
    assert 3 <= age < 10
    assert status == 200
    assert said == {
        "ready": True,
        "database": {"ok": True},
        "layer": {"ok": True, "kind": "memory"},
        "worker": {"ok": True, "count": 1},
    }


@pytest.mark.usefixtures("_no_workers")
@pytest.mark.parametrize("beats", [[], [20.0, 400.0]])
async def test_readyz_misses_a_worker_that_is_not_there_or_was_not_heard_of(beats):
    for each in beats:
        await in_thread(beat, each)
    status, said = await ready()
    assert status == 503
    assert not said["ready"]
    assert said["database"]["ok"]
    assert said["worker"]["count"] == 0
    assert "no worker" in said["worker"]["error"]


@pytest.mark.django_db
async def test_readyz_says_that_the_database_is_away_and_not_where_it_was(monkeypatch):
    port = free_port()
    database_at(monkeypatch, port)
    status, said = await ready()
    assert status == 503
    assert said["database"] == {"ok": False, "error": "does not answer (OperationalError)"}
    assert not said["worker"]["ok"]
    assert said["layer"]["ok"]
    assert str(port) not in str(said)


@pytest.mark.django_db
async def test_readyz_does_not_wait_for_a_database_and_a_redis_that_hang(monkeypatch, silence):
    monkeypatch.setattr(health, "PATIENCE", 0.3)
    database_at(monkeypatch, silence)
    hosts = [{"address": f"redis://127.0.0.1:{silence}"}]
    before = channel_layers.set("default", HintLayer(hosts=hosts))
    begun = time.monotonic()
    status, said = await ready()
    channel_layers.set("default", before)
    assert time.monotonic() - begun < 2
    assert status == 503
    assert said["layer"] == {
        "ok": False,
        "error": "does not answer (TimeoutError)",
        "kind": "redis",
    }


@pytest.mark.django_db(transaction=True)
async def test_however_many_ask_at_once_the_database_is_asked_once(monkeypatch):
    asked = []
    parameters = connection_parameters()
    monkeypatch.setattr(health, "KEPT", 60.0)
    monkeypatch.setattr(health, "connection_parameters", lambda: asked.append(1) or parameters)
    await asyncio.gather(*(ready() for _ in range(20)))
    await ready()
    assert len(asked) == 1


# -- a worker's own port -----------------------------------------------------------------------


@pytest.fixture
def listened() -> Iterator[tuple[str, asyncio.AbstractEventLoop]]:
    """A loop in a thread of its own, and the address where it is watched."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = watch.listen("127.0.0.1", 0, loop)
    yield f"http://127.0.0.1:{server.server_port}", loop
    server.shutdown()
    server.server_close()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def fetched(address: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.django_db(transaction=True)
def test_a_worker_shows_its_metrics_and_that_its_loop_comes_round(listened):
    base, _ = listened
    assert fetched(f"{base}/healthz") == (200, "ok\n")
    status, said = fetched(f"{base}/metrics")
    assert status == 200
    assert "signalbox_running 0.0" in said
    assert fetched(f"{base}/elsewhere")[0] == 404


def test_a_worker_whose_loop_is_stuck_is_seen_to_be(listened, monkeypatch):
    base, loop = listened
    monkeypatch.setattr(watch, "ANSWER_SECONDS", 0.2)
    stuck, go_on = threading.Event(), threading.Event()
    loop.call_soon_threadsafe(lambda: (stuck.set(), go_on.wait(20)))
    stuck.wait(20)
    assert fetched(f"{base}/healthz") == (503, "stuck\n")
    go_on.set()


@pytest.mark.django_db(transaction=True)
def test_a_worker_asks_for_the_token_when_there_is_one(listened, settings):
    base, _ = listened
    settings.SIGNALBOX = {**settings.SIGNALBOX, "METRICS_TOKEN": "open sesame"}
    assert fetched(f"{base}/metrics")[0] == 401
    assert fetched(f"{base}/metrics", Authorization="Bearer sesame")[0] == 401
    assert fetched(f"{base}/metrics", Authorization="Bearer open sesame")[0] == 200
    assert fetched(f"{base}/healthz")[0] == 200


def test_a_port_that_is_taken_is_said_to_be(silence):
    loop = asyncio.new_event_loop()
    with pytest.raises(OSError, match=f"Cannot listen on 127.0.0.1:{silence}"):
        watch.listen("127.0.0.1", silence, loop)
    loop.close()


@pytest.fixture
def nowhere(tmp_path) -> Iterator[Fleet]:
    """Processes that do not get as far as the database."""
    made = Fleet(Installation(tmp_path, "postgresql://nobody@127.0.0.1:1/none"), None)
    yield made
    made.end()


def test_a_worker_command_whose_port_is_taken_says_so(nowhere, silence):
    worker = nowhere.worker("worker", "--metrics-port", str(silence))
    assert worker.ended() == 1
    assert f"Cannot listen on 127.0.0.1:{silence}" in worker.log()


def test_a_worker_command_without_a_slot_is_refused(nowhere):
    worker = nowhere.worker("worker", "--concurrency", "0")
    assert worker.ended() == 2
    assert "a number from 1 on" in worker.log()

"""The channel layer on a real Redis: nobody waits for it, and what is missed is made good."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from channels.layers import channel_layers, get_channel_layer
from django.core.exceptions import ImproperlyConfigured

from config import env
from sessions_app import live
from sessions_app.hints import HintLayer

from .redis_server import RedisServer, redis_server

SOON = 10.0


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as made:
        yield made


@pytest.fixture
def shared(server: RedisServer, monkeypatch) -> Iterator[RedisServer]:
    """Have the layer of this test be the one on Redis, connected as REDIS_URL says."""
    monkeypatch.setenv("REDIS_URL", server.url)
    before = channel_layers.set("default", HintLayer(hosts=[env.redis_host()]))
    yield server
    channel_layers.set("default", before)
    if server.process is None:
        server.start()
    server.thaw()


async def joined(group: str) -> str:
    layer = get_channel_layer()
    channel = await layer.new_channel()
    await layer.group_add(group, channel)
    return str(channel)


async def heard(channel: str) -> dict[str, Any]:
    return dict(await asyncio.wait_for(get_channel_layer().receive(channel), SOON))


async def sent_until_heard(group: str, channel: str) -> None:
    """Hint again and again, until one arrives; what was sent before may arrive as well."""
    said: dict[str, Any] = {}
    while said != {"type": "again"}:
        listening = asyncio.create_task(heard(channel))
        while not listening.done():
            await get_channel_layer().group_send(group, {"type": "again"})
            await asyncio.wait([listening], timeout=0.05)
        said = listening.result()


async def test_a_hint_reaches_everybody_in_the_group_and_nobody_else(shared):
    first, second, other = await joined("a"), await joined("a"), await joined("b")
    await get_channel_layer().group_send("a", {"type": "look"})
    await get_channel_layer().group_send("b", {"type": "elsewhere"})
    assert await heard(first) == await heard(second) == {"type": "look"}
    assert await heard(other) == {"type": "elsewhere"}


async def test_hints_that_say_the_same_at_once_are_sent_once_and_drafts_keep_their_order(shared):
    channel = await joined("a")
    layer = get_channel_layer()
    for number in range(3):
        await layer.group_send("a", {"type": "session.changed"})
        await layer.group_send("a", {"type": "session.draft", "text": str(number)})
    said = [await heard(channel) for _ in range(4)]
    assert [each.get("text", each["type"]) for each in said] == ["session.changed", "0", "1", "2"]


async def test_a_hint_from_a_thread_without_a_loop_leaves_from_the_home_loop(shared):
    live.attach(asyncio.get_running_loop())
    channel = await joined(live.session_group("s"))
    thread = threading.Thread(target=live._hint_session, args=("s", False))
    thread.start()
    assert await heard(channel) == {"type": "session.changed"}
    thread.join()


async def test_a_hint_from_a_process_without_sockets_or_workers_arrives_too(shared):
    channel = await joined(live.session_group("s"))
    assert live._home is None
    for _ in range(2):  # Each on a loop of its own: nothing is left over from the one before.
        await asyncio.to_thread(live._hint_session, "s", False)
        assert await heard(channel) == {"type": "session.changed"}


async def test_several_loops_of_one_process_each_hear_for_themselves(shared):
    heard_there: list[dict[str, Any]] = []
    listens = threading.Event()

    async def elsewhere() -> None:
        channel = await joined("a")
        listens.set()
        heard_there.append(await heard(channel))

    thread = threading.Thread(target=asyncio.run, args=(elsewhere(),))
    thread.start()
    channel = await joined("a")
    await asyncio.to_thread(listens.wait, SOON)
    await get_channel_layer().group_send("a", {"type": "look"})
    assert await heard(channel) == {"type": "look"}
    await asyncio.to_thread(thread.join, SOON)
    assert heard_there == [{"type": "look"}]


@pytest.mark.parametrize("away", ["stop", "freeze"])
async def test_nobody_waits_for_a_redis_that_is_away_and_one_line_says_so(shared, caplog, away):
    layer = get_channel_layer()
    channel = await joined("a")
    await sent_until_heard("a", channel)
    getattr(shared, away)()
    begun = time.monotonic()
    for _ in range(500):
        await layer.group_send("a", {"type": "lost"})
    assert time.monotonic() - begun < 0.5
    lines = [record for record in caplog.records if "does not answer" in record.message]
    while not lines:
        await layer.group_send("a", {"type": "lost"})
        await asyncio.sleep(0.05)
        lines = [record for record in caplog.records if "does not answer" in record.message]
    begun = time.monotonic()
    later = [await joined("b") for _ in range(50)]
    assert time.monotonic() - begun < 3

    shared.start() if away == "stop" else shared.thaw()
    await sent_until_heard("a", channel)
    for each in later[:2]:
        await sent_until_heard("b", each)
    assert sum("does not answer" in record.message for record in caplog.records) <= 2
    assert any("answers again" in record.message for record in caplog.records)


async def test_a_group_that_was_left_while_redis_was_away_is_not_joined_afterwards(shared):
    layer = get_channel_layer()
    keeper = await joined("kept")
    await sent_until_heard("kept", keeper)
    shared.stop()
    channel = await joined("left")
    await layer.group_discard("left", channel)
    stays = await joined("stays")
    shared.start()
    await sent_until_heard("stays", stays)
    client = redis.Redis.from_url(shared.url)
    assert b"asgi__group__left" not in client.pubsub_channels()
    client.close()


@pytest.mark.parametrize("rounds", range(0, 60, 4))
def test_whoever_is_cancelled_while_joining_ends(shared, rounds):
    """However far the connection has come; redis-py swallows a cancellation at some points."""

    async def cancelled() -> bool:
        async def listen() -> None:
            await get_channel_layer().receive(await joined("a"))

        listening = asyncio.create_task(listen())
        for _ in range(rounds):
            await asyncio.sleep(0)
        listening.cancel()
        done, _ = await asyncio.wait([listening], timeout=2)
        return bool(done)

    assert asyncio.run(cancelled())


async def test_a_ping_says_whether_redis_answers(shared):
    layer = get_channel_layer()
    await layer.ping()
    shared.stop()
    with pytest.raises(redis.ConnectionError):
        await layer.ping()


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost:6379"])
def test_an_address_that_is_no_redis_is_refused_with_what_to_do(monkeypatch, url):
    monkeypatch.setenv("REDIS_URL", url)
    with pytest.raises(ImproperlyConfigured, match="redis://"):
        env.redis_host()


def test_a_socket_in_the_file_system_is_an_address_too(monkeypatch):
    monkeypatch.setenv("REDIS_URL", "unix:///run/redis.sock")
    options = env.redis_host()
    assert options is not None
    assert "socket_keepalive" not in options

"""Channels' layer on Redis pub/sub, made for hints: Redis may be away, and nobody waits for it.

Sending only queues; what cannot be sent is dropped. Joining a group succeeds at once, and is made
good as soon as Redis answers. Readers look by timer meanwhile. One line tells that Redis is away,
and one that it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any

from channels_redis.pubsub import RedisPubSubChannelLayer, RedisSingleShardConnection
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from . import metrics

logger = logging.getLogger(__name__)

AWAY = (RedisError, OSError, TimeoutError)
AGAIN_SECONDS = 1.0
STILL_AWAY_SECONDS = 60.0
MOST_WAITING = 1000
MOST_AT_ONCE = 100


class HintLayer(RedisPubSubChannelLayer):
    """One connection to Redis per event loop, as in the library; the connection is ours."""

    def _get_layer(self) -> Any:
        known = asyncio.get_running_loop() in self._layers
        layer = super()._get_layer()
        if not known:
            layer._shards = [HintConnection(shard.host, layer) for shard in layer._shards]
        return layer

    async def ping(self) -> None:
        """Raise what keeps Redis from answering."""
        for shard in self._get_layer()._shards:
            await shard.ping()


async def _apart(step: Coroutine[Any, Any, Any]) -> None:
    """Do a step in a task of its own: redis-py may swallow that whoever asked was cancelled."""
    await asyncio.shield(asyncio.get_running_loop().create_task(step))


class Subscriber(PubSub):
    """redis-py's, except that it never connects again in passing.

    There, whoever speaks while the connection is lost connects it, also while another reads it:
    their reads collide, or what one subscribed to is lost with the other's connection.
    """

    async def _reconnect(self, conn: Any, error: Any = None, *rest: Any) -> None:
        raise error


class HintConnection(RedisSingleShardConnection):
    """Publishes and subscribes when it can, and never holds up or fails who asked for it."""

    def __init__(self, host: dict[str, Any], channel_layer: Any) -> None:
        super().__init__(host, channel_layer)
        self._outbox: deque[tuple[str, bytes]] = deque(maxlen=MOST_WAITING)
        self._sending: asyncio.Task[None] | None = None
        self._missing: set[str] = set()
        self._pubsub: Any = None
        self._redis: Any = None
        self._joining = asyncio.Lock()
        self._subscribed = asyncio.Event()
        self._connected = True
        """Whether the subscriber may be spoken to; when it is not, who reads it connects it."""
        self._mending: asyncio.Task[None] | None = None
        self._away_since: float | None = None
        self._told = self._quiet_until = 0.0

    # -- sending -------------------------------------------------------------------------------

    async def publish(self, channel: str, message: bytes) -> None:
        """Queue a hint and return; while Redis is away it is dropped."""
        if time.monotonic() < self._quiet_until:
            metrics.HINTS_LOST.inc()
            return
        self._outbox.append((channel, message))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.get_running_loop().create_task(self._send())

    async def _send(self) -> None:
        while self._outbox:
            count = min(len(self._outbox), MOST_AT_ONCE)
            batch = [self._outbox[at] for at in range(count)]
            try:
                self._ensure_redis()
                async with self._redis.pipeline(transaction=False) as pipe:
                    # The same hint twice at once says nothing more.
                    for channel, message in dict.fromkeys(batch):
                        pipe.publish(channel, message)
                    await pipe.execute()
            except AWAY as error:
                metrics.HINTS_LOST.inc(len(self._outbox))
                self._outbox.clear()
                self._is_away(error)
            else:
                # Taken out only now: who is cut off while sending leaves them for `flush`.
                for _ in range(count):
                    self._outbox.popleft()
                self._is_back()

    async def ping(self) -> None:
        self._ensure_redis()
        await _apart(self._redis.ping())

    async def flush(self) -> None:
        """Send what waits, then close; a loop that ends has cancelled who was to send it."""
        for task in (self._sending, self._mending):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._sending = self._mending = None
        self._missing.clear()
        await self._send()
        await super().flush()
        self._connected = True

    # -- listening -----------------------------------------------------------------------------

    async def subscribe(self, channel: str) -> None:
        """Subscribe, or see to it later."""
        await _apart(self._subscribe(channel))

    async def _subscribe(self, channel: str) -> None:
        # One at a time: when Redis hangs, the first finds out and the others need not wait for it.
        async with self._joining:
            if time.monotonic() >= self._quiet_until and await self._try_to_subscribe(channel):
                return
        self._missing.add(channel)
        self._mend_soon()

    async def _try_to_subscribe(self, channel: str) -> bool:
        try:
            async with self._lock:
                if not self._connected:
                    return False
                if channel not in self._subscribed_to:
                    self._ensure_redis()
                    self._ensure_receiver()
                    await self._pubsub.subscribe(channel)
                    self._subscribed_to.add(channel)
        except AWAY as error:
            self._is_away(error)
            return False
        self._subscribed.set()
        return True

    async def unsubscribe(self, channel: str) -> None:
        self._missing.discard(channel)
        await _apart(self._unsubscribe(channel))

    async def _unsubscribe(self, channel: str) -> None:
        try:
            async with self._lock:
                # What still comes when this cannot be said is for nobody, and is passed over.
                self._subscribed_to.discard(channel)
                if self._connected and self._pubsub is not None:
                    await self._pubsub.unsubscribe(channel)
        except AWAY as error:
            self._is_away(error)

    def _mend_soon(self) -> None:
        if self._mending is None or self._mending.done():
            self._mending = asyncio.get_running_loop().create_task(self._mend())

    async def _mend(self) -> None:
        """Make good what could not be subscribed to while Redis was away."""
        while self._missing:
            await asyncio.sleep(AGAIN_SECONDS)
            for channel in list(self._missing):
                if not await self._try_to_subscribe(channel):
                    break
                if channel in self._missing:
                    self._missing.discard(channel)
                else:
                    await self.unsubscribe(channel)
            else:
                self._is_back()

    async def _do_receiving(self) -> None:
        """Pass on what comes; connect again when the connection is lost."""
        while True:
            try:
                if not (self._pubsub and self._pubsub.subscribed):
                    self._subscribed.clear()
                    await self._subscribed.wait()
                if not self._connected:
                    await self._connect_again()
                self._receive_message(
                    await self._pubsub.get_message(ignore_subscribe_messages=True, timeout=0.5)
                )
            except AWAY as error:
                self._connected = False
                self._is_away(error)
                with contextlib.suppress(*AWAY):
                    await self._pubsub.connection.disconnect()
                await asyncio.sleep(AGAIN_SECONDS)
            except Exception:
                logger.exception("A hint could not be taken in.")
                await asyncio.sleep(AGAIN_SECONDS)

    async def _connect_again(self) -> None:
        """Connect, which subscribes again to everything; nobody else speaks meanwhile."""
        async with self._lock:
            await self._pubsub.connection.connect()
            self._connected = True
        self._is_back()

    def _ensure_redis(self) -> None:
        if self._redis is None:
            super()._ensure_redis()
            made: Any = self._redis
            self._pubsub = Subscriber(made.connection_pool)

    # -- being away and back -------------------------------------------------------------------

    def _is_away(self, error: BaseException) -> None:
        now = time.monotonic()
        self._quiet_until = now + AGAIN_SECONDS
        if self._away_since is None:
            self._away_since = now
        elif now < self._told + STILL_AWAY_SECONDS:
            return
        self._told = now
        logger.warning("Redis does not answer; everything comes by timer until it does: %s", error)

    def _is_back(self) -> None:
        if self._away_since is not None:
            away = time.monotonic() - self._away_since
            self._away_since, self._quiet_until = None, 0.0
            logger.warning("Redis answers again, after %.0f s.", away)

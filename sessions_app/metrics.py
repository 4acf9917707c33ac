"""What is counted, and how it is told to Prometheus.

A process counts what it does itself. What lies in the database is counted there when somebody asks,
with one query, so every process tells the same of it.
"""

from __future__ import annotations

import hmac
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import psycopg
from django.conf import settings
from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE

from .health import WORKER_SILENT
from .threads import connection_parameters

if TYPE_CHECKING:
    from .models import Turn
    from .models.event import Recorded

__all__ = ["CONTENT_TYPE", "claimed", "exposition", "found_by_timer", "hinted", "may_read"]

logger = logging.getLogger(__name__)

KEPT = 1.0
QUICK = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 15, 60)
# A hint that is on its way when the timer looks was not lost.
ON_ITS_WAY = 1.0

STATES = ("QUEUED", "RUNNING", "WAITING_FOR_INPUT", "WAITING_FOR_PERMISSION")
# One look at the turns that have not ended, which an index keeps apart from all the others.
COUNTS = """
WITH unfinished AS MATERIALIZED (
    SELECT session_id, state,
           state = 'RUNNING' AND coalesce(lease_until < now(), true) AS unheld
      FROM sessions_app_turn
     WHERE state NOT IN ('COMPLETED', 'FAILED', 'CANCELLED')),
waiting AS (
    SELECT bool_or(unheld) OR bool_and(state = 'QUEUED') AS for_a_worker
      FROM unfinished GROUP BY session_id)
SELECT (SELECT coalesce(jsonb_object_agg(state, n), '{}')
          FROM (SELECT state, count(*) AS n FROM unfinished GROUP BY state) AS counted),
       (SELECT count(*) FROM waiting WHERE for_a_worker),
       (SELECT count(*) FROM procrastinate_workers
         WHERE last_heartbeat > now() - make_interval(secs => %(silent)s))
"""

CLAIM = Histogram(
    "signalbox_claim_seconds",
    "From what made a turn ready to run (submitted, decided, let go of) to its claim here.",
    ["attempt"],
    buckets=QUICK,
)
RUNNING = Gauge("signalbox_running", "Turns that this process runs now.")
EMIT_TO_FRAME = Histogram(
    "signalbox_emit_to_frame_seconds",
    "From an event's time in the database to the frame that carries it to its readers.",
    buckets=QUICK,
)
SOCKETS = Gauge("signalbox_sockets", "Websockets that are open in this process.")
FOUND_BY_TIMER = Counter(
    "signalbox_found_by_timer_total",
    "News that a timer found because no hint told of it.",
    ["by"],
)
HINTS_LOST = Counter(
    "signalbox_hints_lost_total", "Hints that this process could not send to the channel layer."
)
for by in ("feed", "rescue"):
    FOUND_BY_TIMER.labels(by)


def claimed(turn: Turn) -> None:
    """Count how long a turn that was just claimed had waited for it."""
    waited = time.time() - turn.ready_at.timestamp() if turn.ready_at else 0.0
    CLAIM.labels("first" if turn.attempt == 1 else "later").observe(max(0.0, waited))


# -- feeds -------------------------------------------------------------------------------------


class _Watch:
    """What is known of one feed: since when it lives, what it told, when it was last hinted."""

    def __init__(self) -> None:
        self.since = datetime.now(UTC)
        self.told = 0
        self.hinted = 0.0


_watches: WeakKeyDictionary[object, _Watch] = WeakKeyDictionary()


def _watch(feed: object) -> _Watch:
    watch = _watches.get(feed)
    if watch is None:
        watch = _watches[feed] = _Watch()
    return watch


def hinted(feed: object) -> None:
    """A hint reached a feed."""
    _watch(feed).hinted = time.monotonic()


def found_by_timer(feed: object) -> None:
    """The poll found news for a feed: a lost hint, unless one came just now."""
    if time.monotonic() > _watch(feed).hinted + ON_ITS_WAY:
        FOUND_BY_TIMER.labels("feed").inc()


def frame_sent(feed: object, page: Sequence[Recorded]) -> None:
    """Count how long the events of a frame took. Those told before, to catch up, do not count."""
    watch = _watch(feed)
    now = time.time()
    for event in page:
        if event.seq > watch.told and event.created_at >= watch.since:
            EMIT_TO_FRAME.observe(max(0.0, now - event.created_at.timestamp()))
    watch.told = max(watch.told, page[-1].seq)


# -- telling -----------------------------------------------------------------------------------


class _FromDatabase:
    """Counts of the database, asked when somebody asks for them and kept for a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = -KEPT
        self._row: Sequence[Any] | None = None

    def describe(self) -> Iterable[Metric]:
        # Registering must not ask the database.
        return []

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            if time.monotonic() > self._asked + KEPT:
                self._row = _counts()
                self._asked = time.monotonic()
            row = self._row
        up = GaugeMetricFamily("signalbox_database_up", "Whether the database answered.")
        up.add_metric([], float(row is not None))
        yield up
        if row is None:
            return
        states, depth, workers = row
        turns = GaugeMetricFamily(
            "signalbox_turns", "Turns that have not ended, in all processes.", labels=["state"]
        )
        for state in STATES:
            turns.add_metric([state], states.get(state, 0))
        yield turns
        ready = "Sessions with a turn that is ready to run and that no worker has."
        yield GaugeMetricFamily("signalbox_queue_depth", ready, depth)
        yield GaugeMetricFamily("signalbox_workers", "Workers that are alive.", workers)


def _counts() -> Sequence[Any] | None:
    parameters = {**connection_parameters(), "connect_timeout": 2}
    try:
        with psycopg.connect(**parameters, autocommit=True) as opened:
            opened.execute("SET statement_timeout = '2s'")
            return opened.execute(COUNTS, {"silent": WORKER_SILENT}).fetchone()
    except psycopg.Error as error:
        logger.debug("The database was not counted: %s", error)
        return None


REGISTRY.register(_FromDatabase())


def exposition() -> bytes:
    """Return everything in Prometheus' text format."""
    return generate_latest(REGISTRY)


def may_read(authorization: str, *, open_without_token: bool = False) -> bool:
    """Whether a request carries the token; without one set, what the listener says."""
    token: str = settings.SIGNALBOX["METRICS_TOKEN"]
    if not token:
        return open_without_token
    scheme, _, given = authorization.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(
        given.strip().encode(), token.encode()
    )

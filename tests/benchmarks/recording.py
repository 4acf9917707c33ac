"""`record()` beside the same SQL done bare.

Both sides have one connection and one session per writer, each a thread. The bare side executes the
product's statement in a transaction on a psycopg connection, with its parameters made beforehand;
the product's side is `Session.record` in a transaction, as every transition of state calls it, in a
process that has an event loop to send hints to.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import psycopg
from django.db import connections, transaction

from sessions_app import events, live
from sessions_app.models import Session
from sessions_app.models.event import APPEND, append_parameters

from . import load
from .report import Report, median
from .stage import Stage, database


def measure(stage: Stage, report: Report, *, rounds: int, seconds: float) -> None:
    report.part("record() beside the same SQL bare")
    loop = asyncio.new_event_loop()
    home = threading.Thread(target=loop.run_forever, daemon=True)
    home.start()
    live.attach(loop)
    try:
        for batch in (1, 20):
            for writers in (1, 8, 32):
                _compare(stage, report, batch, writers, rounds, seconds)
    finally:
        live._home = None
        loop.call_soon_threadsafe(loop.stop)
        home.join()
        loop.close()


def _compare(
    stage: Stage, report: Report, batch: int, writers: int, rounds: int, seconds: float
) -> None:
    payloads = [
        events.PAYLOADS[t](**d) for t, d in (load.said(load.Spec(), n) for n in range(batch))
    ]
    sessions = [_session(stage) for _ in range(2 * writers)]
    ours, bare = [], []
    with ExitStack() as stack:
        opened = [
            stack.enter_context(psycopg.connect(database(), autocommit=True))
            for _ in range(writers)
        ]
        for _ in range(rounds):
            bare.append(
                _together(
                    [
                        _bare(conn, append_parameters(session.pk, payloads, None, None))
                        for conn, session in zip(opened, sessions[writers:], strict=True)
                    ],
                    seconds,
                )
            )
            ours.append(_together([_ours(s, payloads) for s in sessions[:writers]], seconds))
    report.ratio_at_least(
        f"record(), batches of {batch}, {writers} writer{'s' * (writers > 1)}",
        median(ours) * batch,
        "events/s",
        beside=median(bare) * batch,
        least=0.5,
    )


def _session(stage: Stage) -> Session:
    return Session.objects.create(agent=stage.agent, owner=stage.people[0], title="Recording")


def _ours(session: Session, payloads: list[events.Payload]) -> Callable[[], None]:
    def once() -> None:
        with transaction.atomic():
            session.record(*payloads)

    return once


def _bare(conn: psycopg.Connection[Any], parameters: dict[str, Any]) -> Callable[[], None]:
    def once() -> None:
        with conn.transaction():
            conn.execute(APPEND, parameters).fetchone()

    return once


def _together(doings: list[Callable[[], None]], seconds: float) -> float:
    """Do each again and again in a thread of its own; return how often a second in all."""
    barrier = threading.Barrier(len(doings) + 1)
    done: list[int] = []
    failed: list[BaseException] = []

    def work(doing: Callable[[], None]) -> None:
        try:
            doing()
            barrier.wait(30)
            end, count = time.perf_counter() + seconds, 0
            while time.perf_counter() < end:
                doing()
                count += 1
            done.append(count)
        except BaseException as error:
            failed.append(error)
            barrier.abort()
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work, args=(doing,)) for doing in doings]
    for thread in threads:
        thread.start()
    try:
        barrier.wait(30)
    except threading.BrokenBarrierError:
        pass
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return sum(done) / (time.perf_counter() - start)

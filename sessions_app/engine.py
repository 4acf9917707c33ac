"""The turn engine: claim, run, record, finish; and the loops that keep it honest.

The Turn row is the lease. A job is only a wake-up: it may come twice, late or never. What makes a
turn run once is the conditional claim, the partial unique index, and the fence in every append.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
from channels.layers import get_channel_layer
from django.conf import settings
from django.db import connection, transaction
from procrastinate.contrib.django import app
from procrastinate.jobs import Status
from procrastinate.manager import JobManager

from . import chores, live, logs, metrics
from .models import Turn
from .run import TurnRun
from .threads import AWAY, connection_parameters, in_thread, why

logger = logging.getLogger(__name__)

AWAY_SECONDS = 0.5

RENEW = """
UPDATE sessions_app_turn
   SET lease_until = clock_timestamp() + %(lease)s
 WHERE id = ANY(%(turns)s) AND holder = %(holder)s AND state = 'RUNNING'
RETURNING id, attempt, cancel_requested_at IS NOT NULL
"""

# Work that nobody holds and that no waiting job will find.
UNNOTICED = """
SELECT session.id FROM unnest(%(sessions)s::text[]) AS session(id)
 WHERE NOT EXISTS (
    SELECT FROM procrastinate_jobs
     WHERE status = 'todo' AND task_name = 'advance' AND args->>'session_id' = session.id)
"""


@app.task(name="advance", pass_context=False)
async def advance(session_id: str) -> None:
    """Work through whatever the session has to do now. Harmless when there is nothing."""
    # Shielded: when the job's connection is lost, the work goes on under its lease.
    await asyncio.shield(worker().follow(session_id))


class Worker:
    """What this process holds: its turns, their leases, and the loops that look after them."""

    def __init__(self) -> None:
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self.stopping = asyncio.Event()
        self.jobs: JobManager | None = None
        """The job table, over a connection of the loop; set by whoever runs the worker."""
        self.slots = asyncio.Semaphore(settings.SIGNALBOX["CONCURRENCY"])
        self._runs: dict[str, TurnRun] = {}
        self._begun: dict[str, asyncio.Task[None]] = {}
        """What is being worked ahead of its job, which then only waits for it."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._advancing = 0
        self._look = asyncio.Event()
        options = settings.SIGNALBOX
        self.lease = timedelta(seconds=options["LEASE_SECONDS"])
        self._beat = options["HEARTBEAT_SECONDS"]

    # -- turns -----------------------------------------------------------------------------

    def begin(self, session_id: str) -> asyncio.Task[None]:
        """Advance a session in a task of the worker's own, and return it."""
        task = asyncio.get_running_loop().create_task(self._in_slot(session_id))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def follow(self, session_id: str) -> asyncio.Task[None]:
        """Advance a session for a job, or return the task that was begun ahead of it."""
        return self._begun.pop(session_id, None) or self.begin(session_id)

    def _begin_ahead(self, session_id: str) -> None:
        """Advance a session for a job that is still on its way, if there is room."""
        if self.jobs is None or session_id in self._begun or self.slots.locked():
            return
        task = self._begun[session_id] = self.begin(session_id)

        def over(_: asyncio.Task[None]) -> None:
            # A job that comes now looks for itself: there may be more to do, or all of it still.
            if self._begun.get(session_id) is task:
                del self._begun[session_id]

        task.add_done_callback(over)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.error("A session could not be advanced.", exc_info=error)

    async def _in_slot(self, session_id: str) -> None:
        async with self.slots:
            await self.advance(session_id)

    async def advance(self, session_id: str) -> None:
        self._advancing += 1
        try:
            with logs.about(session_id):
                while not self.stopping.is_set():
                    if not await self.step(session_id):
                        return
                # The wake-up that brought us here was for all of it: what is left needs another.
                await in_thread(_pass_on, session_id)
        except AWAY as error:
            # Whatever was to be done is found by `rescue`, here or elsewhere.
            logger.warning("Session %s waits for the database: %s", session_id, why(error))
        finally:
            self._advancing -= 1

    async def step(self, session_id: str) -> bool:
        """Claim one turn and run it until it ends, parks or is lost; say whether there was one."""
        turn = await in_thread(Turn.objects.claim, session_id, self.holder, lease=self.lease)
        if turn is None:
            return False
        metrics.claimed(turn)
        if earlier := self._runs.get(turn.pk):
            # Our own lease ran out, and we were the first to notice.
            earlier.lose()
            await earlier.ended.wait()
        run = self._runs[turn.pk] = TurnRun(turn, self)
        try:
            if turn.cancel_requested_at is not None:
                run.cancel()
            with logs.about(session_id, turn.pk), metrics.RUNNING.track_inprogress():
                await run.work()
        finally:
            if self._runs.get(turn.pk) is run:
                del self._runs[turn.pk]
        return True

    # -- loops, each a step that is repeated --------------------------------------------------

    async def heartbeat(self) -> None:
        """Renew the leases, pass on requests to cancel, and stop what is not ours any more."""
        held = {turn: run for turn, run in self._runs.items() if not run.finishing}
        if not held:
            return
        asked = time.monotonic()
        # Not from the pool, which after a restart of the database waits longer and longer before
        # it tries again: leases would run out meanwhile.
        opening = psycopg.AsyncConnection.connect(**connection_parameters(), autocommit=True)
        async with await opening as conn:
            cursor = await conn.execute(
                RENEW, {"lease": self.lease, "turns": list(held), "holder": self.holder}
            )
            rows = await cursor.fetchall()
        ours = {(turn, attempt): cancel for turn, attempt, cancel in rows}
        for turn, run in held.items():
            cancel = ours.get((turn, run.turn.attempt))
            if cancel is None and not run.finishing:
                run.lose()
            else:
                run.renewed = asked
                if cancel:
                    run.cancel()

    async def let_go(self) -> None:
        """Stop runs whose lease could not be renewed in time: others may have taken them up."""
        expired = time.monotonic() - self.lease.total_seconds()
        for run in list(self._runs.values()):
            if run.renewed < expired and not run.finishing:
                with logs.about(run.turn.session_id, run.turn.pk):
                    logger.warning("The lease of %s could not be renewed.", run.turn.fence)
                run.lose()

    async def rescue(self) -> None:
        """Wake somebody for work that nobody holds: lost workers, lost wake-ups."""
        for session_id in await in_thread(_unnoticed):
            logger.debug("Session %s has work that nobody holds; waking a worker.", session_id)
            metrics.FOUND_BY_TIMER.labels("rescue").inc()
            await in_thread(_wake, session_id)

    async def forget_dead_jobs(self) -> None:
        """Delete wake-ups that a dead worker had taken; the turns themselves are rescued."""
        if self.jobs is None:
            return
        for job in await self.jobs.get_stalled_jobs(seconds_since_heartbeat=30):
            await self.jobs.finish_job(job, status=Status.FAILED, delete_job=True)

    async def look_after(self) -> None:
        """Run the loops until cancelled. A failing step is logged and tried again."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen())
            group.create_task(self._repeat(self.heartbeat, self._beat, hinted=True))
            group.create_task(self._repeat(self.let_go, self._beat / 3))
            group.create_task(self._repeat(self.rescue, self._beat))
            group.create_task(self._repeat(self.forget_dead_jobs, 60))
            for name, chore in chores.registered().items():
                step = partial(in_thread, chore.do)
                group.create_task(self._repeat(step, chore.seconds, name=name))

    async def _repeat(
        self, step: Any, seconds: float, *, hinted: bool = False, name: str = ""
    ) -> None:
        told, name = False, name or step.__name__
        while True:
            try:
                await step()
                told = False
            except AWAY as error:
                if not told:
                    logger.warning("%s waits for the database: %s", name, why(error))
                told = True
                await asyncio.sleep(AWAY_SECONDS)
                continue
            except Exception:
                logger.exception("%s failed; trying again in %s s.", name, seconds)
            if hinted:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._look.wait()
                self._look.clear()
            else:
                await asyncio.sleep(seconds)

    async def _listen(self) -> None:
        """Turn hints into a look. Hints may be lost; the heartbeat looks by itself."""
        layer = get_channel_layer()
        channel = await layer.new_channel()
        await layer.group_add(live.WORKERS, channel)
        while True:
            message = await layer.receive(channel)
            if message["type"] == "worker.begin":
                self._begin_ahead(message["session"])
            else:
                self._look.set()

    # -- stopping ----------------------------------------------------------------------------

    async def stop(self, grace: float) -> None:
        """Take no more work; let steps end within the grace, then hand their turns back."""
        self.stopping.set()
        deadline = asyncio.get_running_loop().time() + grace
        while self._advancing and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        while self._advancing:
            for run in list(self._runs.values()):
                run.interrupt()
            await asyncio.sleep(0.02)


def _unnoticed() -> list[str]:
    turns = Turn.objects.unheld().values_list("session_id", flat=True)
    return _unwoken({*turns, *Turn.objects.stranded().values_list("session_id", flat=True)})


def _pass_on(session_id: str) -> None:
    """Wake another worker for what is left to do in a session, unless that was done."""
    if Turn.objects.filter(session=session_id).claimable().exists() and _unwoken({session_id}):
        _wake(session_id)


def _unwoken(sessions: set[str]) -> list[str]:
    if not sessions:
        return []
    with connection.cursor() as cursor:
        cursor.execute(UNNOTICED, {"sessions": sorted(sessions)})
        return [row[0] for row in cursor.fetchall()]


def _wake(session_id: str) -> None:
    with transaction.atomic():
        app.configure_task("advance").defer(session_id=session_id)


_worker: Worker | None = None


def worker() -> Worker:
    """This process's worker, made at first use on its event loop."""
    global _worker
    if _worker is None:
        _worker = Worker()
    return _worker


def replace_worker(fresh: Worker | None) -> None:
    """Put another worker in place, when a process starts a second life on a new loop."""
    global _worker
    _worker = fresh

"""The life of a process: what it keeps running on its loop, and how it stops in order."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Awaitable, Callable

from django.conf import settings
from procrastinate.contrib.django import app

from sessions_app import live
from sessions_app.engine import worker
from sessions_app.health import WORKER_BEATS
from sessions_app.jobs import PatientConnector
from sessions_app.threads import close_pool

logger = logging.getLogger(__name__)

LAST_WORDS = 5
# Work that was made here has begun by then, and its job takes no time from it.
BEHIND_SECONDS = 0.1


class Process:
    """A process that works turns, `concurrency` at a time; with 0 it leaves them to others."""

    def __init__(
        self,
        concurrency: int,
        loop: asyncio.AbstractEventLoop | None = None,
        working: Callable[[], None] = lambda: None,
    ) -> None:
        self.concurrency = concurrency
        self.loop = loop or asyncio.new_event_loop()
        self.working = working
        """Called when turns are taken up: at the start, and after the database was away."""
        self.behind = 0.0
        """How many seconds late notice is taken of new jobs."""
        self._jobs: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping: asyncio.Task[None] | None = None

    def run(self) -> int:
        """Live until a signal says stop; return the exit code."""
        asyncio.set_event_loop(self.loop)
        live.attach(self.loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self._stop)
        if self.concurrency:
            worker().slots = asyncio.Semaphore(self.concurrency)
            self._jobs = self.loop.create_task(_keep("the worker", self._work))
            loops = self.loop.create_task(_keep("the worker's loops", worker().look_after))
            self._tasks = [self._jobs, loops]
        # What is there by now stays: looking through it for what is not took 100 ms at a time.
        gc.collect()
        gc.freeze()
        code = self._live()
        gc.unfreeze()
        self._end_loop()
        return code

    # -- what a process with a web server does otherwise ---------------------------------------

    def _live(self) -> int:
        self.loop.run_forever()
        return 0

    def _leave(self) -> None:
        self.loop.stop()

    def _stop_listening(self) -> None:
        """Take no more visitors."""

    async def _say_goodbye(self) -> None:
        """Part with those who are still here."""

    # -- working -------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Take wake-ups from the job table until cancelled."""
        jobs = app.with_connector(PatientConnector(behind=self.behind))
        async with jobs.open_async():
            worker().jobs = jobs.job_manager
            self.working()
            try:
                await jobs.run_worker_async(
                    concurrency=self.concurrency,
                    delete_jobs="always",
                    install_signal_handlers=False,
                    shutdown_graceful_timeout=1.0,
                    update_heartbeat_interval=WORKER_BEATS,
                )
            finally:
                worker().jobs = None

    # -- stopping ------------------------------------------------------------------------------

    def _stop(self) -> None:
        if self._stopping is None:
            self._stopping = self.loop.create_task(self._stop_in_order())

    async def _stop_in_order(self) -> None:
        try:
            self._stop_listening()
            if self._jobs is not None:
                # First of all: a wake-up that is taken now would wake nobody.
                self._jobs.cancel()
                await worker().stop(settings.SIGNALBOX["STOP_GRACE_SECONDS"])
            await self._say_goodbye()
        except Exception:
            logger.exception("Stopping did not go in order; stopping all the same.")
        finally:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                # Not for ever: what does not listen is told again when the loop ends.
                await asyncio.wait(self._tasks, timeout=LAST_WORDS)
            await close_pool()
            self._leave()

    def _end_loop(self) -> None:
        """Cancel and await what is left before the loop goes.

        A loop torn down under running tasks ended the process in a segmentation fault.
        """
        for attempt in range(LAST_WORDS):
            if not (left := asyncio.all_tasks(self.loop)):
                break
            for task in left:
                # One that is being cancelled may finish what it cleans up.
                if attempt or not task.cancelling():
                    task.cancel()
            self.loop.run_until_complete(asyncio.wait(left, timeout=1))
        else:
            logger.error("Tasks that do not let themselves be cancelled: %s", left)
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


async def _keep(name: str, task: Callable[[], Awaitable[None]]) -> None:
    """Run a task for as long as the process lives: one that fails is logged and started again."""
    while True:
        try:
            await task()
        except Exception:
            logger.exception("%s failed; starting again in a second.", name)
        await asyncio.sleep(1)

"""Procrastinate's way to its tables, for a worker that outlives restarts of the database.

Its own gives up at the first lost connection: the task that listens for new jobs, or the one that
says that this worker lives, ends for good, and what notices that is absent without periodic tasks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import psycopg
from procrastinate.connector import Notify
from procrastinate.contrib.django.utils import connector_params
from procrastinate.exceptions import ConnectorException
from procrastinate.psycopg_connector import PsycopgConnector

from .threads import AWAY, why

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 0.5

T = TypeVar("T")


class PatientConnector(PsycopgConnector):
    """Asks again while the database is away. Every statement of a worker may be repeated.

    A job that was taken without our hearing of it is only a wake-up less, and found by `rescue`.
    """

    def __init__(self, *, behind: float = 0.0) -> None:
        """Take notice of new jobs `behind` seconds late: what begins ahead of them comes first."""
        super().__init__(kwargs=connector_params())
        self._told = False
        self._behind = behind

    async def execute_query_async(self, query: Any, **arguments: Any) -> None:
        again = False

        async def ask() -> None:
            nonlocal again
            repeated, again = again, True
            try:
                await super(PatientConnector, self).execute_query_async(query, **arguments)
            except ConnectorException as error:
                # The end of a job that has ended: it was stored the first time.
                if not (repeated and isinstance(error.__cause__, psycopg.errors.RaiseException)):
                    raise

        await self._insist(ask)

    async def execute_query_one_async(self, query: Any, **arguments: Any) -> dict[str, Any]:
        return await self._insist(
            lambda: super(PatientConnector, self).execute_query_one_async(query, **arguments)
        )

    async def execute_query_all_async(self, query: Any, **arguments: Any) -> list[dict[str, Any]]:
        return await self._insist(
            lambda: super(PatientConnector, self).execute_query_all_async(query, **arguments)
        )

    async def listen_notify(self, on_notification: Notify, channels: Iterable[str]) -> None:
        named = list(channels)

        async def later(**told: Any) -> None:
            await asyncio.sleep(self._behind)
            await on_notification(**told)

        await self._insist(lambda: super(PatientConnector, self).listen_notify(later, named))

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                answer = await ask()
            except ConnectorException as error:
                if not isinstance(error.__cause__, AWAY):
                    raise
                if not self._told:
                    self._told = True
                    logger.warning("The job table does not answer: %s", why(error.__cause__))
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                self._told = False
                return answer

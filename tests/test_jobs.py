"""The job table is asked and listened to for as long as a worker lives."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from procrastinate.contrib.django import app
from procrastinate.exceptions import ConnectorException

from sessions_app.jobs import PatientConnector
from sessions_app.threads import connection_parameters

pytestmark = pytest.mark.django_db(transaction=True)

# Those that were opened since: the others belong to other tests.
CUT_OFF = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_start > %s
"""


def ask(sql: str, *arguments: object) -> list[tuple[Any, ...]]:
    """Ask on a connection of its own, since those that are kept may be among the lost."""
    with psycopg.connect(**connection_parameters(), autocommit=True) as opened:
        asked = opened.execute(sql, arguments)  # type: ignore[call-overload]
        return asked.fetchall() if asked.description else []


def defer() -> None:
    ask("NOTIFY procrastinate_any_queue_v1, '{}'")


@pytest.mark.timeout(300)
def test_the_job_table_is_asked_and_listened_to_again_after_every_connection_was_lost():
    [(since,)] = ask("SELECT clock_timestamp()")

    async def story() -> None:
        heard = asyncio.Queue[str]()

        async def note(*, channel: str, payload: str) -> None:
            heard.put_nowait(channel)

        jobs = app.with_connector(PatientConnector())
        async with jobs.open_async():
            assert await jobs.job_manager.check_connection_async()
            listening = asyncio.create_task(
                jobs.connector.listen_notify(note, ["procrastinate_any_queue_v1"])  # type: ignore[attr-defined]
            )
            for _ in range(3):
                await _until_heard(heard)
                assert len(await asyncio.to_thread(ask, CUT_OFF, since)) > 1
                assert await jobs.job_manager.check_connection_async()
            await _until_heard(heard)
            listening.cancel()

    async def _until_heard(heard: asyncio.Queue[str]) -> None:
        # It listens again a moment later than it is asked to.
        async with asyncio.timeout(60):
            while True:
                await asyncio.to_thread(defer)
                try:
                    await asyncio.wait_for(heard.get(), 0.1)
                    return
                except TimeoutError:
                    continue

    asyncio.run(story())


def test_the_connector_does_not_hide_what_is_wrong_with_a_statement():
    async def story() -> None:
        jobs = app.with_connector(PatientConnector())
        async with jobs.open_async():
            await jobs.connector.execute_query_async("SELECT nothing_of_the_kind")

    with pytest.raises(ConnectorException):
        asyncio.run(asyncio.wait_for(story(), 10))

"""The event loop's connections: what is handed out works, whatever became of the server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.db import connection

from sessions_app.threads import close_pool, in_thread, pool

pytestmark = pytest.mark.django_db(transaction=True)


def end(backend: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [backend])


async def backend_of() -> Any:
    async with (await pool()).connection() as conn:
        return await (await conn.execute("SELECT pg_backend_pid()")).fetchone()


async def test_a_connection_that_died_while_it_was_idle_is_not_handed_out():
    try:
        [before] = await backend_of()
        await in_thread(end, before)
        async with asyncio.timeout(10):
            [after] = await backend_of()
        assert after != before
    finally:
        await close_pool()


async def test_a_connection_that_works_is_handed_out_without_asking_the_server(monkeypatch):
    asked = []
    try:
        opened = await pool()
        monkeypatch.setattr(type(opened), "check_connection", staticmethod(asked.append))
        assert await backend_of()
        assert await backend_of()
        assert not asked
    finally:
        await close_pool()

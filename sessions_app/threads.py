"""Where the event loop's database work is done: a bounded pool of threads, and an async pool.

Django's pool gets a connection back only when it is closed, and a thread outside a request keeps
its own: so each call here closes what it opened. asgiref's shared thread is not used, because all
sockets of the process would queue behind each other on it.
"""

from __future__ import annotations

import asyncio
import contextvars
import select
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

import psycopg
from django import db
from django.db import close_old_connections, connection, connections
from procrastinate.exceptions import ConnectorException
from psycopg.types.json import set_json_loads
from psycopg_pool import AsyncConnectionPool
from pydantic_core import from_json

# What a database says that is being restarted, cannot be reached, or has no connection to spare.
AWAY = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    db.OperationalError,
    db.InterfaceError,
    # What Procrastinate makes of these when a job is deferred.
    ConnectorException,
)

P = ParamSpec("P")
T = TypeVar("T")

_files = ThreadPoolExecutor(max_workers=4, thread_name_prefix="signalbox-files")
_executor = ThreadPoolExecutor(max_workers=8, thread_name_prefix="signalbox-database")
_pools: dict[asyncio.AbstractEventLoop, AsyncConnectionPool[psycopg.AsyncConnection[Any]]] = {}


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function that uses the ORM in the pool of threads and return its result."""
    loop = asyncio.get_running_loop()
    # In the caller's context, so that what it logs says what it is about.
    context, call = contextvars.copy_context(), partial(_call, function, *args, **kwargs)
    return await loop.run_in_executor(_executor, context.run, call)


async def in_file_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function that reads or writes large files where it keeps no database thread busy."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_files, partial(function, *args, **kwargs))


def _call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    close_old_connections()
    try:
        return function(*args, **kwargs)
    finally:
        connections.close_all()


def why(error: BaseException) -> str:
    """The first line of what a database said; the rest is for whoever reads tracebacks."""
    if isinstance(error, ConnectorException) and error.__cause__ is not None:
        return why(error.__cause__)
    return str(error).strip().partition("\n")[0] or type(error).__name__


def connection_parameters() -> dict[str, Any]:
    """What psycopg needs to connect to Django's database, without what is Django's own."""
    parameters = connection.get_connection_params()
    for ours in ("context", "cursor_factory", "prepare_threshold"):
        parameters.pop(ours, None)
    return parameters


async def pool() -> AsyncConnectionPool[psycopg.AsyncConnection[Any]]:
    """Return this loop's pool of connections in autocommit mode, opened at first use."""
    loop = asyncio.get_running_loop()
    if loop not in _pools:
        fresh = AsyncConnectionPool(
            kwargs={**connection_parameters(), "autocommit": True},
            # A connection that died with its server is replaced, not handed out.
            check=_check,
            min_size=1,
            # A connection is held until the loop comes round to its answer. With fewer of them than
            # there are writers and readers under load, all would wait for each other.
            max_size=20,
            configure=_configure,
            open=False,
            name="signalbox",
        )
        _pools[loop] = fresh
        await fresh.open()
    return _pools[loop]


async def _configure(conn: psycopg.AsyncConnection[Any]) -> None:
    """Have times in UTC, as Django's connections do: pages and frames show the same.

    JSON is read in a third of the time that Python's own module takes.
    """
    set_json_loads(from_json, conn)
    await conn.execute("SET TIME ZONE 'UTC'")


async def _check(conn: psycopg.AsyncConnection[Any]) -> None:
    """Ask the server only when the connection has something to say, such as that it was closed.

    A question at each use would cost as much as the statement that it is used for.
    """
    waiting = select.poll()
    waiting.register(conn.fileno(), select.POLLIN)
    if waiting.poll(0):
        await AsyncConnectionPool.check_connection(conn)


async def close_pool() -> None:
    """Close this loop's pool, if one was opened."""
    if mine := _pools.pop(asyncio.get_running_loop(), None):
        await mine.close()

"""What tests of environments share: running a step, and finding out whether it is still there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from sessions_app.environments.base import Command, Exit, Interpreter
from sessions_app.environments.local import LocalEnvironment, LocalProvider

from .left_out import need


def need_bubblewrap() -> None:
    need("bwrap", "bubblewrap")


async def make(root: Path, confined: bool, key: str = "first") -> LocalEnvironment:
    if confined:
        need_bubblewrap()
    environment = await LocalProvider(root, confined).open(key)
    environment.grace = 0.3
    assert environment.confined is confined
    return environment


async def run(
    environment: LocalEnvironment,
    source: str,
    interpreter: Interpreter = "sh",
    timeout: float = 20,
    cancelled: asyncio.Event | None = None,
    **variables: str,
) -> tuple[Exit, str]:
    said = bytearray()
    command = Command(interpreter, source, timeout, variables)
    end = await environment.run(command, said.extend, cancelled or asyncio.Event())
    return end, said.decode("utf-8", "replace")


async def say(environment: LocalEnvironment, source: str, interpreter: Interpreter = "sh") -> str:
    """Run a step that must succeed, and return what it said."""
    end, said = await run(environment, source, interpreter)
    assert (end.reason, end.exit_code) == ("exited", 0), said
    return said


def living(mark: str) -> list[int]:
    """Return the processes that have `mark` in their environment or on their command line."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        for part in ("environ", "cmdline"):
            try:
                text = Path(f"/proc/{name}/{part}").read_bytes()
            except OSError:
                continue
            if mark.encode() in text and int(name) != os.getpid():
                found.append(int(name))
    return found


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until a condition of the system holds that no event tells about."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)

"""Starts a program under the supervisor, hands on its output, and ends it: gently, then for sure.

Nothing here depends on SIGCHLD or on the main thread: asyncio waits for the child by a thread or a
pidfd, and the supervisor (not this process) is the parent of everything a step starts. So the
`--die-with-parent` of bubblewrap is bound to the supervisor's only thread, not to one of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .base import EnvironmentUnavailable, Exit

CHUNK = 64 * 1024
DRAIN = 2.0  # Seconds for output that is left in the pipe; matters only if its end never comes.
SUPERVISOR = Path(__file__).with_name("supervise.py")


@dataclass(frozen=True)
class Program:
    """What the supervisor starts: an absolute `argv[0]`, and an environment built from nothing."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    directory: Path
    descriptors: Sequence[int] = ()
    wrapped: bool = False


@contextlib.contextmanager
def held(*contents: bytes) -> Iterator[list[int]]:
    """Give each content as the descriptor of a file in memory. Raises EnvironmentUnavailable.

    Not a nameless file in /tmp: Python finds modules where its script lies, and would import what
    any user of the machine put there.
    """
    with contextlib.ExitStack() as stack:
        descriptors = []
        with refusing():
            for content in contents:
                file = stack.enter_context(open(os.memfd_create("step"), "w+b"))
                file.write(content)
                file.seek(0)
                descriptors.append(file.fileno())
        yield descriptors


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Make an error of the system while starting one of the environment."""
    try:
        yield
    except OSError as error:
        raise EnvironmentUnavailable(f"The command could not be started: {error}.") from error


class Output:
    """Reads a pipe on the event loop, a chunk per turn, and only as fast as it is taken.

    A program that prints without end waits in its own write; nothing is kept here.
    """

    def __init__(self, pipe: int, take: Callable[[bytes], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.pipe = pipe
        self.take = take
        self.ended: asyncio.Future[None] = self.loop.create_future()
        self.failed: asyncio.Future[Exception] = self.loop.create_future()
        os.set_blocking(pipe, False)
        self.loop.add_reader(pipe, self._read)

    def _read(self) -> None:
        try:
            chunk = os.read(self.pipe, CHUNK)
        except BlockingIOError:
            return
        try:
            if chunk:
                self.take(chunk)
                return
        except Exception as error:  # Whatever the taker raises ends the step, and is raised by run.
            self.failed.set_result(error)
        self.loop.remove_reader(self.pipe)
        self.ended.set_result(None)

    def close(self) -> None:
        self.loop.remove_reader(self.pipe)
        os.close(self.pipe)


class Order:
    """The write end of the supervisor's order pipe."""

    def __init__(self, pipe: int) -> None:
        self.pipe: int | None = pipe

    def terminate(self) -> None:
        if self.pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                os.write(self.pipe, b"T")

    def kill(self) -> None:
        if self.pipe is not None:
            os.close(self.pipe)
            self.pipe = None


async def execute(
    program: Program,
    output: Callable[[bytes], None],
    timeout: float,
    cancelled: asyncio.Event,
    grace: float,
) -> Exit:
    """Run a program as `Environment.run` promises it. Raises EnvironmentUnavailable."""
    if cancelled.is_set():
        return Exit("cancelled", None, 0)
    started = time.monotonic()
    starting = asyncio.ensure_future(_start(program))
    try:
        process, order, pipe = await asyncio.shield(starting)
    except asyncio.CancelledError:
        # asyncio would kill the supervisor, and not what it may have started already.
        with contextlib.suppress(EnvironmentUnavailable):
            process, order, pipe = await starting
            order.kill()
            os.close(pipe)
            await process.wait()
        raise
    reader = Output(pipe, output)
    ended = asyncio.ensure_future(process.wait())
    stop = asyncio.ensure_future(cancelled.wait())
    try:
        # Never `await ended`: our own cancellation would cancel it, and the process be forgotten.
        reasons: set[asyncio.Future[Any]] = {ended, stop, reader.failed}
        await asyncio.wait(reasons, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        stopped: Literal["timed_out", "cancelled"] | None = None
        if not ended.done():
            stopped = "cancelled" if stop.done() else "timed_out"
            order.terminate()
            await asyncio.wait({ended}, timeout=grace)
            order.kill()
            await asyncio.wait({ended})
        await asyncio.wait({reader.ended}, timeout=DRAIN)
        if reader.failed.done():
            raise reader.failed.result()
        code = _exit_code(process.returncode, stopped is not None)
        return Exit(stopped or "exited", code, round((time.monotonic() - started) * 1000))
    finally:
        # Also when this task is cancelled: nothing may be left then either.
        order.kill()
        stop.cancel()
        try:
            await asyncio.wait({ended})
        finally:
            reader.close()


async def _start(program: Program) -> tuple[asyncio.subprocess.Process, Order, int]:
    specification = {
        "argv": list(program.argv),
        "environment": dict(program.environment),
        "wrapped": program.wrapped,
    }
    with contextlib.ExitStack() as inherited, contextlib.ExitStack() as kept, refusing():
        orders, order = os.pipe()
        inherited.callback(os.close, orders)
        kept.callback(os.close, order)
        pipe, written = os.pipe()
        inherited.callback(os.close, written)
        kept.callback(os.close, pipe)
        [described] = inherited.enter_context(held(json.dumps(specification).encode()))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(SUPERVISOR), str(described)),
            stdin=orders,
            stdout=written,
            stderr=written,
            cwd=program.directory,
            env={},
            pass_fds=(described, *program.descriptors),
            start_new_session=True,  # A Ctrl-C in the server's terminal is the server's alone.
        )
        kept.pop_all()
    return process, Order(order), pipe


def _exit_code(code: int | None, stopped: bool) -> int | None:
    if code is None or code < 0:  # The supervisor itself was killed.
        return None if stopped or code is None else 128 - code
    # A program that was asked to end and died of a signal did not say anything.
    return None if stopped and code > 128 else code

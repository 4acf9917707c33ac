"""What an execution environment is: the retained runtime and filesystem a session works in.

A provider makes environments; a runner never sees a provider. Nothing here knows models.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

Interpreter = Literal["sh", "bash", "python"]


class EnvironmentUnavailable(Exception):
    """The environment cannot be used; the message says why, and what to do about it."""


@dataclass(frozen=True)
class Command:
    """One program text to run in an environment."""

    interpreter: Interpreter
    source: str
    timeout: float
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Exit:
    """How a command ended. `exit_code` is None when it was killed before it could say."""

    reason: Literal["exited", "timed_out", "cancelled"]
    exit_code: int | None
    duration_ms: int


@dataclass(frozen=True)
class ProducedFile:
    """A regular file that lies under `artifacts/`; `name` is its path below that directory."""

    name: str
    path: Path
    size: int


class Environment(Protocol):
    """A directory and a way to run commands in it."""

    confined: bool
    """Whether commands see only their own files and cannot reach the server or each other."""
    network: bool
    detail: str
    """One line for people: how it is confined, or why it is not."""
    resumed: bool
    """Whether the files of an earlier use were found."""

    async def run(
        self, command: Command, output: Callable[[bytes], None], cancelled: asyncio.Event
    ) -> Exit:
        """Run a command to its end, its time limit, or until `cancelled` is set.

        `output` gets standard output and standard error as they come, in one stream, on the event
        loop. When this returns, no process of the command is left, whatever it forked.
        """

    async def mark(self, name: str) -> None:
        """Remember the state of every git work tree under `name`, unless that is remembered."""

    async def changes(self, name: str) -> bytes:
        """Return one unified diff of all git work trees since `mark(name)`; empty for none."""

    def produced(self) -> Iterable[ProducedFile]:
        """List the regular files under `artifacts/`, never following a link."""

    def open_produced(self, file: ProducedFile) -> BinaryIO:
        """Open a produced file for reading, following no link. Raises OSError if it is not one."""


class Provider(Protocol):
    """Makes, finds and removes environments of one kind."""

    kind: str

    async def open(self, key: str, *, used: bool = False) -> Environment:
        """Create or resume the environment called `key`. Raises EnvironmentUnavailable.

        One that was `used` before has to be there: work does not go on without its files.
        """

    async def copy(self, from_key: str, to_key: str) -> bool:
        """Make the environment `to_key` with the files of another; False if that has none.

        No step may run in the other one meanwhile. Raises EnvironmentUnavailable when it cannot
        be done, and then nothing of it is left.
        """

    async def delete(self, key: str) -> None:
        """Remove the environment and its files; nothing happens when there is none."""

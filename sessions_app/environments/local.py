"""Environments on this machine: a directory each, and commands confined by bubblewrap if it works.

Below the root, an environment `key` has `<key>/work`, its working directory, and `<key>/state`,
what the server remembers of it; a confined step sees only the former.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from . import bubblewrap, files, interpreters, layout
from .base import Command, EnvironmentUnavailable, Exit, ProducedFile
from .bubblewrap import Bubblewrap
from .process import Program, execute, held

logger = logging.getLogger(__name__)

TREE = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
WORKTREES = Path(__file__).with_name("worktrees.py").read_bytes()
WORKTREES_TIMEOUT = 60.0
WORKTREES_OUTPUT = 17 * 1024 * 1024  # The script cuts at 16 MiB; this is for one that is cheated.

# Few and their own: a copy may take minutes, and rendering and downloads go on meanwhile.
COPIERS = ThreadPoolExecutor(max_workers=2, thread_name_prefix="signalbox-copies")

UNCONFINED = "commands run unconfined, as the server's user"
CONFINED = "Confined by bubblewrap: commands see only their own files and have no network"


class LocalEnvironment:
    """The environment in one directory; see `Environment` for what its methods promise.

    Commands of `sh` run with `-e`, of `bash` with `-e -o pipefail`: the first line that fails ends
    the step. Python finds modules in the working directory.
    """

    grace = 1.5
    """Seconds between SIGTERM and SIGKILL."""

    def __init__(
        self, directory: Path, confinement: Bubblewrap | None, detail: str, resumed: bool
    ) -> None:
        self.work = directory / "work"
        self.confined = confinement is not None
        self.network = confinement is None
        self.detail = detail
        self.resumed = resumed
        self._state = directory / "state"
        self._confinement = confinement
        self._home = bubblewrap.WORK if self.confined else str(self.work)

    async def run(
        self, command: Command, output: Callable[[bytes], None], cancelled: asyncio.Event
    ) -> Exit:
        argv = interpreters.find(command.interpreter)
        if argv is None:
            name = interpreters.PROGRAMS[command.interpreter]
            output(f"{name}: not found; it is not installed on this machine.\n".encode())
            return Exit("exited", 127, 0)
        variables = dict(command.variables)
        if command.interpreter == "python":
            variables.setdefault("PYTHONPATH", self._home)
        source = command.source.encode()
        return await self._execute(argv, source, variables, command.timeout, output, cancelled)

    async def mark(self, name: str) -> None:
        path = self._mark(name)
        if path.exists():
            return
        answer = await self._worktrees({})
        if answer is None:
            return
        partial = path.with_suffix(f".{uuid.uuid4().hex}")
        try:
            partial.write_text(json.dumps(_trees(json.loads(answer))))
            partial.replace(path)
        except (OSError, ValueError) as error:
            logger.info("no mark of %s: %s", self.work, error)

    async def changes(self, name: str) -> bytes:
        try:
            trees = _trees(json.loads(self._mark(name).read_text()))
        except (OSError, ValueError) as error:
            logger.info("no changes of %s: %s", self.work, error)
            return b""
        return await self._worktrees({"SIGNALBOX_BASES": json.dumps(trees)}) or b""

    def produced(self) -> list[ProducedFile]:
        return files.produced(self.work)

    def open_produced(self, file: ProducedFile) -> BinaryIO:
        """Open a produced file for reading, following no link. Raises OSError if it is not one."""
        return files.open_regular(self.work, file.path.relative_to(self.work))

    async def _execute(
        self,
        argv: Sequence[str],
        source: bytes,
        variables: Mapping[str, str],
        timeout: float,
        output: Callable[[bytes], None],
        cancelled: asyncio.Event,
    ) -> Exit:
        environment = {**interpreters.variables(self._home), **variables}
        for name, value in environment.items():
            if not name or "=" in name or "\0" in name + value:
                raise ValueError(f"{name!r} cannot be a variable with that name and value.")
        confine = _unconfined if self._confinement is None else self._confinement.program
        if not layout.is_directory(self.work):
            raise EnvironmentUnavailable(f"The working directory {self.work} is gone.")
        with confine(self.work, argv, source, environment) as program:
            return await execute(program, output, timeout, cancelled, self.grace)

    async def _worktrees(self, variables: Mapping[str, str]) -> bytes | None:
        """Run the script about the git work trees; None, and a line in the log, if it fails."""
        python = interpreters.find("python")
        if python is None:
            logger.info("no changes of %s: Python is not installed", self.work)
            return None
        said = bytearray()

        def take(chunk: bytes) -> None:
            said.extend(chunk[: WORKTREES_OUTPUT - len(said)])

        # Isolated: a step's own json.py must not be what the script imports.
        argv, never = [*python, "-I"], asyncio.Event()
        try:
            end = await self._execute(argv, WORKTREES, variables, WORKTREES_TIMEOUT, take, never)
        except EnvironmentUnavailable as error:
            logger.info("no changes of %s: %s", self.work, error)
            return None
        if end.exit_code != 0:
            reason = said[-500:].decode("utf-8", "replace")
            logger.info("no changes of %s: %s, %s", self.work, end, reason)
            return None
        return bytes(said)

    def _mark(self, name: str) -> Path:
        return self._state / f"{layout.valid(name)}.json"


class LocalProvider:
    """Environments below `root`, whose parent must exist.

    `confine` None uses bubblewrap if it works, True insists on it, False does without.
    """

    kind = "local"

    def __init__(self, root: Path, confine: bool | None = None) -> None:
        self.root = root.absolute()
        self.confine = confine
        self._confinement: tuple[Bubblewrap | None, str] | None = None

    async def open(self, key: str, *, used: bool = False) -> LocalEnvironment:
        directory = self.root / layout.valid(key)
        if used and not layout.is_directory(directory / "work"):
            raise EnvironmentUnavailable(
                f"The files of this session are not on this machine, {socket.gethostname()}. "
                f"Workers on several machines have to share {self.root}; if the files are lost, "
                "go on in a new session."
            )
        if not sys.platform.startswith("linux"):
            raise EnvironmentUnavailable("Sessions can run commands on this machine only on Linux.")
        try:
            resumed = layout.prepare(self.root, directory)
        except OSError as error:
            raise EnvironmentUnavailable(layout.advice(self.root, error)) from error
        if self._confinement is None:
            self._confinement = await self._probe(directory)
        confinement, detail = self._confinement
        if confinement is None and self.confine:
            raise EnvironmentUnavailable(f"Commands must be confined, but {detail}.")
        return LocalEnvironment(directory, confinement, detail, resumed)

    async def copy(self, from_key: str, to_key: str) -> bool:
        source, target = self.root / layout.valid(from_key), self.root / layout.valid(to_key)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(COPIERS, layout.duplicate, self.root, source, target)
        except OSError as error:
            reason = error.strerror or str(error)
            raise EnvironmentUnavailable(f"The files could not be copied: {reason}.") from error

    async def delete(self, key: str) -> None:
        try:
            await asyncio.to_thread(layout.delete, self.root, self.root / layout.valid(key))
        except OSError as error:
            raise EnvironmentUnavailable(
                f"The files of the environment {key} could not be removed: {error}."
            ) from error

    async def _probe(self, directory: Path) -> tuple[Bubblewrap | None, str]:
        """Find out, by running `true` as a step would run, whether commands can be confined."""
        reason = "confinement is switched off"
        if self.confine is not False:
            reason = "bubblewrap is not installed"
            if shown := bubblewrap.visible(self.root):
                reason = f"the data lies below {shown}, which confined commands could read"
            else:
                for candidate in bubblewrap.probes():
                    said: list[bytes] = []
                    environment = LocalEnvironment(directory, candidate, "", False)
                    command = Command("sh", "true", 10)
                    end = await environment.run(command, said.append, asyncio.Event())
                    if end.exit_code == 0:
                        return candidate, CONFINED
                    if end.reason == "timed_out":  # Not to be remembered, and not to be lax about.
                        raise EnvironmentUnavailable("bubblewrap did not start in time; try again.")
                    line = b"".join(said).decode("utf-8", "replace").strip().partition("\n")[0]
                    reason = f"bubblewrap could not start: {line or end.exit_code}"
        user = f"{UNCONFINED} (root)" if os.geteuid() == 0 else UNCONFINED
        return None, f"{reason}: {user}"


@contextlib.contextmanager
def _unconfined(
    work: Path, argv: Sequence[str], source: bytes, environment: Mapping[str, str]
) -> Iterator[Program]:
    with held(source) as [script]:
        yield Program([*argv, f"/dev/fd/{script}"], environment, work, [script])


def _trees(answer: object) -> dict[str, str | None]:
    """Check {path: tree or null}, which is a step's word. Raises ValueError."""
    if not isinstance(answer, dict):
        raise ValueError("not an object")
    for path, tree in answer.items():
        if not (tree is None or (isinstance(tree, str) and TREE.fullmatch(tree))):
            raise ValueError(f"{path!r} has no tree")
    return answer

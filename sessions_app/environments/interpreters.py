"""What a command is started with: its interpreter, its PATH and its variables."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from .base import Interpreter

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Under these lies what every step sees, confined or not.
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")

OPTIONS: dict[Interpreter, tuple[str, ...]] = {
    # A line that fails ends the step, as one expects of a step. `sh` has no pipefail everywhere.
    "sh": ("-e",),
    "bash": ("-e", "-o", "pipefail"),
    "python": (),
}
PROGRAMS: dict[Interpreter, str] = {"sh": "sh", "bash": "bash", "python": "python3"}


def own_prefix() -> Path | None:
    """Return where the server's Python lives when the system has none, to be lent to the steps."""
    if _system_program("python3") is not None:
        return None
    prefix = Path(sys.base_prefix).resolve()
    return prefix if (prefix / "bin/python3").exists() else None


def search_path() -> str:
    """Return the PATH of a step."""
    prefix = own_prefix()
    return PATH if prefix is None else f"{PATH}:{prefix}/bin"


def find(interpreter: Interpreter) -> list[str] | None:
    """Return the beginning of the argv that runs a script file, or None when it is missing."""
    program = _system_program(PROGRAMS[interpreter])
    if program is None and interpreter == "python" and (prefix := own_prefix()) is not None:
        program = str(prefix / "bin/python3")
    return None if program is None else [program, *OPTIONS[interpreter]]


def variables(home: str) -> dict[str, str]:
    """Return the environment of a step, built from nothing: never a variable of the server."""
    return {
        "PATH": search_path(),
        "HOME": home,
        "PWD": home,
        "USER": "signalbox",
        "LOGNAME": "signalbox",
        "LANG": "C.UTF-8",
        # There is no terminal, so nothing is coloured unasked; "dumb" would make `tput` fail.
        "TERM": "xterm-256color",
        "TMPDIR": "/tmp",  # noqa: S108  # Private to the step when it is confined.
        "PYTHONUNBUFFERED": "1",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_NAME": "Signalbox",
        "GIT_AUTHOR_EMAIL": "signalbox@localhost",
        "GIT_COMMITTER_NAME": "Signalbox",
        "GIT_COMMITTER_EMAIL": "signalbox@localhost",
    }


def _system_program(name: str) -> str | None:
    program = shutil.which(name, path=PATH)
    # A link from /usr/local/bin to, say, /opt/python leads nowhere inside a confined step.
    if program is None or not any(Path(program).resolve().is_relative_to(top) for top in SYSTEM):
        return None
    return program

"""The directories of the environments on this machine: made, checked and removed."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
import uuid
from pathlib import Path

from . import copying, files

KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")
REMOVED = ".removed-"  # Not a valid key: such a directory is never an environment again.
COPYING = ".copying-"  # And one of these not yet.
ABANDONED = 24 * 3600.0


def valid(key: str) -> str:
    """Return the key, which becomes a file name. Raises ValueError."""
    if not KEY.fullmatch(key):
        raise ValueError(f"{key!r} is not letters, digits, underscores and hyphens.")
    return key


def is_directory(path: Path) -> bool:
    """Whether a directory is there, and not a link to one."""
    return os.path.isdir(path) and not os.path.islink(path)


def prepare(root: Path, directory: Path) -> bool:
    """Make what is missing; True if the working directory was there. Raises OSError."""
    if not is_directory(root) and not root.is_symlink():
        root.mkdir(0o700)
    # A step can leave files that act with its owner's rights (setuid): nobody else may reach them.
    if stat.S_IMODE(root.stat().st_mode) != 0o700:
        root.chmod(0o700)
    resumed = is_directory(directory / "work")
    for path in (directory, directory / "state", directory / "work"):
        if not os.path.lexists(path):
            path.mkdir(0o700)
        # Not merely exists: an unconfined step could have put a link here, to be bound writable.
        with files.directory(path):
            pass
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(13, "Permission denied", str(directory))
    return resumed


def advice(root: Path, error: OSError) -> str:
    """Say what to do about an error of `prepare`."""
    if isinstance(error, FileNotFoundError):
        return f"The data directory {root.parent} does not exist: create it, or set SIGNALBOX_DATA."
    return (
        f"The directory of the environments, {root}, cannot be used ({error.strerror}: "
        f"{error.filename}): make it writable for the server's user, or set SIGNALBOX_DATA."
    )


def delete(root: Path, directory: Path) -> None:
    """Remove a directory below the root, and what interrupted removals left. Raises OSError."""
    for left in root.glob(f"{REMOVED}*"):
        with contextlib.suppress(OSError):
            files.remove(left)
    # Renamed first: an environment is there as a whole or not at all, also if this is interrupted.
    removed = root / f"{REMOVED}{uuid.uuid4().hex}"
    with contextlib.suppress(FileNotFoundError):
        directory.rename(removed)
        files.remove(removed)


def duplicate(root: Path, source: Path, target: Path) -> bool:
    """Make `target` with a copy of the working directory of `source`; False if there is none.

    What is remembered of the source's turns is left out: the new environment counts its own.
    It is there as a whole or not at all. Raises OSError.
    """
    for left in root.glob(f"{COPYING}*"):
        with contextlib.suppress(OSError):
            if left.stat().st_mtime < time.time() - ABANDONED:
                files.remove(left)
    if not is_directory(source / "work"):
        return False
    if os.path.lexists(target):
        raise FileExistsError(17, "File exists", str(target))
    partial = root / f"{COPYING}{uuid.uuid4().hex}"
    partial.mkdir(0o700)
    try:
        (partial / "state").mkdir(0o700)
        copying.copy(source / "work", partial / "work", partial / "links")
        partial.rename(target)
    except BaseException:
        with contextlib.suppress(OSError):
            files.remove(partial)
        raise
    return True

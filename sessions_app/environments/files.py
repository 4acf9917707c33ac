"""Reading and removing what steps have left, without ever following a link they planted.

Every name is opened in its directory's descriptor, so a directory that turns into a link in between
is refused rather than followed. What a step made unreadable for its owner, the server, is made
readable again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO

from .base import ProducedFile

logger = logging.getLogger(__name__)

ARTIFACTS = "artifacts"
DEPTH = 32
MOST = 10_000
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK, opening a FIFO would wait for its writer for ever.
REGULAR = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextlib.contextmanager
def directory(name: str | Path, parent: int | None = None) -> Iterator[int]:
    """Open a directory that is no link. Raises OSError."""
    descriptor = _open(name, parent, DIRECTORY, stat.S_ISDIR)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def regular(name: str, parent: int) -> Iterator[int]:
    """Open a regular file in a directory for reading. Raises OSError if it is not one."""
    descriptor = _open_regular(name, parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_regular(top: Path, name: PurePath) -> BinaryIO:
    """Open the regular file `name` below `top`. Raises OSError if it is not one."""
    if name.is_absolute() or not name.parts or ".." in name.parts:
        raise OSError(errno.EINVAL, "not a path below a directory", str(name))
    with contextlib.ExitStack() as stack:
        parent = stack.enter_context(directory(top))
        for part in name.parts[:-1]:
            parent = stack.enter_context(directory(part, parent))
        return os.fdopen(_open_regular(name.name, parent), "rb")


def _open_regular(name: str, parent: int) -> int:
    descriptor = _open(name, parent, REGULAR, stat.S_ISREG)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", name)
    return descriptor


def produced(work: Path) -> list[ProducedFile]:
    """Return the regular files below `artifacts/`, by name."""
    found: list[ProducedFile] = []
    with (
        contextlib.suppress(OSError),
        directory(work) as top,
        directory(ARTIFACTS, top) as artifacts,
    ):
        for relative, size in _regular(artifacts, PurePosixPath(), DEPTH):
            if len(found) == MOST:
                logger.info("%s holds more than %s files; the others are left out", work, MOST)
                break
            name = os.fsencode(str(relative)).decode("utf-8", "replace")
            found.append(ProducedFile(name, work / ARTIFACTS / relative, size))
    return sorted(found, key=lambda file: file.name)


def _regular(
    descriptor: int, path: PurePosixPath, depth: int
) -> Iterator[tuple[PurePosixPath, int]]:
    with os.scandir(descriptor) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                yield path / entry.name, entry.stat(follow_symlinks=False).st_size
            elif entry.is_dir(follow_symlinks=False) and depth:
                with contextlib.suppress(OSError), directory(entry.name, descriptor) as below:
                    yield from _regular(below, path / entry.name, depth - 1)


def remove(path: Path) -> None:
    """Remove a directory and all below it, however deep and whatever its permissions.

    Directories are moved up and emptied one by one: neither their depth nor the number of open
    files is a limit, as it is for shutil.rmtree.
    """
    _unlock(path, None, stat.S_ISDIR)
    with directory(path) as top:
        while names := os.listdir(top):
            for name in names:
                if stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
                    _dissolve(name, top)
                else:
                    os.unlink(name, dir_fd=top)
    os.rmdir(path)


def _dissolve(name: str, top: int) -> None:
    _unlock(name, top, stat.S_ISDIR)
    with directory(name, top) as descriptor:
        for inner in os.listdir(descriptor):
            if stat.S_ISDIR(os.stat(inner, dir_fd=descriptor, follow_symlinks=False).st_mode):
                _unlock(inner, descriptor, stat.S_ISDIR)  # Its own entry `..` is about to change.
                os.rename(inner, uuid.uuid4().hex, src_dir_fd=descriptor, dst_dir_fd=top)
            else:
                os.unlink(inner, dir_fd=descriptor)
    os.rmdir(name, dir_fd=top)


def _open(name: str | Path, parent: int | None, flags: int, expected: Callable[[int], bool]) -> int:
    try:
        return os.open(name, flags, dir_fd=parent)
    except PermissionError:
        _unlock(name, parent, expected)
        return os.open(name, flags, dir_fd=parent)


def _unlock(name: str | Path, parent: int | None, expected: Callable[[int], bool]) -> None:
    """Let the owner use the file again, if it is what is expected and no link."""
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        mode = os.fstat(descriptor).st_mode
        if expected(mode):
            # fchmod refuses such a descriptor; its name in /proc leads to the file itself.
            os.chmod(f"/proc/self/fd/{descriptor}", stat.S_IMODE(mode) | stat.S_IRWXU)
    finally:
        os.close(descriptor)

"""Copying what steps have left, as it lies there, without following a link they planted.

Regular files, directories and links are copied; devices, FIFOs and sockets are left out. Names are
opened in their directory's descriptor, so a directory that turns into a link meanwhile is refused
rather than followed. Holes stay holes, and where the filesystem can share blocks it does.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from pathlib import Path

from . import files

LEVELS = 128
RESERVE = 256 * 1024 * 1024
"""Bytes that stay free: the database may lie on the same disk."""
LOOK_EVERY = 64 * 1024 * 1024
CHUNK = 8 * 1024 * 1024
# Directories are made with this and get their own mode when they are filled.
PRIVATE = 0o700


class TooDeep(OSError):
    """Directories are nested deeper than can be copied."""


def copy(source: Path, target: Path, links: Path) -> None:
    """Copy the directory `source` to `target`, which must not exist. Raises OSError.

    What the two hold is the same afterwards if nothing changes the source meanwhile; a file that
    vanishes is left out, and one that grows is cut at the size it had. `links` is a directory
    beside the target that holds the first name of hard-linked files for as long as this takes.
    """
    copying = _Copying()
    os.mkdir(links, PRIVATE)
    os.mkdir(target, PRIVATE)
    with (
        files.directory(source) as here,
        files.directory(target) as there,
        files.directory(links) as aside,
    ):
        copying.links = aside
        copying.directory(here, there, os.fstat(here), LEVELS)
    files.remove(links)


class _Copying:
    """One copy under way."""

    def __init__(self) -> None:
        self.links = -1
        self._seen: dict[tuple[int, int], str] = {}
        self._names = itertools.count()
        self._written = LOOK_EVERY  # Look before the first byte.

    def directory(self, here: int, there: int, status: os.stat_result, levels: int) -> None:
        """Copy all that a directory holds, then its mode and times."""
        if not levels:
            raise TooDeep(errno.ELOOP, f"directories are nested deeper than {LEVELS} levels")
        for name in os.listdir(here):
            try:
                self._entry(name, here, there, levels)
            except FileNotFoundError:
                continue  # Gone since the directory was listed.
        self._finish(there, status)

    def _entry(self, name: str, here: int, there: int, levels: int) -> None:
        status = os.stat(name, dir_fd=here, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            with files.directory(name, here) as below:
                os.mkdir(name, PRIVATE, dir_fd=there)
                with files.directory(name, there) as made:
                    self.directory(below, made, status, levels - 1)
                self._restore(below, status)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=here), name, dir_fd=there)
            times = (status.st_atime_ns, status.st_mtime_ns)
            os.utime(name, ns=times, dir_fd=there, follow_symlinks=False)
        elif stat.S_ISREG(status.st_mode):
            self._regular(name, status, here, there)

    def _regular(self, name: str, status: os.stat_result, here: int, there: int) -> None:
        identity = (status.st_dev, status.st_ino)
        if first := self._seen.get(identity):
            os.link(first, name, src_dir_fd=self.links, dst_dir_fd=there)
            return
        with files.regular(name, here) as source:
            self._restore(source, status)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            made = os.open(name, flags, 0o600, dir_fd=there)
            try:
                self._content(source, made)
                self._finish(made, status)
            finally:
                os.close(made)
        if status.st_nlink > 1:
            self._seen[identity] = first = str(next(self._names))
            os.link(name, first, src_dir_fd=there, dst_dir_fd=self.links)

    def _content(self, source: int, made: int) -> None:
        """Copy the parts that hold data, up to the size the file has now."""
        size = os.fstat(source).st_size
        os.ftruncate(made, size)
        at = 0
        while at < size:
            try:
                at = os.lseek(source, at, os.SEEK_DATA)
                end = min(os.lseek(source, at, os.SEEK_HOLE), size)
            except OSError as error:
                if error.errno == errno.ENXIO:  # Nothing but a hole from here on.
                    return
                raise
            while at < end:
                self._look(made)
                count = _move(source, made, min(CHUNK, end - at), at)
                if not count:  # Cut off while it was read.
                    return
                at += count
                self._written += count

    def _look(self, made: int) -> None:
        """Stop before the disk is full for everybody."""
        if self._written < LOOK_EVERY:
            return
        self._written = 0
        disk = os.fstatvfs(made)
        if disk.f_bavail * disk.f_frsize < RESERVE:
            raise OSError(errno.ENOSPC, "there is not enough room on the disk")

    @staticmethod
    def _restore(descriptor: int, status: os.stat_result) -> None:
        """Take back the right to read that opening may have given its owner."""
        if os.fstat(descriptor).st_mode != status.st_mode:
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode))

    @staticmethod
    def _finish(made: int, status: os.stat_result) -> None:
        # Who may read, write and run it; not setuid and the like, which say whose rights it has.
        os.fchmod(made, stat.S_IMODE(status.st_mode) & 0o777)
        os.utime(made, ns=(status.st_atime_ns, status.st_mtime_ns))


def _move(source: int, made: int, count: int, at: int) -> int:
    """Copy bytes at the same place of both; the kernel shares blocks where it can."""
    try:
        return os.copy_file_range(source, made, count, at, at)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return os.pwrite(made, os.pread(source, count, at), at)

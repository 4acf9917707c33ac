"""Copying an environment: what comes along, what stays behind, and that nothing is half-made."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sessions_app.environments import copying, files, layout
from sessions_app.environments.base import EnvironmentUnavailable
from sessions_app.environments.local import LocalEnvironment, LocalProvider

from .steps import make, say
from .test_worktree_changes import REPOSITORY

NOBODY = 65534


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "environments"


@pytest.fixture
async def first(root) -> LocalEnvironment:
    return await make(root, confined=False)


@contextlib.contextmanager
def an_ordinary_user() -> Iterator[Path]:
    """Be somebody who is refused things, which root never is, and have a place of one's own."""
    me = os.geteuid()
    somebody = NOBODY if me == 0 else me
    with tempfile.TemporaryDirectory() as place:
        os.chown(place, somebody, -1)
        os.seteuid(somebody)
        try:
            yield Path(place) / "environments"
        finally:
            os.seteuid(me)


async def copied(root: Path, to: str = "second") -> Path:
    assert await LocalProvider(root).copy("first", to)
    return root / to / "work"


def left_behind(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.name not in {"first", "second"}]


class TestWhatComesAlong:
    async def test_files_directories_modes_and_times(self, root, first):
        await say(first, "mkdir -p a/b empty; echo text > a/b/file; echo '#!/bin/sh' > a/run")
        await say(first, "chmod 755 a/run; chmod 640 a/b/file; chmod 510 a/b; touch -d @1000 a/run")
        work = await copied(root)
        assert (work / "a/b/file").read_text() == "text\n"
        assert (work / "empty").is_dir()
        modes = {n: stat.S_IMODE((work / n).stat().st_mode) for n in ("a/run", "a/b/file", "a/b")}
        assert modes == {"a/run": 0o755, "a/b/file": 0o640, "a/b": 0o510}
        assert (work / "a/run").stat().st_mtime == 1000
        assert left_behind(root) == []
        assert sorted(path.name for path in (root / "second").iterdir()) == ["state", "work"]

    async def test_the_copy_resumes_as_an_environment_of_its_own(self, root, first):
        await say(first, "echo here > file")
        await copied(root)
        second = await make(root, confined=False, key="second")
        assert second.resumed
        assert await say(second, "cat file; echo there > file") == "here\n"
        assert (first.work / "file").read_text() == "here\n"

    async def test_links_stay_links_and_are_never_followed(self, root, first, tmp_path):
        (tmp_path / "secret").mkdir()
        (tmp_path / "secret/word").write_text("zanzibar")
        await say(
            first, f"ln -s {tmp_path}/secret out; ln -s nowhere dangling; echo x > f; ln -s f in"
        )
        work = await copied(root)
        assert os.readlink(work / "out") == f"{tmp_path}/secret"
        assert os.readlink(work / "dangling") == "nowhere"
        assert os.readlink(work / "in") == "f"

    async def test_a_repository_works_and_has_nothing_to_say(self, root, first):
        await say(first, REPOSITORY + "echo three >> file; git stash -q; git branch other")
        work = await copied(root)
        git = ["git", "-C", str(work)]
        assert subprocess.run([*git, "fsck"], check=True, capture_output=True)  # noqa: ASYNC221
        second = await make(root, confined=False, key="second")
        assert await say(second, "git status --porcelain") == ""
        assert await say(second, "git stash pop -q; git diff --stat | tail -1; git branch") != ""

    async def test_hard_links_stay_one_file(self, root, first):
        await say(first, "echo one > a; mkdir d; ln a d/b; ln a c; echo other > lonely")
        work = await copied(root)
        inodes = {(work / name).stat().st_ino for name in ("a", "d/b", "c")}
        assert len(inodes) == 1
        assert (work / "a").stat().st_nlink == 3
        assert (work / "a").stat().st_ino != (first.work / "a").stat().st_ino

    async def test_a_file_with_holes_takes_no_more_room(self, root, first):
        with (first.work / "sparse").open("wb") as file:
            file.truncate(1 << 40)
            file.seek(1 << 30)
            file.write(b"in the middle")
        work = await copied(root)
        status = (work / "sparse").stat()
        assert status.st_size == 1 << 40
        assert status.st_blocks * 512 < 1 << 20
        with (work / "sparse").open("rb") as file:
            file.seek(1 << 30)
            assert file.read(13) == b"in the middle"

    async def test_content_is_the_same_where_the_kernel_cannot_copy(self, root, first, monkeypatch):
        def refuse(*arguments: object) -> int:
            raise OSError(errno.EXDEV, "not this way")

        monkeypatch.setattr(os, "copy_file_range", refuse)
        monkeypatch.setattr(copying, "CHUNK", 1000)
        (first.work / "data").write_bytes(bytes(range(256)) * 100)
        work = await copied(root)
        assert (work / "data").read_bytes() == bytes(range(256)) * 100


class TestWhatStaysBehind:
    async def test_fifos_sockets_and_devices(self, root, first):
        os.mkfifo(first.work / "fifo")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(first.work / "socket"))
        if os.geteuid() == 0:
            os.mknod(first.work / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        await say(first, "echo x > file")
        work = await copied(root)
        assert [path.name for path in work.iterdir()] == ["file"]

    async def test_the_marks_of_the_turns(self, root, first):
        await say(first, REPOSITORY)
        await first.mark("turn-1")
        await say(first, "echo three >> file")
        await copied(root)
        second = await make(root, confined=False, key="second")
        await second.mark("turn-1")
        await say(second, "echo four >> file")
        diff = await second.changes("turn-1")
        assert b"+four" in diff
        assert b"+three" not in diff

    async def test_whose_rights_a_file_has(self, root, first):
        await say(first, "echo x > file; chmod 6755 file")
        work = await copied(root)
        assert stat.S_IMODE((work / "file").stat().st_mode) == 0o755

    async def test_what_vanishes_meanwhile(self, root, first, monkeypatch):
        await say(first, "echo x > gone; echo y > stays")
        entry = copying._Copying._entry

        def after_the_file_has_gone(self, name, *rest):
            (first.work / "gone").unlink(missing_ok=True)
            entry(self, name, *rest)

        monkeypatch.setattr(copying._Copying, "_entry", after_the_file_has_gone)
        work = await copied(root)
        assert [path.name for path in work.iterdir()] == ["stays"]

    async def test_what_is_cut_off_meanwhile(self, root, first, monkeypatch):
        monkeypatch.setattr(copying, "CHUNK", 100)
        (first.work / "file").write_bytes(b"x" * 1000)
        move = copying._move

        def shrinking(*arguments):
            os.truncate(first.work / "file", 50)
            return move(*arguments)

        monkeypatch.setattr(copying, "_move", shrinking)
        work = await copied(root)
        assert (work / "file").read_bytes()[:50] == b"x" * 50

    async def test_what_is_unreadable_for_its_owner_is_copied_and_stays_so(self):
        with an_ordinary_user() as root:
            first = root / "first" / "work"
            (first / "d").mkdir(parents=True)
            (first / "d/file").write_text("x")
            (first / "d/file").chmod(0)
            (first / "d").chmod(0)
            with pytest.raises(PermissionError):
                (first / "d/file").read_text()
            work = await copied(root)
            for path in (work, first):
                assert stat.S_IMODE((path / "d").stat().st_mode) == 0
            (work / "d").chmod(0o700)
            assert stat.S_IMODE((work / "d/file").stat().st_mode) == 0
            (work / "d/file").chmod(0o600)
            assert (work / "d/file").read_text() == "x"


class TestWhenItCannotBeDone:
    async def test_there_is_nothing_to_copy(self, root, first):
        assert not await LocalProvider(root).copy("never", "second")
        assert not (root / "second").exists()

    async def test_a_full_disk_leaves_nothing_half_made(self, root, first, monkeypatch):
        await say(first, "mkdir a; echo x > a/file; echo y > b")

        def full(*arguments: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(copying, "_move", full)
        with pytest.raises(EnvironmentUnavailable, match=r"copied: No space left on device\.$"):
            await copied(root)
        assert sorted(path.name for path in root.iterdir()) == ["first"]

    async def test_it_leaves_room_for_the_database(self, root, first, monkeypatch):
        await say(first, "echo x > file")
        monkeypatch.setattr(copying, "RESERVE", 1 << 62)
        with pytest.raises(EnvironmentUnavailable, match="not enough room"):
            await copied(root)
        assert sorted(path.name for path in root.iterdir()) == ["first"]

    async def test_directories_without_end_are_refused(self, root, first):
        await say(first, "for i in $(seq 140); do mkdir d; cd d; done")
        with pytest.raises(EnvironmentUnavailable, match="deeper than 128 levels"):
            await copied(root)
        assert sorted(path.name for path in root.iterdir()) == ["first"]

    async def test_an_environment_that_is_there_is_not_overwritten(self, root, first):
        await make(root, confined=False, key="second")
        with pytest.raises(EnvironmentUnavailable, match="File exists"):
            await copied(root)
        assert (root / "second/work").is_dir()

    async def test_a_working_directory_that_became_a_link_is_not_followed(
        self, root, first, tmp_path
    ):
        first.work.rmdir()
        first.work.symlink_to(tmp_path)
        assert not await LocalProvider(root).copy("first", "second")

    async def test_what_a_crash_left_is_cleared_away_a_day_later(self, root, first):
        old, new = root / f"{layout.COPYING}old", root / f"{layout.COPYING}new"
        for path in (old, new):
            (path / "work").mkdir(parents=True)
        os.utime(old, (1000, 1000))
        await copied(root)
        assert not old.exists()
        assert new.exists()

    async def test_it_is_done_in_a_thread_of_its_own(self, root, first, monkeypatch):
        names: list[str] = []
        duplicate = layout.duplicate

        def noticed(*arguments):
            names.append(threading.current_thread().name)
            return duplicate(*arguments)

        monkeypatch.setattr(layout, "duplicate", noticed)
        await copied(root)
        assert names[0].startswith("signalbox-copies")
        files.remove(root / "second")

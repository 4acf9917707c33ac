"""What a confined step tries and does not get, and what happens where it cannot be confined."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sessions_app.environments import bubblewrap
from sessions_app.environments.base import Command, EnvironmentUnavailable
from sessions_app.environments.local import LocalEnvironment, LocalProvider

from .steps import living, make, need_bubblewrap, run, say


@pytest.fixture
async def confined(tmp_path) -> LocalEnvironment:
    return await make(tmp_path / "environments", confined=True)


@contextlib.contextmanager
def listening(family: socket.AddressFamily, address: object) -> Iterator[socket.socket]:
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen()
        listener.settimeout(0)
        yield listener


CONNECT = "import socket\nsocket.socket(socket.{family}).connect({address!r})\n"


class TestTheOutside:
    async def test_a_socket_outside_cannot_be_reached(self, confined, tmp_path):
        address = str(tmp_path / "database.sock")
        source = CONNECT.format(family="AF_UNIX", address=address)
        with listening(socket.AF_UNIX, address) as listener:
            end, said = await run(confined, source, "python")
            assert (end.exit_code, "FileNotFoundError" in said) == (1, True)
            with pytest.raises(BlockingIOError):
                listener.accept()
            # The same program does reach it where it is not confined.
            unconfined = await make(tmp_path / "others", confined=False)
            await say(unconfined, source, "python")
            listener.accept()[0].close()

    async def test_a_socket_without_a_file_cannot_be_reached(self, confined):
        address = f"\0signalbox-{os.getpid()}"
        with listening(socket.AF_UNIX, address) as listener:
            end, said = await run(
                confined, CONNECT.format(family="AF_UNIX", address=address), "python"
            )
            assert (end.exit_code, "ConnectionRefusedError" in said) == (1, True)
            with pytest.raises(BlockingIOError):
                listener.accept()

    async def test_there_is_no_network(self, confined):
        assert confined.network is False
        with listening(socket.AF_INET, ("127.0.0.1", 0)) as listener:
            source = CONNECT.format(family="AF_INET", address=listener.getsockname())
            end, said = await run(confined, source, "python")
            assert end.exit_code == 1, said
            with pytest.raises(BlockingIOError):
                listener.accept()
        devices = await say(confined, "tail -n +3 /proc/net/dev | cut -d: -f1")
        assert devices.split() == ["lo"]

    async def test_files_of_others_and_of_the_server_do_not_exist(self, confined, tmp_path):
        other = await make(tmp_path / "environments", confined=True, key="other")
        await say(other, "echo hush > secret")
        await confined.mark("start")
        (tmp_path / "database").write_text("hush")
        # The path of the working directory outside is where the others are.
        for path in (other.work, tmp_path, tmp_path / "environments", "/root", "/home", "/var/lib"):
            assert await say(confined, f"test -e {path} || echo none") == "none\n"
        assert await say(confined, "ls -A") == ""

    async def test_only_what_programs_need_is_there(self, confined):
        said = await say(confined, "ls /; ls /etc")
        assert set(said.split()) <= {
            *("bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin"),
            *("tmp", "usr", "var", "work"),
            *("alternatives", "ca-certificates.conf", "group", "hosts", "ld.so.cache"),
            *("ld.so.conf", "ld.so.conf.d", "localtime", "nsswitch.conf", "passwd", "pki", "ssl"),
        }
        assert await say(confined, "ls /etc/ssl") in ("certs\n", "")

    async def test_processes_and_variables_of_the_server_do_not_exist(self, confined, monkeypatch):
        monkeypatch.setenv("SECRET_KEY", "hush")
        said = await say(confined, "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n'")
        assert "hush" not in said
        assert str(confined.work.parent) not in said
        numbers = (await say(confined, "ls /proc | grep '^[0-9]'")).split()
        assert str(os.getpid()) not in numbers
        assert len(numbers) <= 5
        end, _ = await run(confined, f"kill -0 {os.getpid()}")
        assert end.exit_code == 1

    async def test_a_temporary_file_is_private_and_does_not_stay(self, confined):
        await say(confined, "touch /tmp/a /run/a /var/tmp/a /dev/shm/a")
        said = await say(confined, "ls -A /tmp; ls -A /var/tmp; ls -A /dev/shm; ls -A /run")
        assert said == "step\n"


class TestItsRights:
    @pytest.mark.parametrize(
        "path",
        ["/usr/x", "/bin/x", "/lib/x", "/etc/x", "/x", "/dev/x", "/proc/self/comm", "/run/step"],
    )
    async def test_the_system_cannot_be_written(self, confined, path):
        end, said = await run(confined, f"echo x > {path}")
        assert end.exit_code != 0
        assert "Read-only file system" in said or "Permission denied" in said

    async def test_settings_of_the_kernel_cannot_be_written(self, confined):
        # As root, bubblewrap alone lets this happen, and what is set there runs outside.
        path = Path("/proc/sys/kernel/core_pattern")
        before = path.read_text()
        end, said = await run(confined, f"cat {path} > /tmp/x; cat /tmp/x > {path}")
        assert (end.exit_code != 0, "Read-only file system" in said) == (True, True)
        assert path.read_text() == before

    async def test_it_has_no_capability_and_cannot_get_any(self, confined):
        said = await say(confined, "grep -E 'Cap|NoNewPrivs' /proc/self/status")
        values = {line.split()[0]: int(line.split()[1], 16) for line in said.splitlines()}
        assert values.pop("NoNewPrivs:") == 1
        assert set(values.values()) == {0}
        end, _ = await run(confined, "mount -t tmpfs tmpfs /tmp")
        assert end.exit_code != 0
        assert (await say(confined, "id -u; id -un; id -gn; hostname")).split() == [
            *("1000", "signalbox", "signalbox", "signalbox")
        ]

    async def test_it_cannot_make_namespaces_of_its_own(self, confined):
        if bubblewrap.NO_NESTING not in confined._confinement.extras:
            pytest.skip("this bubblewrap is older than 0.8 and has no --disable-userns")
        end, _ = await run(confined, "unshare --user true")
        assert end.exit_code != 0

    async def test_its_variables_do_not_act_on_bubblewrap(self, confined, tmp_path):
        await run(confined, "true", LD_DEBUG="all", LD_DEBUG_OUTPUT=str(tmp_path / "leak"))
        assert [path.name for path in tmp_path.iterdir()] == ["environments"]

    async def test_neither_source_nor_variables_are_on_a_command_line(self, confined):
        seen: list[list[int]] = []

        def look(chunk: bytes) -> None:
            seen.append([pid for pid in living("hush") if b"bwrap" in command_line(pid)])

        command = Command("sh", "echo begun; sleep 0.1 # hush", 10, {"SECRET": "hush"})
        await confined.run(command, look, asyncio.Event())
        assert seen == [[]]

    async def test_links_out_of_the_working_directory_lead_nowhere(self, confined, tmp_path):
        (tmp_path / "secret").write_text("hush")
        (confined.work / "link").symlink_to(tmp_path / "secret")
        end, said = await run(confined, "cat link")
        assert (end.exit_code, "hush" in said) == (1, False)


class TestItsFiles:
    async def test_the_server_owns_them(self, confined):
        await say(confined, "touch file; mkdir directory; touch directory/file")
        for path in confined.work.rglob("*"):
            assert path.stat().st_uid == os.getuid()

    async def test_they_are_shared_with_unconfined_steps(self, tmp_path):
        # bubblewrap was not there, came, and went again.
        root = tmp_path / "environments"
        for number, kind in enumerate((False, True, False, True)):
            environment = await make(root, kind)
            await say(environment, f"mkdir -p d; echo {number} >> d/file; touch d/{number}")
        assert (environment.work / "d" / "file").read_text() == "0\n1\n2\n3\n"
        assert environment.resumed


class TestWhereItDoesNotWork:
    async def test_without_bubblewrap_steps_run_and_it_is_said(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        environment = await LocalProvider(tmp_path / "root").open("key")
        assert (environment.confined, environment.network) == (False, True)
        assert environment.detail.startswith(
            "bubblewrap is not installed: commands run unconfined, as the server's user"
        )
        assert await say(environment, "echo hello") == "hello\n"

    async def test_a_bubblewrap_that_fails_is_asked_once_and_quoted(self, tmp_path, monkeypatch):
        program = tmp_path / "bwrap"
        program.write_text(
            f"#!/bin/sh\necho x >> {tmp_path}/calls\n"
            "echo 'bwrap: setting up uid map: Permission denied' >&2\necho more\nexit 1\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        provider = LocalProvider(tmp_path / "root")
        for key in ("first", "second"):
            environment = await provider.open(key)
            assert environment.confined is False
            assert environment.detail.startswith(
                "bubblewrap could not start: bwrap: setting up uid map: Permission denied: "
            )
        assert (tmp_path / "calls").read_text() == "x\nx\n"  # With and without --disable-userns.

    async def test_who_insists_on_confinement_gets_none_or_it(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(EnvironmentUnavailable, match="must be confined, but bubblewrap is not"):
            await LocalProvider(tmp_path / "root", True).open("key")

    async def test_data_that_every_step_could_read_is_not_called_confined(
        self, tmp_path, monkeypatch
    ):
        assert bubblewrap.visible(Path("/usr/share/signalbox")) == "/usr"
        assert bubblewrap.visible(tmp_path) is None
        monkeypatch.setattr(bubblewrap, "SYSTEM", ("/usr", str(tmp_path)))
        environment = await LocalProvider(tmp_path / "root").open("key")
        assert environment.confined is False
        assert f"the data lies below {tmp_path}" in environment.detail

    async def test_confinement_can_be_switched_off(self, tmp_path):
        need_bubblewrap()
        environment = await LocalProvider(tmp_path / "root", False).open("key")
        assert environment.detail.startswith("confinement is switched off: commands run unconfined")

    async def test_where_it_works_it_is_said(self, confined):
        assert confined.detail.startswith("Confined by bubblewrap")


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""

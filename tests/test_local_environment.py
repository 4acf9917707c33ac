"""Commands on this machine, confined or not: what they see, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from sessions_app.environments import interpreters
from sessions_app.environments.base import Command, EnvironmentUnavailable, Exit, ProducedFile
from sessions_app.environments.local import LocalEnvironment, LocalProvider

from .steps import living, make, run, say, until

SERVER = """
import asyncio, sys
from pathlib import Path
from sessions_app.environments.base import Command
from sessions_app.environments.local import LocalProvider

async def main(root, confined, mark):
    environment = await LocalProvider(Path(root), confined == "True").open("key")
    source = "trap '' TERM; setsid sleep 1000 & echo begun; sleep 1000"
    command = Command("sh", source, 60, {"MARK": mark})
    await environment.run(command, lambda chunk: print(chunk, flush=True), asyncio.Event())

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(params=["confined", "unconfined"])
async def environment(request, tmp_path) -> LocalEnvironment:
    return await make(tmp_path / "environments", request.param == "confined")


@pytest.fixture
async def unconfined(tmp_path) -> LocalEnvironment:
    return await make(tmp_path / "environments", confined=False)


@pytest.fixture
def mark() -> str:
    return f"mark-{uuid.uuid4()}"


class TestWhatACommandGets:
    async def test_it_runs_in_the_working_directory_and_its_files_stay(self, environment):
        await say(environment, "echo kept > file; mkdir below")
        assert (environment.work / "file").read_text() == "kept\n"
        assert await say(environment, "print(open('file').read())", "python") == "kept\n\n"

    async def test_output_and_errors_come_in_one_stream_in_order(self, environment):
        assert await say(environment, "echo 1; echo 2 >&2; echo 3") == "1\n2\n3\n"

    async def test_the_first_line_that_fails_ends_the_step(self, environment):
        end, said = await run(environment, "echo before; (exit 7); echo after")
        assert (end.reason, end.exit_code, said) == ("exited", 7, "before\n")
        end, said = await run(environment, "(exit 8) | cat; echo after", "bash")
        assert (end.exit_code, said) == (8, "")

    async def test_death_by_a_signal_is_told_as_shells_tell_it(self, environment):
        end, _ = await run(environment, "kill -SEGV $$")
        assert end.exit_code == 128 + signal.SIGSEGV

    async def test_a_command_that_is_not_there_says_so(self, environment):
        end, said = await run(environment, "no-such-command")
        assert end.exit_code == 127
        assert "no-such-command: not found" in said

    async def test_an_interpreter_that_is_not_there_says_so(self, environment, monkeypatch):
        monkeypatch.setattr(interpreters, "PATH", "/nowhere")
        end, said = await run(environment, "true", "bash")
        assert end == Exit("exited", 127, 0)
        assert said == "bash: not found; it is not installed on this machine.\n"

    async def test_the_servers_python_is_lent_where_the_system_has_none(
        self, environment, monkeypatch
    ):
        found = interpreters._system_program
        monkeypatch.setattr(
            interpreters, "_system_program", lambda name: None if "py" in name else found(name)
        )
        said = await say(environment, "import sys; print(sys.prefix)", "python")
        assert said.strip() == str(Path(sys.base_prefix).resolve())
        assert (await say(environment, "echo $PATH")).strip().endswith(f":{said.strip()}/bin")

    async def test_python_finds_modules_in_the_working_directory(self, environment):
        (environment.work / "helper.py").write_text("answer = 42")
        assert await say(environment, "import helper; print(helper.answer)", "python") == "42\n"

    async def test_standard_input_is_empty(self, environment):
        assert await say(environment, "cat; readlink /proc/self/fd/0") == "/dev/null\n"

    async def test_its_variables_are_built_from_nothing(self, environment, monkeypatch):
        monkeypatch.setenv("SECRET_KEY", "hush")
        monkeypatch.setenv("PYTHONPATH", "/server")
        command = Command("sh", "env -0", 10, {"GIVEN": "two\nlines 'and' \"quotes\""})
        said = bytearray()
        await environment.run(command, said.extend, asyncio.Event())
        found = dict(line.split("=", 1) for line in said.decode().split("\0") if line)
        home = "/work" if environment.confined else str(environment.work)
        assert found.pop("GIVEN") == "two\nlines 'and' \"quotes\""
        found.pop("_", None)
        assert found == interpreters.variables(home)
        assert "hush" not in said.decode()

    async def test_a_variable_that_cannot_be_one_is_refused(self, environment):
        for name, value in (("", "a"), ("A=B", "c"), ("A", "b\0c")):
            with pytest.raises(ValueError, match="cannot be a variable"):
                await environment.run(
                    Command("sh", "true", 5, {name: value}), bytearray().extend, asyncio.Event()
                )

    async def test_a_long_source_needs_no_command_line(self, environment):
        source = "#" + "x" * 100 + "\n"
        assert await say(environment, source * 3000 + "echo done") == "done\n"
        said = await say(environment, f"text = '{'y' * 300_000}'\nprint(len(text))", "python")
        assert said == "300000\n"

    async def test_binary_output_is_handed_on_as_it_is(self, environment):
        said = bytearray()
        source = "import sys; sys.stdout.buffer.write(bytes(range(256)))"
        await environment.run(Command("python", source, 10), said.extend, asyncio.Event())
        assert said == bytes(range(256))

    async def test_it_inherits_no_file_of_the_server(self, environment, tmp_path):
        with (tmp_path / "secret").open("w") as file:
            os.set_inheritable(file.fileno(), True)
            source = (
                "import os\n"
                "for name in os.listdir('/proc/self/fd'):\n"
                "  try: print(name, os.readlink('/proc/self/fd/' + name))\n"
                "  except OSError: pass\n"
            )
            said = await say(environment, source, "python")
        lines = [line.split(" ", 1) for line in said.splitlines()]
        others = [target for name, target in lines if int(name) > 2]
        # The script itself, where it is not a file of the mount tree.
        assert others == ([] if environment.confined else ["/memfd:step (deleted)"])

    async def test_signals_have_their_default_effect(self, environment):
        assert await say(environment, "yes | head -n 1") == "y\n"

    async def test_a_missing_working_directory_is_told(self, environment):
        environment.work.rmdir()
        with pytest.raises(EnvironmentUnavailable, match="is gone"):
            await run(environment, "true")


class TestMuchOutput:
    async def test_200_megabytes_are_read_with_flat_memory_and_a_live_loop(self, environment):
        size, before, most, ticks = 0, resident(), 0, 0

        def take(chunk: bytes) -> None:
            nonlocal size, most
            size += len(chunk)
            assert len(chunk) <= 64 * 1024
            most = max(most, resident()) if size % 50 == 0 else most

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticking = asyncio.ensure_future(tick())
        command = Command("sh", "head -c 200000000 /dev/zero", 30)
        end = await environment.run(command, take, asyncio.Event())
        ticking.cancel()
        assert (end.exit_code, size) == (0, 200_000_000)
        assert max(most, resident()) - before < 16 * 1024 * 1024
        assert ticks >= 200_000_000 / (64 * 1024)

    async def test_an_error_of_the_taker_ends_the_command_and_is_raised(self, environment, mark):
        def take(chunk: bytes) -> None:
            raise OSError("the disk is full")

        command = Command("sh", "yes", 20, {"MARK": mark})
        with pytest.raises(OSError, match="the disk is full"):
            await environment.run(command, take, asyncio.Event())
        assert living(mark) == []


class TestTheEnd:
    async def test_the_time_limit_ends_it(self, environment, mark):
        end, said = await run(environment, "echo begun; sleep 1000", timeout=0.3, MARK=mark)
        assert (end.reason, end.exit_code, said) == ("timed_out", None, "begun\n")
        assert 300 <= end.duration_ms < 5000
        assert living(mark) == []

    async def test_cancelling_ends_it(self, environment, mark):
        cancelled = asyncio.Event()
        said = bytearray()

        def take(chunk: bytes) -> None:
            said.extend(chunk)
            cancelled.set()

        command = Command("bash", "echo begun; sleep 1000", 20, {"MARK": mark})
        end = await environment.run(command, take, cancelled)
        assert (end.reason, end.exit_code, said) == ("cancelled", None, b"begun\n")
        assert living(mark) == []

    async def test_what_is_cancelled_before_it_starts_does_not_start(self, environment):
        cancelled = asyncio.Event()
        cancelled.set()
        end, said = await run(environment, "echo begun > file", cancelled=cancelled)
        assert (end, said) == (Exit("cancelled", None, 0), "")
        assert not (environment.work / "file").exists()

    async def test_one_that_ignores_the_signal_is_killed(self, environment, mark):
        source = "trap '' TERM INT HUP; echo begun; while :; do sleep 1000 || :; done"
        end, said = await run(environment, source, "bash", timeout=0.3, MARK=mark)
        assert (end.reason, end.exit_code, said) == ("timed_out", None, "begun\n")
        assert living(mark) == []

    async def test_one_that_cleans_up_has_the_time_to(self, environment):
        environment.grace = 5
        source = "trap 'sleep 0.2; echo clean; exit 3' TERM; echo begun; sleep 1000 & wait"
        end, said = await run(environment, source, timeout=0.3)
        assert (end.reason, end.exit_code, said) == ("timed_out", 3, "begun\nclean\n")
        assert end.duration_ms < 4000

    async def test_a_shell_that_dies_at_once_takes_no_time_from_what_it_runs(self, environment):
        environment.grace = 5
        (environment.work / "program.py").write_text(
            "import signal, sys, time\n"
            "def end(*_):\n"
            "    time.sleep(0.3); print('saved\\n', end=''); sys.exit()\n"
            "signal.signal(signal.SIGTERM, end); print('begun\\n', end='')\n"
            "time.sleep(1000)\n"
        )
        cancelled = asyncio.Event()
        said = bytearray()

        def take(chunk: bytes) -> None:
            said.extend(chunk)
            cancelled.set()

        # The second command is there so that the shell does not become the first.
        command = Command("sh", "python3 program.py; echo no", 20)
        end = await environment.run(command, take, cancelled)
        assert (end.reason, end.exit_code, said) == ("cancelled", None, b"begun\nsaved\n")
        assert end.duration_ms < 4000

    @pytest.mark.parametrize(
        "source",
        [
            "sleep 1000 & echo done",
            "setsid sleep 1000 & echo done",
            "(setsid sh -c 'sleep 1000 & sleep 1001' > /dev/null 2>&1 &); echo done",
            "env -i nohup setsid sh -c 'sleep 1000; :' $MARK > /dev/null 2>&1 & echo done",
            "trap '' TERM; (setsid sh -c 'while :; do sleep 1000; done' &); echo done",
        ],
        ids=["background", "own session", "forked twice", "no environment", "deaf"],
    )
    async def test_nothing_it_put_into_the_background_outlives_it(self, environment, mark, source):
        end, said = await run(environment, source, MARK=mark)
        assert (end.reason, end.exit_code, said) == ("exited", 0, "done\n")
        assert end.duration_ms < 5000
        assert living(mark) == []

    async def test_a_cancelled_task_leaves_nothing(self, environment, mark):
        begun = asyncio.Event()
        command = Command("sh", "trap '' TERM; echo begun; sleep 1000", 20, {"MARK": mark})
        task = asyncio.ensure_future(
            environment.run(command, lambda chunk: begun.set(), asyncio.Event())
        )
        await begun.wait()
        assert living(mark)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert living(mark) == []

    @pytest.mark.parametrize("turns", [1, 2, 3, 5, 8])
    async def test_a_task_cancelled_while_it_starts_leaves_nothing(self, environment, mark, turns):
        command = Command("sh", "sleep 1000", 20, {"MARK": mark})
        task = asyncio.ensure_future(environment.run(command, bytearray().extend, asyncio.Event()))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert living(mark) == []

    async def test_it_dies_with_a_server_that_is_killed(self, environment, mark):
        root = environment.work.parent.parent
        server = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-c", SERVER, str(root), str(environment.confined), mark],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )
        with server:
            assert server.stdout.readline() == b"b'begun\\n'\n"
            assert len([pid for pid in living(mark) if pid != server.pid]) >= 2
            server.kill()
        await until(lambda: living(mark) == [])

    def test_it_works_on_a_loop_outside_the_main_thread(self, tmp_path):
        said: list[str] = []

        async def main() -> None:
            said.append(await say(await make(tmp_path / "root", confined=False), "echo hello"))

        thread = threading.Thread(target=asyncio.run, args=[main()])
        thread.start()
        thread.join(20)
        assert said == ["hello\n"]

    async def test_many_run_at_once(self, environment):
        said = await asyncio.gather(*(say(environment, f"echo {n}") for n in range(10)))
        assert said == [f"{n}\n" for n in range(10)]


class TestOpeningAndDeleting:
    async def test_files_are_found_again_and_are_private(self, tmp_path):
        provider = LocalProvider(tmp_path / "root", False)
        first = await provider.open("a-Key_1")
        await say(first, "echo kept > file")
        again = await provider.open("a-Key_1")
        assert (first.resumed, again.resumed) == (False, True)
        assert await say(again, "cat file") == "kept\n"
        assert stat.S_IMODE((tmp_path / "root").stat().st_mode) == 0o700

    async def test_it_is_quick(self, tmp_path):
        provider = LocalProvider(tmp_path / "root")
        await provider.open("first")
        times = []
        for number in range(5):
            started = time.perf_counter()
            await provider.open(f"key-{number}")
            times.append(time.perf_counter() - started)
        assert min(times) < 0.02

    @pytest.mark.parametrize("key", ["", ".", "..", "a/b", "a b", "ä", "a\n", "a" * 200])
    async def test_a_key_that_is_no_plain_name_is_refused(self, tmp_path, key):
        provider = LocalProvider(tmp_path / "root", False)
        with pytest.raises(ValueError):
            await provider.open(key)
        with pytest.raises(ValueError):
            await provider.delete(key)

    async def test_a_missing_data_directory_is_told_and_not_made(self, tmp_path):
        with pytest.raises(EnvironmentUnavailable, match="does not exist: create it, or set"):
            await LocalProvider(tmp_path / "data" / "environments").open("key")
        assert not (tmp_path / "data").exists()

    async def test_a_root_that_cannot_be_used_is_told(self, tmp_path):
        (tmp_path / "root").write_text("a file")
        with pytest.raises(EnvironmentUnavailable, match=r"cannot be used .*: make it writable"):
            await LocalProvider(tmp_path / "root").open("key")

    async def test_a_root_that_cannot_be_made_is_told(self):
        # Not even root makes a directory there.
        with pytest.raises(EnvironmentUnavailable, match="make it writable"):
            await LocalProvider(Path("/sys/signalbox")).open("key")

    async def test_a_link_in_the_place_of_the_working_directory_is_refused(self, unconfined):
        unconfined.work.rmdir()
        unconfined.work.symlink_to("/")
        with pytest.raises(EnvironmentUnavailable, match="Not a directory"):
            await LocalProvider(unconfined.work.parent.parent).open("first")
        with pytest.raises(EnvironmentUnavailable, match="is gone"):
            await run(unconfined, "true")

    async def test_deleting_removes_everything_and_follows_no_link(self, environment, tmp_path):
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "file").touch()
        (environment.work / "link").symlink_to(tmp_path / "outside")
        source = (
            "import os\n"
            "os.makedirs('locked/below'); open('locked/below/file', 'w'); os.mkfifo('pipe')\n"
            "os.chmod('locked/below', 0o500); os.chmod('locked', 0); os.chmod('.', 0o700)\n"
            "for _ in range(1500): os.mkdir('d', 0o700); os.chdir('d')\n"
            "os.chmod('.', 0)"
        )
        await say(environment, source, "python")
        root = environment.work.parent.parent
        provider = LocalProvider(root, environment.confined)
        await provider.delete("first")
        assert list(root.iterdir()) == []
        assert (tmp_path / "outside" / "file").exists()
        assert not (await provider.open("first")).resumed

    async def test_deleting_what_is_not_there_does_nothing(self, tmp_path):
        provider = LocalProvider(tmp_path / "root", False)
        await provider.delete("key")
        await provider.open("other")
        await provider.delete("key")
        assert (await provider.open("other")).resumed

    async def test_an_interrupted_removal_is_finished_by_the_next(self, tmp_path):
        provider = LocalProvider(tmp_path / "root", False)
        await provider.open("key")
        (tmp_path / "root" / ".removed-1" / "work").mkdir(parents=True)
        await provider.delete("other")
        assert [path.name for path in (tmp_path / "root").iterdir()] == ["key"]


class TestProducedFiles:
    async def test_regular_files_are_listed_by_name(self, environment):
        await say(
            environment,
            "mkdir -p artifacts/b/c; cd artifacts; echo 1 > z; echo 22 > b/c/y; touch a; mkdir e",
        )
        found = environment.produced()
        assert [(file.name, file.size) for file in found] == [("a", 0), ("b/c/y", 3), ("z", 2)]
        with environment.open_produced(found[1]) as file:
            assert file.read() == b"22\n"

    async def test_no_artifacts_are_no_error(self, environment):
        assert environment.produced() == []

    async def test_links_and_pipes_and_sockets_are_left_out(self, environment, tmp_path):
        (tmp_path / "secret").write_text("hush")
        await say(
            environment,
            "mkdir artifacts; cd artifacts; touch real; mkfifo pipe; ln -s real link\n"
            f"ln -s {tmp_path}/secret outside; ln -s {tmp_path} directory; ln -s /dev/zero zero\n"
            "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")'",
        )
        assert [file.name for file in environment.produced()] == ["real"]

    async def test_artifacts_that_is_a_link_yields_nothing(self, environment, tmp_path):
        (tmp_path / "secret").write_text("hush")
        await say(environment, f"ln -s {tmp_path} artifacts")
        assert environment.produced() == []
        path = environment.work / "artifacts" / "secret"
        with pytest.raises(OSError):
            environment.open_produced(ProducedFile("secret", path, 4))

    @pytest.mark.parametrize("trick", ["ln -s /etc/passwd a", "mkfifo a", "mkdir a"])
    async def test_a_file_that_became_something_else_is_not_opened(self, unconfined, trick):
        await say(unconfined, "mkdir artifacts; echo 1 > artifacts/a")
        [file] = unconfined.produced()
        await say(unconfined, f"cd artifacts; rm a; {trick}")
        with pytest.raises(OSError):
            unconfined.open_produced(file)

    async def test_a_directory_that_became_a_link_is_not_entered(self, unconfined, tmp_path):
        await say(unconfined, "mkdir -p artifacts/d; echo 1 > artifacts/d/a")
        [file] = unconfined.produced()
        await say(unconfined, "mv artifacts/d elsewhere; ln -s ../elsewhere artifacts/d")
        with pytest.raises(OSError):
            unconfined.open_produced(file)

    async def test_a_path_that_leaves_the_working_directory_is_refused(self, unconfined):
        for path in (unconfined.work / ".." / "state", Path("/etc/passwd"), unconfined.work):
            with pytest.raises((OSError, ValueError)):
                unconfined.open_produced(ProducedFile("x", path, 1))

    async def test_files_that_were_made_unreadable_are_read(self, environment):
        await say(environment, "mkdir -p artifacts/d; cd artifacts; echo 1 > d/a; chmod 0 d/a d .")
        [file] = environment.produced()
        with environment.open_produced(file) as content:
            assert content.read() == b"1\n"

    async def test_a_name_that_is_no_text_can_be_opened(self, environment):
        await say(environment, "mkdir artifacts; printf 1 > \"artifacts/$(printf 'a\\377')\"")
        [file] = environment.produced()
        assert file.name == "a\N{REPLACEMENT CHARACTER}"
        with environment.open_produced(file) as content:
            assert content.read() == b"1"

    async def test_a_deep_tree_is_no_error(self, environment):
        source = (
            "import os\nos.makedirs('artifacts'); os.chdir('artifacts'); open('a', 'w')\n"
            "for _ in range(1500): os.mkdir('d'); os.chdir('d')\n"
        )
        await say(environment, source, "python")
        assert [file.name for file in environment.produced()] == ["a"]
        # pytest could not remove it.
        await LocalProvider(environment.work.parent.parent, False).delete("first")


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")

"""The real `serve` process: it starts, is killed, starts again, and stops in order."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import websockets

from config import embedded

from .installation import ROOT, Browser, Installation, free_port, installation, wait_for

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Installation]:
    with installation(tmp_path) as made:
        yield made


def submit(browser: Browser, place: Installation, instruction: str) -> str:
    agent = place.one("SELECT id FROM sessions_app_agent")
    _, address, body = browser.post("/sessions/", agent=agent, instruction=instruction)
    assert "/sessions/ses_" in address, body
    return address.rstrip("/").rpartition("/")[2]


SLOW = """
```sh
mkdir -p artifacts
echo kept > artifacts/kept.txt
echo $$ > running.txt
sleep 600
```
"""
GATED = "```sh\necho before > before.txt\n```\n\n```sh gate=ask\ncat before.txt\n```\n"


def test_it_prints_one_link_that_signs_in_once_and_a_fresh_one_at_every_start(place):
    first = place.start()
    browser = place.browser()
    assert browser.get("/")[0] == 200
    assert Browser(place.base).get(first)[0] == 410
    assert place.stop() == 0
    assert place.start() != first
    assert place.browser().get("/admin/")[0] == 200


def test_a_turn_killed_in_the_middle_of_a_step_is_never_stuck(place):
    place.start()
    session = submit(place.browser(), place, SLOW)
    started = "SELECT 1 FROM sessions_app_event WHERE type = 'tool_call.started'"
    wait_for(lambda: place.one(started), "the step does not start")
    work = place.data / "environments" / session / "work"
    wait_for((work / "running.txt").exists, "the command does not run")
    place.kill()
    before = place.rows("SELECT seq, type FROM sessions_app_event ORDER BY seq")

    place.start(SIGNALBOX_LEASE_SECONDS="2", SIGNALBOX_HEARTBEAT_SECONDS="0.5")
    place.wait_for_turn("WAITING_FOR_PERMISSION")
    after = place.rows("SELECT seq, type FROM sessions_app_event ORDER BY seq")
    assert after[: len(before)] == before
    assert [seq for seq, _ in after] == list(range(1, len(after) + 1))
    assert (
        place.one(
            "SELECT data->>'status' FROM sessions_app_event WHERE type = 'tool_call.completed'"
        )
        == "interrupted"
    )
    assert (work / "artifacts" / "kept.txt").read_text() == "kept\n"
    browser = place.browser()
    assert browser.post(f"/sessions/{session}/turns/", instruction="Go on.")[0] == 200
    approval, digest = place.rows("SELECT id, digest FROM approvals_app_approvalrequest")[0]
    browser.post(f"/approvals/{approval}/decision/", verdict="reject", digest=digest)
    assert place.wait_for_turn("COMPLETED", "FAILED") == "FAILED"
    assert place.wait_for_turn("COMPLETED", "FAILED", number=2) == "COMPLETED"


def test_a_turn_whose_worker_was_killed_is_taken_over_in_the_time_that_is_promised(place):
    """Two servers with an in-memory layer each: no hint gets from one to the other."""
    timers = {"LEASE": 3.0, "HEARTBEAT": 1.0, "JOB_POLL": 0.5}
    settled = {f"SIGNALBOX_{name}_SECONDS": str(value) for name, value in timers.items()}
    other = Installation(place.data, place.database)
    try:
        place.start(**settled)
        other.start(**settled)
        submit(place.browser(), place, SLOW)
        started = "SELECT 1 FROM sessions_app_event WHERE type = 'tool_call.started'"
        wait_for(lambda: place.one(started), "the step does not start")
        holder = place.one("SELECT holder FROM sessions_app_turn")
        servers = {str(each.process.pid): each for each in (place, other) if each.process}
        killed = place.one("SELECT clock_timestamp()")
        servers[holder.split(":")[1]].kill()
        again = "SELECT min(created_at) FROM sessions_app_event WHERE data->>'reason' = 'rescued'"
        taken = wait_for(lambda: place.one(again), f"nobody takes it over: {place.log()}")
        # A busy machine may add to it, but not as much as what is promised leaves over.
        assert (taken - killed).total_seconds() < sum(timers.values()) + 3
        assert place.one("SELECT holder FROM sessions_app_turn") != holder
    finally:
        if other.process is not None:
            other.kill()


def test_a_pending_card_still_works_after_a_kill(place):
    place.start()
    session = submit(place.browser(), place, GATED)
    place.wait_for_turn("WAITING_FOR_PERMISSION")
    place.kill()

    place.start()
    browser = place.browser()
    approval, digest = place.rows("SELECT id, digest FROM approvals_app_approvalrequest")[0]
    assert approval in browser.get(f"/sessions/{session}/")[2]
    status, _, body = browser.post(
        f"/approvals/{approval}/decision/", verdict="approve", digest=digest
    )
    assert status == 200, body
    assert place.wait_for_turn("COMPLETED", "FAILED") == "COMPLETED"


def test_it_stops_with_code_0_while_20_sockets_are_open_and_tells_them_to_come_back(place):
    place.start()
    browser = place.browser()
    session = submit(browser, place, "Just a word.")
    place.wait_for_turn("COMPLETED")
    headers = {"Cookie": browser.cookies(), "Origin": place.base.rstrip("/")}
    address = f"ws://127.0.0.1:{place.port}/ws/sessions/{session}/?after=0"

    async def watch() -> list[int | None]:
        sockets = [await websockets.connect(address, additional_headers=headers) for _ in range(20)]
        for each in sockets:
            while "<!--1 " not in str(await asyncio.wait_for(each.recv(), 20)):
                pass
        assert place.process is not None
        place.process.send_signal(signal.SIGTERM)
        for each in sockets:
            await asyncio.wait_for(each.wait_closed(), 20)
        return [each.close_code for each in sockets]

    assert asyncio.run(watch()) == [1012] * 20, place.log()
    assert place.process is not None
    assert place.process.wait(20) == 0
    assert "Traceback" not in place.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_running_step_is_handed_back_when_it_stops(place, number):
    place.start(SIGNALBOX_STOP_GRACE_SECONDS="0.2")
    session = submit(place.browser(), place, SLOW)
    work = place.data / "environments" / session / "work"
    wait_for((work / "running.txt").exists, "the command does not run")
    assert place.stop(number) == 0
    assert place.rows("SELECT state, holder FROM sessions_app_turn") == [("RUNNING", "")]
    place.start()
    place.wait_for_turn("WAITING_FOR_PERMISSION")
    assert place.one("SELECT title FROM approvals_app_approvalrequest").endswith("(again)")


def test_its_log_is_clean_after_ordinary_use(place):
    place.start()
    browser = place.browser()
    session = submit(browser, place, "```sh\necho hello\n```\n")
    place.wait_for_turn("COMPLETED", "WAITING_FOR_PERMISSION")
    for path in ("/", f"/sessions/{session}/", "/approvals/", "/admin/", "/static/img/signal.svg"):
        browser.get(path)
    browser.get("/static/django_htmx/htmx-2.min.js")
    assert place.stop() == 0
    assert place.log() == ""


@pytest.fixture
def embedded_place() -> Iterator[Installation]:
    """One on the embedded database, where its user can reach it."""
    data = Path(tempfile.mkdtemp(prefix="signalbox-embedded-"))
    data.chmod(0o711)
    made = Installation(data)
    try:
        yield made
    finally:
        if made.process is not None:
            made.kill()
        embedded.stop(data)
        shutil.rmtree(data)


def test_the_embedded_database_outlives_a_kill_and_ends_with_its_last_server(embedded_place):
    def servers() -> list[int]:
        cluster = str(embedded_place.data / "postgres")
        running = psutil.process_iter(["cmdline"])
        return [process.pid for process in running if cluster in (process.info["cmdline"] or [])]

    embedded_place.start()
    browser = embedded_place.browser()
    agent = re.search(r"agt_\w+", browser.get("/")[2])
    assert agent
    address = browser.post("/sessions/", agent=agent.group(), instruction="Remember me.")[1]
    embedded_place.kill()
    assert servers()
    embedded_place.start()
    assert "Remember me." in embedded_place.browser().get(address)[2]
    assert embedded_place.stop() == 0
    assert servers() == []


# -- what a self-hoster can get wrong --------------------------------------------------------------


def refused(place: Installation, **more: str) -> str:
    """Start where it cannot start, and return what it says."""
    ended = subprocess.run(
        [sys.executable, "manage.py", "serve"],
        cwd=ROOT,
        env=place.environment(**more),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_a_port_in_use_is_refused_with_what_to_do(place):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        said = refused(place, PORT=str(other.getsockname()[1]))
    assert "PORT" in said


@pytest.mark.parametrize("port", ["many", "-1", "99999"])
def test_a_port_that_is_none_is_refused_with_what_to_do(place, port):
    assert "PORT" in refused(place, PORT=port)


def test_a_database_that_does_not_answer_is_refused_with_what_to_do(place):
    nobody = f"postgresql://nobody@127.0.0.1:{free_port()}/none"
    assert "DATABASE_URL" in refused(place, DATABASE_URL=nobody)


@pytest.mark.parametrize("url", ["mysql://a@b/c", "nonsense", "postgresql://a@b:port/c"])
def test_a_database_address_that_cannot_be_is_refused_with_what_to_do(place, url):
    assert "DATABASE_URL" in refused(place, DATABASE_URL=url)


def test_a_data_directory_that_cannot_be_made_is_refused_with_what_to_do(place, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "SIGNALBOX_DATA" in refused(place, SIGNALBOX_DATA=str(tmp_path / "file" / "data"))


def test_the_embedded_database_is_not_imported_when_an_address_is_given(place):
    code = (
        "import django, sys; django.setup();"
        "sys.exit(any(name.startswith(('config.embedded', 'pixeltable')) for name in sys.modules))"
    )
    environment = place.environment(DJANGO_SETTINGS_MODULE="config.settings")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    assert os.environ.get("DATABASE_URL") is None


def test_it_says_so_when_no_administrator_is_active_and_the_name_is_taken(place):
    place.start()
    place.stop()
    place.rows("UPDATE auth_user SET is_active = false RETURNING 1")
    assert "createsuperuser" in refused(place)


def test_a_download_that_nobody_reads_costs_little_memory_and_one_that_is_read_is_whole(place):
    place.start()
    browser = place.browser()
    submit(
        browser, place, "```sh gate=ask\nmkdir artifacts; head -c 80M /dev/zero > artifacts/a\n```"
    )
    place.wait_for_turn("WAITING_FOR_PERMISSION")
    approval, digest = place.rows("SELECT id, digest FROM approvals_app_approvalrequest")[0]
    browser.post(f"/approvals/{approval}/decision/", verdict="approve", digest=digest)
    place.wait_for_turn("COMPLETED")
    artifact = place.one("SELECT id FROM sessions_app_artifact")
    assert place.process is not None
    server = psutil.Process(place.process.pid)
    before = server.memory_info().rss
    request = (
        f"GET /artifacts/{artifact}/content/ HTTP/1.1\r\nHost: 127.0.0.1:{place.port}\r\n"
        f"Cookie: {browser.cookies()}\r\n\r\n"
    ).encode()
    readers = []
    for _ in range(10):
        reader = socket.create_connection(("127.0.0.1", place.port))
        reader.sendall(request)
        assert b"200 OK" in reader.recv(1000)
        readers.append(reader)
    status, _, body = browser.get(f"/artifacts/{artifact}/content/")
    assert (status, len(body)) == (200, 80 * 1024 * 1024)
    assert server.memory_info().rss - before < 150 * 1024 * 1024
    for reader in readers:
        reader.close()

"""Two web and two worker processes on one database and one Redis do one installation's work."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from .fleet import Fleet, Member, Web, fleet, read_until, state_of, submit, wait_for_state
from .installation import Browser, wait_for
from .left_out import need

pytestmark = pytest.mark.timeout(120)

GATED = """
```sh
echo before > before.txt
```

```sh gate=ask
cat before.txt; echo the continuation ran
```
"""
STEPS = 4
ROLLING = "\n".join(f"```sh\necho {n} >> ran.txt; sleep 0.3\n```\n" for n in range(STEPS))


class Stage:
    """The fleet while it serves, with a browser that is signed in everywhere."""

    def __init__(self, made: Fleet) -> None:
        self.fleet, self.place = made, made.place
        self.a, self.b = made.web("web-a"), made.web("web-b")
        self.workers = [made.worker("worker-1"), made.worker("worker-2")]
        self.browser = made.sign_in(self.a, self.a.ready())
        self.b.ready()
        self.holders = [holder_in(worker.ready()) for worker in self.workers]

    def here(self, web: Web) -> Browser:
        return web.browser(self.browser)

    def replace(self, number: int) -> None:
        """Start another worker in the place of one that ended."""
        fresh = self.fleet.worker(f"worker-{number + 1}-again")
        self.workers[number] = fresh
        self.holders[number] = holder_in(fresh.ready())

    def only(self, number: int) -> Member:
        """Let one of the two workers work alone."""
        self.workers[number].thaw()
        self.workers[1 - number].freeze()
        return self.workers[number]


def holder_in(line: str) -> str:
    return line.partition("turns: ")[2].partition(",")[0]


@pytest.fixture(scope="module")
def serving(tmp_path_factory) -> Iterator[Stage]:
    need("bwrap", "bubblewrap")
    # With half a minute between two looks by timer, what comes at once came by a hint.
    with fleet(tmp_path_factory.mktemp("fleet"), SIGNALBOX_POLL_SECONDS="30") as made:
        yield Stage(made)


@pytest.fixture
def stage(serving: Stage) -> Iterator[Stage]:
    yield serving
    for worker in serving.workers:
        worker.thaw()


def decide(browser: Browser, stage: Stage, session: str) -> None:
    approval, digest = stage.place.rows(
        "SELECT id, digest FROM approvals_app_approvalrequest WHERE session_id = %s", session
    )[0]
    status, _, body = browser.post(
        f"/approvals/{approval}/decision/", verdict="approve", digest=digest
    )
    assert status == 200, body


def events_of(stage: Stage, session: str) -> list[tuple[int, str]]:
    return stage.place.rows(
        "SELECT seq, type FROM sessions_app_event WHERE session_id = %s ORDER BY seq", session
    )


def holder_of_environment(stage: Stage, session: str) -> str:
    return str(
        stage.place.one(
            "SELECT holder FROM sessions_app_executionenvironment WHERE session_id = %s", session
        )
    )


@pytest.mark.parametrize("first", [0, 1])
def test_the_main_job_is_done_across_two_web_and_two_worker_processes(stage, first):
    stage.only(first)
    at_a, at_b = stage.here(stage.a), stage.here(stage.b)
    session = submit(at_a, stage.place, GATED)
    with stage.b.watch(session, at_b) as socket:
        read_until(socket, "Approve")
        wait_for_state(stage.place, session, "WAITING_FOR_PERMISSION")
        assert holder_of_environment(stage, session) == stage.holders[first]

        stage.only(1 - first)
        decide(at_b, stage, session)
        read_until(socket, "the continuation ran")
    wait_for_state(stage.place, session, "COMPLETED")
    assert holder_of_environment(stage, session) == stage.holders[1 - first]
    assert "the continuation ran" in at_a.get(f"/sessions/{session}/")[2]
    seqs = [seq for seq, _ in events_of(stage, session)]
    assert seqs == list(range(1, len(seqs) + 1))


def test_a_request_to_stop_reaches_the_worker_that_runs_it_at_once(stage):
    session = submit(stage.here(stage.a), stage.place, "```sh\ntouch begun; sleep 600\n```")
    begun = stage.place.data / "environments" / session / "work" / "begun"
    wait_for(begun.exists, "the command does not run")
    turn = stage.place.one("SELECT id FROM sessions_app_turn WHERE session_id = %s", session)
    asked = time.monotonic()
    stage.here(stage.b).post(f"/turns/{turn}/cancellation/")
    wait_for_state(stage.place, session, "CANCELLED")
    assert time.monotonic() - asked < 2.5


def test_a_rolling_restart_under_load_loses_nothing_and_runs_each_command_once(stage):
    browsers = [stage.here(stage.a), stage.here(stage.b)]
    sessions = [submit(browsers[n % 2], stage.place, ROLLING) for n in range(6)]
    work = stage.place.data / "environments"
    for number in (0, 1):
        wait_for(
            lambda: any((work / each / "work" / "ran.txt").exists() for each in sessions),
            "nothing runs",
        )
        assert stage.workers[number].stop() == 0, stage.workers[number].log()
        stage.replace(number)
    for session in sessions:
        assert wait_for_state(stage.place, session, "COMPLETED", "FAILED") == "COMPLETED"
        ran = (work / session / "work" / "ran.txt").read_text().split()
        assert ran == [str(n) for n in range(STEPS)]
        seqs = [seq for seq, _ in events_of(stage, session)]
        assert seqs == list(range(1, len(seqs) + 1))


def test_a_worker_told_to_stop_lets_its_step_end_and_the_other_goes_on_at_once(stage):
    stage.only(0)
    slow = "```sh\necho 1 >> ran.txt; sleep 1\n```\n\n```sh\necho 2 >> ran.txt\n```\n"
    session = submit(stage.here(stage.a), stage.place, slow)
    ran = stage.place.data / "environments" / session / "work" / "ran.txt"
    wait_for(ran.exists, "the command does not run")
    stage.workers[1].thaw()
    assert stage.workers[0].stop() == 0, stage.workers[0].log()
    left = time.monotonic()
    wait_for_state(stage.place, session, "COMPLETED")
    # By a wake-up, not by the rescue that looks every three seconds.
    assert time.monotonic() - left < 2
    assert ran.read_text().split() == ["1", "2"]
    reasons = stage.place.rows(
        "SELECT data->>'reason' FROM sessions_app_event"
        " WHERE session_id = %s AND type = 'turn.started' ORDER BY seq",
        session,
    )
    assert reasons == [("started",), ("resumed",)]
    assert holder_of_environment(stage, session) == stage.holders[1]
    stage.replace(0)


def test_a_worker_that_is_stopping_throws_no_wake_up_away(stage):
    stage.only(0)
    session = submit(stage.here(stage.a), stage.place, "```sh\ntouch begun; sleep 3\n```")
    begun = stage.place.data / "environments" / session / "work" / "begun"
    wait_for(begun.exists, "the command does not run")
    stage.workers[0].ask_to_stop()
    others = [submit(stage.here(stage.b), stage.place, "Just a word.") for _ in range(3)]
    assert stage.workers[0].ended() == 0
    assert [state_of(stage.place, each) for each in others] == ["QUEUED"] * 3
    stage.workers[1].thaw()
    thawed = time.monotonic()
    for each in others:
        wait_for_state(stage.place, each, "COMPLETED")
    assert time.monotonic() - thawed < 2
    stage.replace(0)


def test_another_asgi_server_serves_pages_and_sockets_with_hints_through_redis(stage):
    plain = stage.fleet.daphne("daphne")
    browser = stage.here(plain)
    wait_for(plain.answers, "Daphne does not listen")
    session = submit(browser, stage.place, GATED)
    with plain.watch(session, browser) as socket:
        read_until(socket, "Approve")
        wait_for_state(stage.place, session, "WAITING_FOR_PERMISSION")
        decide(browser, stage, session)
        read_until(socket, "the continuation ran")
    plain.stop()


def test_the_logs_are_clean(stage):
    for member in (stage.a, stage.b, *stage.workers):
        assert "Traceback" not in member.log()
        assert "WARNING" not in member.log(), member.log()

"""The engine: a turn is run once, told in order, and never stuck, whatever its runner does."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.utils import timezone

from approvals_app.decisions import decide
from approvals_app.models import ApprovalRequest
from sessions_app import engine, events, live
from sessions_app.engine import Worker
from sessions_app.environments import registry as environments
from sessions_app.environments.base import EnvironmentUnavailable
from sessions_app.environments.local import LocalProvider
from sessions_app.events import (
    HEAD_BYTES,
    TAIL_BYTES,
    MessageCreated,
    Payload,
    ProgressUpdated,
    UsageRecorded,
    WidgetCreated,
)
from sessions_app.models import Agent, Artifact, ExecutionEnvironment, Session, Turn
from sessions_app.models.usage import Usage
from sessions_app.output import INLINE_BYTES
from sessions_app.run import BACKLOG
from sessions_app.runners import registry
from sessions_app.runners.base import (
    Capabilities,
    Grant,
    Problem,
    Refusal,
    TurnContext,
    TurnFailure,
)
from sessions_app.threads import close_pool, in_thread

from .crowd import until_locked
from .scenes import (
    action,
    artifacts,
    everything,
    jobs,
    let_the_lease_run_out,
    open_session,
    types,
)

pytestmark = pytest.mark.django_db(transaction=True)

Script = Callable[[TurnContext], AsyncIterator[Payload]]


class Scripted:
    """A runner that does what the test wrote down."""

    kind = "scripted"
    label = "Scripted"
    capabilities = Capabilities(drafts=True, resumes=True, cancels=True, environment=True)

    def __init__(self) -> None:
        self.script: Script | None = None

    def check(self, instruction: str) -> list[Problem]:
        return []

    def run(self, turn: TurnContext) -> AsyncIterator[Payload]:
        assert self.script is not None
        return self.script(turn)


@pytest.fixture
def scripted(agent: Agent) -> Iterator[Scripted]:
    runner = Scripted()
    registry.register(runner)
    Agent.objects.filter(pk=agent.pk).update(runner="scripted")
    agent.refresh_from_db()
    yield runner
    registry._runners.pop("scripted")


@pytest.fixture
def session(scripted: Scripted, agent: Agent, alice: Any) -> Session:
    return open_session(agent, alice)


def play(story: Callable[[], Awaitable[Any]]) -> Any:
    """Run a story on a loop of its own, as one process. What is left at its end dies with it."""

    async def process() -> Any:
        live.attach(asyncio.get_running_loop())
        try:
            return await asyncio.wait_for(story(), 30)
        finally:
            await close_pool()

    return asyncio.run(process())


def advance(session: Session) -> None:
    play(lambda: Worker().advance(session.pk))


def say(text: str, ref: str | None = None) -> MessageCreated:
    return MessageCreated(role="assistant", text=text, ref=ref)


def said(session: Session) -> list[str]:
    found = session.events.filter(type="message.created", data__role="assistant").order_by("seq")
    return list(found.values_list("data__text", flat=True))


def turn_of(session: Session) -> Turn:
    session.refresh_from_db()
    return session.turns.get()


async def crash(worker: Worker, running: asyncio.Task[None]) -> None:
    """Cut a run off as the end of its process does: nothing is handed back or told."""
    [driving] = [run._driving for run in worker._runs.values()]
    assert driving is not None
    running.cancel()
    driving.cancel()
    await asyncio.wait({running, driving})


# -- ends ------------------------------------------------------------------------------------------


def test_a_runner_that_returns_completes_its_turn(session, scripted):
    async def script(turn: TurnContext) -> AsyncIterator[Payload]:
        yield say(f"Turn {turn.number}: {turn.instruction}")

    scripted.script = script
    advance(session)
    assert turn_of(session).state == "COMPLETED"
    assert said(session) == ["Turn 1: Just a word."]
    assert types(session)[-4:] == [
        "turn.started", "message.created", "turn.completed", "session.waiting_for_input",
    ]  # fmt: skip


async def at_once(turn: TurnContext) -> AsyncIterator[Payload]:
    raise ZeroDivisionError("secret detail")
    yield


async def in_the_middle(turn: TurnContext) -> AsyncIterator[Payload]:
    yield say("So far so good.")
    raise ZeroDivisionError("secret detail")


async def while_asking(turn: TurnContext) -> AsyncIterator[Payload]:
    await turn.permit("x" * 200, action(), title="A key that is too long")
    yield say("never")


async def while_cleaning_up(turn: TurnContext) -> AsyncIterator[Payload]:
    try:
        yield say("So far so good.")
    finally:
        raise ZeroDivisionError("secret detail")


async def by_a_cancelled_task_of_its_own(turn: TurnContext) -> AsyncIterator[Payload]:
    task = asyncio.ensure_future(asyncio.sleep(60))
    task.cancel()
    await task
    yield say("never")


def not_even_an_iterator(turn: TurnContext) -> Any:
    return None


FAULTS = [
    at_once,
    in_the_middle,
    while_asking,
    while_cleaning_up,
    by_a_cancelled_task_of_its_own,
    not_even_an_iterator,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_runner_that_breaks_fails_its_turn_honestly(session, scripted, caplog, fault):
    scripted.script = fault
    advance(session)
    turn = turn_of(session)
    assert (turn.state, turn.error_code) == ("FAILED", "runner_error")
    assert "secret" not in turn.error_message
    assert "log" in turn.error_message
    assert session.state == "FAILED"
    assert turn.attempt == 1
    assert "failed" in caplog.text
    assert types(session).count("turn.failed") == 1


def test_what_a_runner_said_before_it_broke_is_kept(session, scripted):
    scripted.script = in_the_middle
    advance(session)
    assert said(session) == ["So far so good."]


def test_a_failure_that_the_runner_states_has_its_code_and_message(session, scripted):
    async def script(turn: TurnContext) -> AsyncIterator[Payload]:
        raise TurnFailure("no_luck", "It was not our day.")
        yield

    scripted.script = script
    advance(session)
    turn = turn_of(session)
    assert (turn.state, turn.error_code, turn.error_message) == (
        "FAILED", "no_luck", "It was not our day.",
    )  # fmt: skip
    assert session.events.get(type="turn.failed").data["code"] == "no_luck"


def test_a_turn_of_an_unknown_runner_fails(session, agent):
    Agent.objects.filter(pk=agent.pk).update(runner="gone")
    advance(session)
    assert (turn_of(session).state, turn_of(session).error_code) == ("FAILED", "runner_error")


def test_an_event_that_cannot_be_stored_fails_the_turn_instead_of_repeating_it(session, scripted):
    async def script(turn: TurnContext) -> AsyncIterator[Payload]:
        yield say("Before.")
        # Its item is longer than the column.
        yield WidgetCreated(widget_id="w", widget="approval", body={"approval_id": "x" * 300})
        yield say("After.")

    scripted.script = script
    advance(session)
    turn = turn_of(session)
    assert (turn.state, turn.error_code) == ("FAILED", "runner_error")
    assert "After." not in said(session)


def test_a_failed_turn_lets_the_next_one_run(session, scripted, alice):
    async def script(turn: TurnContext) -> AsyncIterator[Payload]:
        if turn.number == 1:
            raise ZeroDivisionError
        yield say(f"This is {turn.number}.")

    scripted.script = script
    session.submit("Second.", author=alice)
    advance(session)
    assert list(session.turns.values_list("state", flat=True)) == ["FAILED", "COMPLETED"]
    assert said(session) == ["This is 2."]


# -- appending -------------------------------------------------------------------------------------

THOUSANDS = 3500


def test_thousands_of_payloads_are_stored_in_their_order(session, scripted, monkeypatch):
    sizes: list[int] = []
    real = engine.TurnRun._write.__globals__["append_async"]

    async def counted(conn: Any, session_id: str, payloads: list[Payload], **more: Any) -> int:
        sizes.append(len(payloads))
        return await real(conn, session_id, payloads, **more)

    async def script(turn: TurnContext) -> AsyncIterator[Payload]:
        for number in range(THOUSANDS):
            yield ProgressUpdated(label=str(number))
            if number % 500 == 250:
                await asyncio.sleep(0)  # lets the writer in, at uneven places
            if number == 1234:
                await turn.permit("step-1", action(), title="Flushes what is pending")

    monkeypatch.setattr("sessions_app.run.append_async", counted)
    Agent.objects.filter(pk=session.agent_id).update(allowed_commands=["echo hello"])
    scripted.script = script
    advance(session)
    assert turn_of(session).state == "COMPLETED"
    labels = session.events.filter(type="progress.updated").order_by("seq")
    assert [int(label) for label in labels.values_list("data__label", flat=True)] == list(
        range(THOUSANDS)
    )
    assert sum(sizes) == THOUSANDS
    assert max(sizes) <= BACKLOG
    assert len(sizes) < THOUSANDS / 5, "what arrives while an append is under way rides together"


def test_a_lone_payload_is_stored_at_once(session, scripted):
    """Not held back for others to come: its append begins while the runner goes on waiting."""

    async def story() -> None:
        goes_on = asyncio.Event()

        async def script(turn: TurnContext) -> AsyncIterator[Payload]:
            yield say("Working on it.")
            await goes_on.wait()

        scripted.script = script
        running = asyncio.create_task(Worker().advance(session.pk))
        while not await in_thread(said, session):
            assert not running.done()
        goes_on.set()
        await running

    play(story)
    assert said(session) == ["Working on it."]


# -- cancelling ------------------------------------------------------------------------------------


async def blocked(turn: TurnContext) -> AsyncIterator[Payload]:
    yield ProgressUpdated(label="here")
    await asyncio.Event().wait()


async def never_saying_a_word(turn: TurnContext) -> AsyncIterator[Payload]:
    await turn.draft("here", "here")
    await asyncio.Event().wait()
    yield say("never")


async def talking_without_a_pause(turn: TurnContext) -> AsyncIterator[Payload]:
    while True:
        yield ProgressUpdated(label="here")


async def in_a_command(turn: TurnContext) -> AsyncIterator[Payload]:
    async for payload in performing(turn, "touch begun; sleep 60"):
        yield payload


async def in_a_command_that_prints(turn: TurnContext) -> AsyncIterator[Payload]:
    async for payload in performing(turn, "touch begun; while :; do echo on and on; done"):
        yield payload


async def in_a_command_that_forked(turn: TurnContext) -> AsyncIterator[Payload]:
    async for payload in performing(turn, "sleep 60 & sleep 60 & touch begun; wait"):
        yield payload


async def performing(turn: TurnContext, source: str) -> AsyncIterator[Payload]:
    environment = await turn.environment()
    wanted = action(source, confined=environment.confined, network=environment.network)
    grant = await turn.permit("step-1", wanted, title="A step")
    assert isinstance(grant, Grant), grant
    yield ProgressUpdated(label="here")
    done = await turn.perform("call-1", grant, wanted)
    yield say(f"{done.status} {done.exit_code}")


POINTS = [
    blocked,
    never_saying_a_word,
    talking_without_a_pause,
    in_a_command,
    in_a_command_that_prints,
    in_a_command_that_forked,
]


@pytest.fixture
def trusting(agent: Agent, monkeypatch) -> Agent:
    """An agent whose steps run without asking, confined or not, unless they demand a person."""
    from approvals_app.policies import Ruling

    def rule_on(*_: Any, ask: bool) -> Ruling:
        return Ruling("ask" if ask else "allow", "a test")

    monkeypatch.setattr("approvals_app.gate.rule_on", rule_on)
    return agent


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.__name__)
def test_a_runner_is_cancelled_within_two_seconds(session, scripted, trusting, alice, point):
    async def story() -> float:
        scripted.script = point
        worker = Worker()
        loops = asyncio.create_task(worker.look_after())
        running = asyncio.create_task(worker.advance(session.pk))
        await arrived(session, running, at="turn.started")
        if point is not never_saying_a_word:
            await arrived(session, running)
        if "command" in point.__name__:
            await begun(running)
        turn = await in_thread(session.turns.get)
        start = time.monotonic()
        await in_thread(turn.cancel, by=alice, reason="Enough.")
        await running
        took = time.monotonic() - start
        loops.cancel()
        return took

    took = play(story)
    turn = turn_of(session)
    assert (turn.state, turn.cancel_requested_by) == ("CANCELLED", "alice")
    assert session.events.get(type="turn.cancelled").data == {"by": "alice", "reason": "Enough."}
    assert session.state == "WAITING_FOR_INPUT"
    assert took < 2


async def arrived(
    session: Session, running: asyncio.Task[None], *, at: str = "progress.updated"
) -> None:
    """Wait until the runner is where it is to be cut off."""
    while not await in_thread(session.events.filter(type=at).exists):
        assert not running.done()


async def begun(running: asyncio.Task[None]) -> None:
    """Wait until the command runs, which no event tells."""
    root = environments.get("local").root
    while not list(root.glob("*/work/begun")):
        assert not running.done()
        await asyncio.sleep(0)


def test_a_command_that_is_cancelled_is_told_as_such(session, scripted, trusting, alice):
    """The runner learns how its command ended, and what it says of it is still recorded."""

    async def story() -> None:
        scripted.script = in_a_command
        worker = Worker()
        running = asyncio.create_task(worker.advance(session.pk))
        await arrived(session, running)
        await begun(running)
        turn = await in_thread(session.turns.get)
        await in_thread(turn.cancel, by=alice)
        await worker.heartbeat()
        await running

    play(story)
    assert turn_of(session).state == "CANCELLED"
    assert said(session) == ["cancelled None"]


def test_a_turn_asked_to_end_before_it_is_taken_up_does_not_run(session, scripted, alice):
    async def script(turn: TurnContext) -> AsyncIterator[Payload]:
        yield say("never")

    scripted.script = script
    turn = Turn.objects.claim(session.pk, "dead-worker", lease=timedelta(minutes=1))
    turn.cancel(by=alice)
    let_the_lease_run_out(turn)
    advance(session)
    assert turn_of(session).state == "CANCELLED"
    assert said(session) == []


def test_closing_the_session_stops_its_runner(session, scripted, alice):
    async def story() -> list[str]:
        ended: list[str] = []

        async def script(turn: TurnContext) -> AsyncIterator[Payload]:
            try:
                yield ProgressUpdated(label="here")
                await asyncio.Event().wait()
            finally:
                ended.append("yes")

        scripted.script = script
        worker = Worker()
        loops = asyncio.create_task(worker.look_after())
        running = asyncio.create_task(worker.advance(session.pk))
        await arrived(session, running)
        await in_thread(session.close, "COMPLETED", by=alice)
        await running
        loops.cancel()
        return ended

    assert play(story) == ["yes"]
    assert turn_of(session).state == "CANCELLED"
    assert session.state == "COMPLETED"
    assert types(session)[-1] == "session.completed"


# -- leases ----------------------------------------------------------------------------------------


def expire(session: Session) -> None:
    let_the_lease_run_out(session.turns.get())


def test_a_worker_that_lost_its_lease_stops_and_writes_nothing_more(session, scripted):
    async def story() -> tuple[Any, Any]:
        first_may_go_on, second_may_go_on = asyncio.Event(), asyncio.Event()
        runs: list[str] = []

        async def script(turn: TurnContext) -> AsyncIterator[Payload]:
            name = f"attempt {len(runs) + 1}"
            runs.append(name)
            try:
                yield ProgressUpdated(label=name)
                await (first_may_go_on if name == "attempt 1" else second_may_go_on).wait()
                yield say(f"{name} is through.")
            except asyncio.CancelledError:
                runs.append(f"{name} was stopped")
                raise

        scripted.script = script
        first, second = Worker(), Worker()
        one = asyncio.create_task(first.advance(session.pk))
        await arrived(session, one)
        await in_thread(expire, session)
        two = asyncio.create_task(second.advance(session.pk))
        while len(runs) < 2:
            await asyncio.sleep(0)
        await in_thread(settle_down, session)
        before = await in_thread(everything)
        await first.heartbeat()
        await one
        assert runs[2:] == ["attempt 1 was stopped"]
        after = await in_thread(everything)
        second_may_go_on.set()
        await two
        return before, after

    before, after = play(story)
    assert after == before
    assert said(session) == ["attempt 2 is through."]
    turn = turn_of(session)
    assert (turn.state, turn.attempt) == ("COMPLETED", 2)


def settle_down(session: Session) -> None:
    """Wait until the second attempt has said that it began."""
    began = session.events.filter(type="progress.updated", data__label="attempt 2")
    while not began.exists():
        pass


def test_a_worker_that_lost_its_lease_unawares_is_stopped_by_its_next_append(session, scripted):
    async def story() -> None:
        go_on = asyncio.Event()
        attempts: list[int] = []

        async def script(turn: TurnContext) -> AsyncIterator[Payload]:
            attempts.append(1)
            if len(attempts) == 1:
                yield ProgressUpdated(label="here")
                await go_on.wait()
                yield say("I never noticed.")
                await asyncio.Event().wait()
            yield say("Taken up.")

        scripted.script = script
        one = asyncio.create_task(Worker().advance(session.pk))
        await arrived(session, one)
        await in_thread(expire, session)
        await Worker().advance(session.pk)
        before = await in_thread(everything)
        go_on.set()
        await one  # no heartbeat told it
        assert await in_thread(everything) == before

    play(story)
    assert said(session) == ["Taken up."]
    assert types(session).count("turn.completed") == 1


@pytest.mark.parametrize("asks", ["permit", "environment", "perform"])
def test_a_worker_that_lost_its_lease_can_neither_ask_nor_do(session, scripted, trusting, asks):
    async def story() -> None:
        go_on = asyncio.Event()
        attempts: list[int] = []

        async def script(turn: TurnContext) -> AsyncIterator[Payload]:
            attempts.append(1)
            if len(attempts) > 1:
                yield say("Taken up.")
                return
            environment = await turn.environment() if asks == "perform" else None
            wanted = action("echo x > left.txt")
            if environment is not None:
                where = {"confined": environment.confined, "network": environment.network}
                wanted = action("echo x > left.txt", **where)
                grant = await turn.permit("step-1", wanted, title="A step")
            yield ProgressUpdated(label="here")
            await go_on.wait()
            if asks == "permit":
                await turn.permit("step-1", wanted, title="A step", ask=True)
            elif asks == "environment":
                await turn.environment()
            else:
                await turn.perform("call-1", grant, wanted)
            yield say("never")

        scripted.script = script
        one = asyncio.create_task(Worker().advance(session.pk))
        await arrived(session, one)
        await in_thread(expire, session)
        await Worker().advance(session.pk)
        before = await in_thread(everything)
        go_on.set()
        await one
        assert await in_thread(everything) == before

    play(story)
    assert said(session) == ["Taken up."]
    root = environments.get("local").root
    assert not list(root.rglob("left.txt")), "nothing was done"


def test_heartbeats_renew_the_lease_of_what_is_held(session, scripted, settings):
    settings.SIGNALBOX = {**settings.SIGNALBOX, "LEASE_SECONDS": 60.0}

    async def story() -> None:
        scripted.script = blocked
        worker = Worker()
        running = asyncio.create_task(worker.advance(session.pk))
        await arrived(session, running)
        soon = timezone.now() + timedelta(seconds=1)
        await in_thread(session.turns.update, lease_until=soon)
        await worker.heartbeat()
        turn = await in_thread(session.turns.get)
        assert turn.lease_until > timezone.now() + timedelta(seconds=50)
        assert (turn.state, turn.attempt, turn.holder) == ("RUNNING", 1, worker.holder)
        assert not running.done()
        await crash(worker, running)

    play(story)


def test_the_loops_keep_a_lease_alive_for_longer_than_it_lasts(session, scripted, settings):
    settings.SIGNALBOX = {
        **settings.SIGNALBOX,
        "LEASE_SECONDS": 0.5,
        "HEARTBEAT_SECONDS": 0.05,
    }

    async def story() -> None:
        go_on = asyncio.Event()

        async def script(turn: TurnContext) -> AsyncIterator[Payload]:
            yield ProgressUpdated(label="here")
            await go_on.wait()
            yield say("Still mine.")

        scripted.script = script
        worker, other = Worker(), Worker()
        loops = asyncio.create_task(worker.look_after())
        running = asyncio.create_task(worker.advance(session.pk))
        await arrived(session, running)
        first = (await in_thread(session.turns.get)).lease_until
        while timezone.now() < first + timedelta(seconds=0.3):
            assert not await other.step(session.pk)
        go_on.set()
        await running
        loops.cancel()

    play(story)
    assert turn_of(session).attempt == 1
    assert said(session) == ["Still mine."]


def test_rescue_wakes_somebody_for_what_nobody_holds_and_only_once(session, scripted):
    async def script(turn: TurnContext) -> AsyncIterator[Payload]:
        yield say("Taken up.")

    scripted.script = script
    turn = Turn.objects.claim(session.pk, "dead-worker", lease=timedelta(minutes=1))
    forget_jobs(session)
    worker = Worker()
    play(worker.rescue)
    assert jobs(session) == 0, "it is held"
    let_the_lease_run_out(turn)
    play(worker.rescue)
    play(worker.rescue)
    assert jobs(session) == 1
    advance(session)
    assert turn_of(session).state == "COMPLETED"
    assert session.events.filter(type="turn.started").last().data["reason"] == "rescued"


def forget_jobs(session: Session) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM procrastinate_jobs WHERE args->>'session_id' = %s", [session.pk]
        )


# -- stopping --------------------------------------------------------------------------------------


def test_a_worker_that_stops_hands_its_turn_back_for_another_to_take_up(session, scripted):
    async def story() -> None:
        attempts: list[list[str]] = []

        async def script(turn: TurnContext) -> AsyncIterator[Payload]:
            past = [payload.text for payload in turn.history if isinstance(payload, MessageCreated)]
            attempts.append(past)
            if len(attempts) == 1:
                yield say("First half.", ref="one")
                yield ProgressUpdated(label="here")
                await asyncio.Event().wait()
            yield say("Second half.", ref="two")

        scripted.script = script
        first = Worker()
        running = asyncio.create_task(first.advance(session.pk))
        await arrived(session, running)
        before = await in_thread(jobs, session)
        await first.stop(grace=0)
        await running
        turn = await in_thread(session.turns.get)
        assert (turn.state, turn.holder, turn.lease_until) == ("RUNNING", "", None)
        assert await in_thread(jobs, session) == before + 1
        await first.advance(session.pk)
        assert len(attempts) == 1, "a worker that stops takes nothing more"

        await Worker().advance(session.pk)
        assert attempts[1] == ["Just a word.", "First half."]

    play(story)
    assert said(session) == ["First half.", "Second half."]
    assert turn_of(session).state == "COMPLETED"
    assert session.events.filter(type="turn.started").last().data["reason"] == "resumed"


def test_a_worker_that_stops_lets_a_step_end_and_tells_how(session, scripted, trusting):
    async def story() -> None:
        scripted.script = lambda turn: performing(
            turn, "touch begun; until [ -e go-on ]; do sleep 0.02; done"
        )
        worker = Worker()
        running = asyncio.create_task(worker.advance(session.pk))
        await arrived(session, running)
        await begun(running)
        stopping = asyncio.create_task(worker.stop(grace=20))
        await worker.stopping.wait()
        [begun_here] = environments.get("local").root.glob("*/work/begun")
        begun_here.with_name("go-on").touch()
        await stopping
        await running

    play(story)
    assert said(session) == ["succeeded 0"]
    turn = turn_of(session)
    assert (turn.state, turn.holder, turn.lease_until) == ("RUNNING", "", None)


# -- waiting for a person --------------------------------------------------------------------------


def test_a_turn_that_waits_for_a_person_holds_no_slot(session, scripted, agent, alice, bob):
    ran: list[str] = []

    async def script(turn: TurnContext) -> AsyncIterator[Payload]:
        if turn.instruction == "Ask first.":
            answer = await turn.permit("step-1", action(), title="May I?", ask=True)
            ran.append(answer.reason if isinstance(answer, Refusal) else "granted")
        yield say("Through.")

    scripted.script = script
    waiting = open_session(agent, alice, "Ask first.")

    async def story() -> None:
        worker = Worker()
        await worker.advance(waiting.pk)  # returns: its slot is free
        assert worker._runs == {}
        await worker.advance(session.pk)

    play(story)
    assert turn_of(session).state == "COMPLETED"
    turn = turn_of(waiting)
    assert (turn.state, turn.holder, turn.lease_until) == ("WAITING_FOR_PERMISSION", "", None)
    assert turn.waiting_for == "asks to run May I?"
    advance(waiting)
    assert ran == [], "nobody has decided"

    request = ApprovalRequest.objects.get()
    decide(request.pk, by=bob, verdict="reject", digest=request.digest, reason="No.")
    advance(waiting)
    assert ran == ["No."]
    assert turn_of(waiting).state == "COMPLETED"


# -- crashes ---------------------------------------------------------------------------------------

STEPS = """
Count first.

```sh name=count
echo once >> count.txt
```

Then take long.

```sh name=long on-failure=continue
touch begun
sleep 60
```

Then look.

```sh name=look
cat count.txt
```
"""


def test_a_crash_in_a_step_is_taken_up_from_what_is_recorded(agent, alice, trusting):
    session = open_session(agent, alice, STEPS)

    async def dies() -> None:
        worker = Worker()
        running = asyncio.create_task(worker.advance(session.pk))
        await begun(running)
        await crash(worker, running)

    play(dies)
    turn = turn_of(session)
    assert (turn.state, turn.attempt) == ("RUNNING", 1)
    advance(session)
    assert turn_of(session).attempt == 1, "its lease has not ended"
    let_the_lease_run_out(turn)
    advance(session)
    turn = turn_of(session)
    assert (turn.state, turn.attempt) == ("WAITING_FOR_PERMISSION", 2)
    request = ApprovalRequest.objects.get()
    assert (request.key, request.title, request.state) == ("step-4.2", "long (again)", "PENDING")
    decide(request.pk, by=alice, verdict="reject", digest=request.digest, reason="It took long.")
    advance(session)
    turn = turn_of(session)
    assert (turn.state, turn.attempt, turn.error_message) == ("COMPLETED", 3, "")
    assert statuses(session) == [
        ("step-2", "succeeded"), ("step-4", "interrupted"), ("step-6", "succeeded"),
    ]  # fmt: skip
    assert outputs(session)[2]["head"] == "once\n", "the first step was not done again"
    assert types(session).count("tool_call.started") == 3
    assert types(session).count("execution_environment.started") == 1
    assert types(session).count("execution_environment.resumed") == 2


def statuses(session: Session) -> list[tuple[str, str]]:
    calls = session.events.filter(type="tool_call.completed").order_by("seq")
    return list(calls.values_list("data__call_id", "data__status"))


AGAIN = """
```sh {options}
echo run >> runs.txt; touch begun; until [ -e go-on ]; do sleep 0.02; done
```
"""


def cut_off_in_its_step(agent: Agent, alice: Any, options: str) -> tuple[Session, Any]:
    """A session whose worker died in its only step; and the directory that the step works in."""
    session = open_session(agent, alice, AGAIN.format(options=options))

    async def dies() -> None:
        worker = Worker()
        running = asyncio.create_task(worker.advance(session.pk))
        await begun(running)
        await crash(worker, running)

    play(dies)
    let_the_lease_run_out(turn_of(session))
    [here] = environments.get("local").root.glob("*/work/begun")
    here.with_name("go-on").touch()
    return session, here.parent


def test_an_interrupted_step_is_run_again_only_after_a_person_said_so(agent, alice, bob, trusting):
    session, work = cut_off_in_its_step(agent, alice, "")
    advance(session)
    assert turn_of(session).state == "WAITING_FOR_PERMISSION"
    assert (work / "runs.txt").read_text() == "run\n"
    request = ApprovalRequest.objects.get()
    decide(request.pk, by=bob, verdict="approve", digest=request.digest)
    advance(session)
    assert turn_of(session).state == "COMPLETED"
    assert (work / "runs.txt").read_text() == "run\nrun\n"
    assert statuses(session) == [("step-1", "interrupted"), ("step-1.2", "succeeded")]
    started = session.events.get(type="tool_call.started", data__call_id="step-1.2")
    assert started.data["approval_id"] == request.pk


def test_an_interrupted_step_that_is_safe_to_retry_is_run_again_by_itself(agent, alice, trusting):
    session, work = cut_off_in_its_step(agent, alice, "retry=safe")
    advance(session)
    assert turn_of(session).state == "COMPLETED"
    assert (work / "runs.txt").read_text() == "run\nrun\n"
    assert statuses(session) == [("step-1", "interrupted"), ("step-1.2", "succeeded")]
    assert not ApprovalRequest.objects.exists()


@pytest.mark.parametrize("recorded", range(4))
def test_a_crash_between_any_two_payloads_repeats_none_and_loses_none(session, scripted, recorded):
    words = ["one", "two", "three"]

    async def story() -> None:
        async def script(turn: TurnContext) -> AsyncIterator[Payload]:
            past = {payload.ref for payload in turn.history if isinstance(payload, MessageCreated)}
            crashes = not any(isinstance(p, ProgressUpdated) for p in turn.history)
            for place, word in enumerate(words):
                if crashes and place == recorded:
                    yield ProgressUpdated(label="here")
                    await asyncio.Event().wait()
                if word not in past:
                    yield say(word, ref=word)
            if crashes:
                yield ProgressUpdated(label="here")
                await asyncio.Event().wait()

        scripted.script = script
        worker = Worker()
        running = asyncio.create_task(worker.advance(session.pk))
        await arrived(session, running)
        await crash(worker, running)

    play(story)
    let_the_lease_run_out(turn_of(session))
    advance(session)
    assert said(session) == words
    assert turn_of(session).state == "COMPLETED"


def test_a_turn_whose_worker_died_after_a_decision_still_uses_the_approval(session, scripted, bob):
    deaths: list[int] = []

    async def script(turn: TurnContext) -> AsyncIterator[Payload]:
        environment = await turn.environment()
        where = {"confined": environment.confined, "network": environment.network}
        wanted = action("echo done", **where)
        grant = await turn.permit("step-1", wanted, title="A step", ask=True)
        if not deaths:
            deaths.append(1)
            yield ProgressUpdated(label="here")
            await asyncio.Event().wait()
        done = await turn.perform("call-1", grant, wanted)
        yield say(done.status)

    scripted.script = script
    advance(session)
    request = ApprovalRequest.objects.get()
    decide(request.pk, by=bob, verdict="approve", digest=request.digest)

    async def dies() -> None:
        worker = Worker()
        running = asyncio.create_task(worker.advance(session.pk))
        await arrived(session, running)
        await crash(worker, running)

    play(dies)
    let_the_lease_run_out(turn_of(session))
    advance(session)
    assert said(session) == ["succeeded"]
    assert ApprovalRequest.objects.get().used_at is not None


# -- a runner that cannot go on from the middle ----------------------------------------------------


@pytest.fixture
def forgetful(scripted: Scripted) -> Scripted:
    """A runner that has to be run in one go."""
    scripted.capabilities = Capabilities(cancels=True)
    return scripted


def lost(session: Session, scripted: Scripted) -> None:
    """Let a worker die in the middle, with a call begun and a question asked."""

    async def script(turn: TurnContext) -> AsyncIterator[Payload]:
        yield events.ToolCallStarted(call_id="one", kind="other", tool="sh", title="one")
        yield ProgressUpdated(label="here")
        await asyncio.Event().wait()

    scripted.script = script

    async def dies() -> None:
        worker = Worker()
        running = asyncio.create_task(worker.advance(session.pk))
        await arrived(session, running)
        await crash(worker, running)

    play(dies)
    turn = turn_of(session)
    ApprovalRequest.objects.create(
        session=session, turn=turn, key="step-1", title="May I?", rule="a test",
        action=action().canonical(), digest=action().digest(),
    )  # fmt: skip
    let_the_lease_run_out(turn)


def never(turn: TurnContext) -> Any:
    raise AssertionError("it was run again")


CLOSING = [
    "turn.started",
    "approval_request.resolved",
    "tool_call.completed",
    "turn.failed",
    "session.failed",
]


def test_a_lost_turn_of_a_runner_that_cannot_resume_fails_and_closes_what_it_had_open(
    session, forgetful
):
    lost(session, forgetful)
    forgetful.script = never
    advance(session)
    turn = turn_of(session)
    assert (turn.state, turn.error_code, turn.attempt) == ("FAILED", "lost_worker", 2)
    assert "Retry it to start from the beginning" in turn.error_message
    assert types(session)[-5:] == CLOSING
    assert session.events.get(type="turn.failed").data["code"] == "lost_worker"
    assert ApprovalRequest.objects.get().state == "CANCELLED"
    assert statuses(session) == [("one", "cancelled")]
    assert session.fence == ""


def test_a_lost_turn_is_retried_as_a_new_one_that_its_row_names(session, forgetful, alice):
    lost(session, forgetful)
    forgetful.script = never
    advance(session)
    first = turn_of(session)
    again = first.retry(by=alice)

    async def script(turn: TurnContext) -> AsyncIterator[Payload]:
        yield say(f"Turn {turn.number} from the beginning.")

    forgetful.script = script
    advance(session)
    again.refresh_from_db()
    assert (again.state, again.retry_of_id) == ("COMPLETED", first.pk)
    assert said(session) == ["Turn 2 from the beginning."]
    told = session.events.get(type="turn.retried")
    assert (told.turn_id, told.item, told.data) == (first.pk, f"turn:{first.pk}", {"number": 2})


@pytest.mark.parametrize("dying", range(3))
def test_a_second_death_in_the_middle_of_the_closing_leaves_it_whole_for_the_next(
    session, forgetful, monkeypatch, dying
):
    """The closing appends three times; its worker dies before each, and in one transaction."""
    lost(session, forgetful)
    forgetful.script = never
    closing: list[int] = []
    real = Session.record

    def record(self: Session, *payloads: Payload, **more: Any) -> int:
        if payloads[0].type in CLOSING[1:4]:
            closing.append(1)
            if len(closing) == dying + 1:
                raise ConnectionError("the process was killed")
        return real(self, *payloads, **more)

    monkeypatch.setattr(Session, "record", record)
    advance(session)
    monkeypatch.undo()
    turn = turn_of(session)
    assert (turn.state, turn.attempt) == ("RUNNING", 2)
    assert ApprovalRequest.objects.get().state == "PENDING"
    assert types(session)[-1] == "turn.started", "nothing of the closing is there"

    let_the_lease_run_out(turn)
    advance(session)
    turn = turn_of(session)
    assert (turn.state, turn.error_code, turn.attempt) == ("FAILED", "lost_worker", 3)
    assert types(session)[-5:] == CLOSING
    assert types(session).count("turn.failed") == 1


# -- what it costs ---------------------------------------------------------------------------------


def used(row: Any) -> dict[str, Any]:
    row.refresh_from_db()
    return {name: getattr(row, name) for name in Usage.FIELDS}


def test_tokens_and_cost_are_counted_on_the_turn_and_summed_on_session_and_agent(
    session, scripted, agent, alice
):
    async def script(turn: TurnContext) -> AsyncIterator[Payload]:
        yield say("Thinking.")
        yield UsageRecorded(input_tokens=100, output_tokens=7, cost=Decimal("0.0125"), model="m")
        yield UsageRecorded(input_tokens=50, output_tokens=3, cost=Decimal("0.000001"))
        yield say("Done.")

    scripted.script = script
    advance(session)
    session.submit("Again.", author=alice)
    advance(session)
    once = {"input_tokens": 150, "output_tokens": 10, "cost": Decimal("0.012501")}
    for turn in session.turns.all():
        assert used(turn) == {**once, "compute_ms": 0, "storage_bytes": 0}
    twice = {name: 2 * amount for name, amount in used(turn).items()}
    assert used(session) == agent.usage() == twice
    story = [type for type in types(session) if type.startswith(("message", "usage"))]
    assert story[:5] == [
        "message.created", "message.created", "usage.recorded", "usage.recorded", "message.created",
    ]  # fmt: skip


def test_an_agent_that_nobody_used_has_used_nothing(agent):
    assert agent.usage() == dict.fromkeys(Usage.FIELDS, 0)


def test_usage_beyond_all_measure_fails_the_turn_and_counts_nothing(session, scripted):
    async def script(turn: TurnContext) -> AsyncIterator[Payload]:
        yield UsageRecorded(input_tokens=10**30)

    scripted.script = script
    advance(session)
    assert (turn_of(session).state, turn_of(session).error_code) == ("FAILED", "runner_error")
    assert used(session)["input_tokens"] == 0
    assert "usage.recorded" not in types(session)


def test_the_time_of_steps_and_the_size_of_artifacts_are_counted(agent, alice, trusting):
    session = run_book(
        agent,
        alice,
        "mkdir artifacts; echo one > artifacts/a.txt; sleep 0.05",
        "echo two; sleep 0.05",
    )
    spent = sum(call.data["duration_ms"] for call in calls_of(session))
    assert spent >= 100
    turn = session.turns.get()
    assert used(turn) == used(session) == agent.usage()
    assert (turn.compute_ms, turn.storage_bytes) == (spent, 4)

    session.submit("```sh\ntouch artifacts/a.txt\n```", author=alice)
    advance(session)
    assert used(session)["storage_bytes"] == 4, "the same content is kept once"


def calls_of(session: Session) -> list[Any]:
    return list(session.events.filter(type="tool_call.completed").order_by("seq"))


def test_the_time_of_a_step_that_reached_its_limit_is_counted(agent, alice, trusting):
    session = open_session(agent, alice, "```sh timeout=0.2\nsleep 60\n```")
    advance(session)
    [call] = calls_of(session)
    assert call.data["status"] == "timed_out"
    assert used(session.turns.get())["compute_ms"] == call.data["duration_ms"] >= 200


@pytest.mark.parametrize("ends", ["cancelled", "interrupted"])
def test_the_time_of_a_step_that_was_cut_off_is_counted_once(agent, alice, trusting, ends):
    session = open_session(agent, alice, "```sh\ntouch begun; sleep 60\n```")

    async def story() -> None:
        worker = Worker()
        running = asyncio.create_task(worker.advance(session.pk))
        await begun(running)
        if ends == "cancelled":
            turn = await in_thread(session.turns.get)
            await in_thread(turn.cancel, by=alice)
            await worker.heartbeat()
        else:
            await worker.stop(grace=0)
        await running

    play(story)
    [call] = calls_of(session)
    assert call.data["status"] == ends
    assert used(turn_of(session))["compute_ms"] == call.data["duration_ms"] > 0
    assert used(session)["compute_ms"] == call.data["duration_ms"]


# -- environments ----------------------------------------------------------------------------------


class Unavailable:
    kind = "local"

    async def open(self, key: str, *, used: bool = False) -> Any:
        raise EnvironmentUnavailable("The disk is full. Make room below /data.")

    async def delete(self, key: str) -> None:
        raise AssertionError


def test_an_environment_that_is_not_available_fails_the_turn_and_says_why(
    session, scripted, trusting, alice, monkeypatch
):
    scripted.script = in_a_command
    with monkeypatch.context() as patched:
        patched.setitem(environments._providers, "local", Unavailable())
        advance(session)
    turn = turn_of(session)
    assert (turn.state, turn.error_code) == ("FAILED", "environment_unavailable")
    assert turn.error_message == "The disk is full. Make room below /data."
    told = session.events.get(type="execution_environment.failed")
    assert told.data["detail"] == turn.error_message
    assert ExecutionEnvironment.objects.get().state == "FAILED"

    # The next use tries again.
    scripted.script = lambda turn: performing(turn, "echo done")
    session.submit("Again.", author=alice)
    advance(session)
    assert said(session) == ["succeeded 0"]
    assert ExecutionEnvironment.objects.get().state == "ACTIVE"


def test_a_session_whose_files_are_on_another_machine_does_not_start_from_nothing(
    agent, alice, trusting, tmp_path, monkeypatch
):
    session = run_book(agent, alice, "echo mine > here.txt")
    elsewhere = LocalProvider(tmp_path / "environments")
    with monkeypatch.context() as patched:
        patched.setitem(environments._providers, "local", elsewhere)
        for _ in range(2):
            session.submit("```sh\ncat here.txt\n```", author=alice)
            advance(session)
            turn = session.turns.order_by("-number")[0]
            assert (turn.state, turn.error_code) == ("FAILED", "environment_unavailable")
            assert "not on this machine" in turn.error_message
    session.submit("```sh\ncat here.txt\n```", author=alice)
    advance(session)
    assert outputs(session)[-1]["head"] == "mine\n"


# -- what is produced ------------------------------------------------------------------------------


def run_book(agent: Agent, alice: Any, *steps: str) -> Session:
    instruction = "\n\n".join(f"```sh\n{step}\n```" for step in steps)
    session = open_session(agent, alice, instruction)
    advance(session)
    turn = turn_of(session)
    assert (turn.state, turn.error_message) == ("COMPLETED", "")
    return session


def outputs(session: Session) -> list[dict[str, Any]]:
    calls = session.events.filter(type="tool_call.completed").order_by("seq")
    return [call.data["output"] for call in calls]


def test_output_that_fits_stays_in_the_event(agent, alice, trusting):
    session = run_book(agent, alice, f"head -c {INLINE_BYTES} /dev/zero | tr '\\0' x")
    [output] = outputs(session)
    assert (output["head"], output["tail"], output["size"]) == ("x" * INLINE_BYTES, "", 65536)
    assert artifacts(session) == []


def test_longer_output_becomes_an_artifact_with_head_and_tail(agent, alice, trusting):
    session = run_book(
        agent, alice, "i=0; while [ $i -lt 12000 ]; do i=$((i+1)); echo line $i; done"
    )
    whole = "".join(f"line {number}\n" for number in range(1, 12001)).encode()
    [output] = outputs(session)
    assert output["size"] == len(whole) > INLINE_BYTES
    assert output["head"].encode() == whole[:HEAD_BYTES]
    assert output["tail"].encode() == whole[-TAIL_BYTES:]
    artifact = Artifact.objects.get()
    assert (artifact.kind, artifact.pk, artifact.size) == (
        "log_bundle", output["artifact_id"], len(whole),
    )  # fmt: skip
    with artifact.open() as content:
        assert content.read() == whole


def test_files_under_artifacts_are_published_once(agent, alice, trusting):
    session = run_book(
        agent,
        alice,
        "mkdir -p artifacts/deep; echo one > artifacts/a.txt; echo two > artifacts/deep/b.txt",
        "echo nothing new",
        "touch artifacts/a.txt",
        "ln -s /etc/passwd artifacts/link; mkfifo artifacts/pipe; echo no > elsewhere.txt",
    )
    assert artifacts(session) == [("file", "a.txt"), ("file", "deep/b.txt")]
    assert types(session).count("artifact.created") == 2

    session.submit("```sh\necho nothing new either\n```", author=alice)
    advance(session)
    assert types(session).count("artifact.created") == 2


def test_a_file_that_changed_is_published_again(agent, alice, trusting):
    run_book(
        agent,
        alice,
        "mkdir -p artifacts; echo one > artifacts/a.txt",
        "echo two > artifacts/a.txt",
    )
    contents = []
    for artifact in Artifact.objects.order_by("created_at"):
        with artifact.open() as content:
            contents.append((artifact.name, content.read()))
    assert contents == [("a.txt", b"one\n"), ("a.txt", b"two\n")]


def test_what_a_turn_changed_in_git_becomes_one_diff(agent, alice, trusting):
    commit = "git -c user.name=a -c user.email=a@b commit -qm"
    session = run_book(
        agent,
        alice,
        f"git init -q site; cd site; printf 'a\\nb\\n' > page.txt; git add .; {commit} one",
    )
    assert [kind for kind, _ in artifacts(session)] == ["diff"]
    session.submit(
        f"```sh\ncd site; printf 'a\\nc\\n' > page.txt; {commit} two -a; echo new > new.txt\n```",
        author=alice,
    )
    session.submit("```sh\nls site\n```", author=alice)
    advance(session)
    assert artifacts(session) == [("diff", "turn-1.diff"), ("diff", "turn-2.diff")]
    diff = Artifact.objects.get(name="turn-2.diff")
    assert diff.summary == "+2 −1 · 2 files"
    with diff.open() as content:
        text = content.read().decode()
    assert "-b\n+c\n" in text
    assert "+new" in text


# -- what a story leaves on the loop ---------------------------------------------------------------


def test_no_task_of_a_run_outlives_it(session, scripted, trusting):
    async def story() -> set[str]:
        scripted.script = lambda turn: performing(turn, "echo done")
        before = asyncio.all_tasks()
        await Worker().advance(session.pk)
        await asyncio.sleep(0)
        return {task.get_coro().__qualname__ for task in asyncio.all_tasks() - before}

    left = play(story)
    assert not [name for name in left if name.startswith(("TurnRun", "Scripted", "Process"))]


def test_a_claim_waits_for_whoever_holds_the_session(session, scripted):
    """The engine takes the session's lock first, as everybody does: no deadlock with a person."""
    from .crowd import together
    from .scenes import held

    turn = session.turns.get()
    scripted.script = at_once

    def person() -> None:
        from .crowd import until_somebody_waits

        with held(turn):
            until_somebody_waits()

    def worker() -> None:
        until_locked(session)
        assert Turn.objects.claim(session.pk, "worker", lease=timedelta(minutes=1))

    assert together(person, worker) == [None, None]


# -- whoever waits for a run may go, the run may not go astray -------------------------------------


def test_a_worker_that_takes_up_its_own_lost_turn_stops_the_first_attempt(session, scripted):
    async def story() -> list[str]:
        may_go_on = asyncio.Event()
        runs: list[str] = []

        async def script(turn: TurnContext) -> AsyncIterator[Payload]:
            name = f"attempt {len([r for r in runs if 'stopped' not in r]) + 1}"
            runs.append(name)
            try:
                yield ProgressUpdated(label=name)
                await may_go_on.wait()
            except asyncio.CancelledError:
                runs.append(f"{name} was stopped")
                raise

        scripted.script = script
        worker = Worker()
        one = asyncio.create_task(worker.advance(session.pk))
        await arrived(session, one)
        await in_thread(expire, session)
        two = asyncio.create_task(worker.advance(session.pk))
        await one
        while len(runs) < 3:
            await asyncio.sleep(0)
        assert len(worker._runs) == 1
        may_go_on.set()
        await two
        return runs

    assert play(story) == ["attempt 1", "attempt 1 was stopped", "attempt 2"]
    assert turn_of(session).state == "COMPLETED"


def test_a_run_whose_waiter_is_cancelled_is_stopped(session, scripted):
    async def story() -> None:
        stopped = asyncio.Event()

        async def script(turn: TurnContext) -> AsyncIterator[Payload]:
            try:
                yield ProgressUpdated(label="under way")
                await asyncio.Event().wait()
            finally:
                stopped.set()

        scripted.script = script
        running = asyncio.create_task(Worker().advance(session.pk))
        await arrived(session, running)
        running.cancel()
        await asyncio.wait({running})
        assert stopped.is_set()

    play(story)


def test_a_runner_that_cannot_resume_has_the_whole_grace_to_end(session, scripted):
    scripted.capabilities = Capabilities(cancels=True)

    async def story() -> None:
        worker, begun, may_go_on = Worker(), asyncio.Event(), asyncio.Event()

        async def script(turn: TurnContext) -> AsyncIterator[Payload]:
            yield say("One.")
            begun.set()
            await may_go_on.wait()
            yield say("Two.")
            yield say("Three.")

        scripted.script = script
        running = asyncio.create_task(worker.advance(session.pk))
        await begun.wait()
        stopping = asyncio.create_task(worker.stop(grace=20))
        await worker.stopping.wait()
        may_go_on.set()
        await asyncio.gather(running, stopping)

    play(story)
    assert said(session) == ["One.", "Two.", "Three."]
    assert turn_of(session).state == "COMPLETED"


def test_a_job_that_is_cancelled_leaves_its_turn_running_under_its_lease(session, scripted):
    async def story() -> None:
        may_go_on = asyncio.Event()

        async def script(turn: TurnContext) -> AsyncIterator[Payload]:
            yield ProgressUpdated(label="under way")
            await may_go_on.wait()
            yield say("Done all the same.")

        scripted.script = script
        worker = engine.worker()
        job = asyncio.create_task(engine.advance.func(session.pk))
        await arrived(session, job)
        job.cancel()
        await asyncio.wait({job})
        may_go_on.set()
        await asyncio.gather(*worker._tasks)

    play(story)
    assert said(session) == ["Done all the same."]
    assert turn_of(session).state == "COMPLETED"


def test_a_run_that_cannot_renew_its_lease_lets_go_before_others_may_take_it(session, scripted):
    async def story() -> None:
        stopped = asyncio.Event()

        async def script(turn: TurnContext) -> AsyncIterator[Payload]:
            try:
                yield ProgressUpdated(label="under way")
                await asyncio.Event().wait()
            finally:
                stopped.set()

        scripted.script = script
        worker = Worker()
        running = asyncio.create_task(worker.advance(session.pk))
        await arrived(session, running)
        await worker.let_go()
        assert not stopped.is_set()
        [run] = worker._runs.values()
        run.renewed -= 3600  # as after an hour without the database
        await worker.let_go()
        await running
        assert stopped.is_set()

    play(story)
    assert turn_of(session).state == "RUNNING"


def test_a_runner_that_ignores_that_it_is_to_stop_does_not_keep_its_turn(
    session, scripted, alice, monkeypatch, caplog
):
    monkeypatch.setattr("sessions_app.run.CANCEL_SECONDS", 0.1)

    async def story() -> None:
        free = asyncio.Event()

        async def script(turn: TurnContext) -> AsyncIterator[Payload]:
            yield ProgressUpdated(label="under way")
            while not free.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await free.wait()

        scripted.script = script
        worker = Worker()
        running = asyncio.create_task(worker.advance(session.pk))
        await arrived(session, running)
        await in_thread(_cancel, session, alice)
        await worker.heartbeat()
        await running
        free.set()

    play(story)
    assert turn_of(session).state == "CANCELLED"
    assert "does not let itself be stopped" in caplog.text


def _cancel(session: Session, by: Any) -> None:
    session.turns.get().cancel(by=by)


@pytest.mark.parametrize(
    "forged",
    [
        events.TurnCompleted(duration_ms=1),
        events.ApprovalRequestResolved(approval_id="apr_1", outcome="approved", by="bob"),
        events.SessionCompleted(by="alice"),
        events.MessageCreated(role="user", text="I said so.", author="alice"),
        events.ArtifactCreated(
            artifact_id="art_1", kind="file", name="a", media_type="text/plain", size=1, sha256="0"
        ),
    ],
    ids=lambda payload: payload.type,
)
def test_a_runner_cannot_say_what_is_not_its_to_say(session, scripted, forged):
    async def script(turn: TurnContext) -> AsyncIterator[Payload]:
        yield forged

    scripted.script = script
    before = session.events.filter(type=forged.type).count()
    advance(session)
    turn = turn_of(session)
    assert (turn.state, turn.error_code) == ("FAILED", "runner_error")
    assert session.events.filter(type=forged.type).count() == before


# -- what a step leaves --------------------------------------------------------------------------


def test_what_is_beyond_a_steps_limits_is_left_and_the_story_says_so(
    agent, alice, trusting, monkeypatch
):
    monkeypatch.setattr("sessions_app.run.MOST_FILES", 2)
    monkeypatch.setattr("sessions_app.run.MOST_BYTES", 1000)
    session = run_book(
        agent, alice, "mkdir -p artifacts; cd artifacts; echo 1 > a; truncate -s 1001 b; "
        "echo 3 > c; echo 4 > d"
    )  # fmt: skip
    assert turn_of(session).state == "COMPLETED"
    assert sorted(session.artifacts.values_list("name", flat=True)) == ["a", "c"]
    told = session.events.get(type="message.created", data__role="system").data["text"]
    assert told.startswith("Not kept as artifacts: b, d.")


def test_binary_output_is_kept_as_a_file_however_short_it_is(agent, alice, trusting):
    session = run_book(agent, alice, "head -c 30 /dev/zero")
    [output] = outputs(session)
    artifact = session.artifacts.get()
    assert output["binary"] is True
    assert (output["artifact_id"], artifact.size) == (artifact.pk, 30)


def test_output_seen_before_the_server_stopped_is_kept_with_the_interrupted_step(
    agent, alice, trusting
):
    async def story() -> None:
        worker = Worker()
        running = asyncio.create_task(worker.advance(session.pk))
        await arrived(session, running, at="tool_call.started")
        await begun(running)
        await worker.stop(grace=0)
        await running

    source = "```sh\necho so far; touch begun; sleep 60\n```\n"
    session = open_session(agent, alice, source)
    play(story)
    [output] = outputs(session)
    assert output["head"] == "so far\n"
    assert session.events.get(type="tool_call.completed").data["status"] == "interrupted"
    advance(session)
    assert session.events.filter(type="tool_call.completed").count() == 1
    assert turn_of(session).state == "WAITING_FOR_PERMISSION", "it asks before it is run again"

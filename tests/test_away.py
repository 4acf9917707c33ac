"""The database goes away and comes back: turns go on by themselves, and logs stay short."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django import db

from approvals_app.models import ApprovalRequest
from sessions_app import engine
from sessions_app.engine import Worker
from sessions_app.held import HeldTurn
from sessions_app.models import Agent, Session, Turn
from sessions_app.threads import close_pool

from .conftest import work

pytestmark = pytest.mark.django_db(transaction=True)

STEP = "```sh\necho once >> ran.txt; cat ran.txt\n```\n"


async def step(session_id: str) -> None:
    """Take one turn as a worker would, and leave nothing open on this loop."""
    try:
        await Worker().step(session_id)
    finally:
        await close_pool()


class Away:
    """Stands in for a method and fails as it does without a database, the first few times."""

    def __init__(self, method: Any, times: int) -> None:
        self.method, self.times, self.calls = method, times, 0

    def __get__(self, held: object, owner: type) -> Any:
        def call(*args: Any) -> Any:
            self.calls += 1
            if self.calls <= self.times:
                raise db.OperationalError("server closed the connection unexpectedly\nand more")
            return self.method(held, *args)

        return call


def away(monkeypatch: pytest.MonkeyPatch, name: str, times: int) -> Away:
    made = Away(getattr(HeldTurn, name), times)
    monkeypatch.setattr(HeldTurn, name, made)
    return made


@pytest.fixture
def session(agent: Agent, alice: Any) -> Session:
    session, _ = Session.objects.start(agent=agent, owner=alice, instruction=STEP)
    return session


@pytest.mark.parametrize("name", ["review", "environment_opened", "computed", "artifact", "finish"])
def test_what_may_be_done_twice_is_done_again_until_the_database_is_back(
    name, session, agent, alice, monkeypatch
):
    produce = "```sh\nmkdir artifacts; echo once | tee -a artifacts/ran.txt\n```\n"
    other, _ = Session.objects.start(agent=agent, owner=alice, instruction=produce)
    failing = away(monkeypatch, name, times=2)
    asyncio.run(work(other.pk))
    assert failing.calls > 2
    assert other.turns.get().state == "COMPLETED"
    [call] = other.events.filter(type="tool_call.completed")
    assert (call.data["status"], call.data["output"]["head"]) == ("succeeded", "once\n")


def test_a_turn_is_handed_back_when_nobody_knows_what_was_stored(session, monkeypatch, caplog):
    away(monkeypatch, "redeem", times=1)
    asyncio.run(step(session.pk))
    turn = session.turns.get()
    assert (turn.state, turn.holder, turn.lease_until) == ("RUNNING", "", None)
    assert [record.exc_info for record in caplog.records] == [None]

    # Whoever goes on finds a step that was begun, and asks before it is run a second time.
    asyncio.run(work(session.pk))
    assert session.turns.get().state == Turn.State.WAITING_FOR_PERMISSION
    assert ApprovalRequest.objects.get().title.endswith(" (again)")


def test_a_wake_up_that_finds_no_database_leaves_the_work_to_be_found(session, monkeypatch, caplog):
    def fail(*args: object, **kwargs: object) -> None:
        raise db.OperationalError("the database system is starting up")

    with monkeypatch.context() as patched:
        patched.setattr("sessions_app.models.turn.TurnQuerySet.claim", fail)
        asyncio.run(work(session.pk))
    assert [(r.levelname, r.exc_info) for r in caplog.records] == [("WARNING", None)]
    assert session.turns.get().state == "QUEUED"
    asyncio.run(work(session.pk))
    assert session.turns.get().state == "COMPLETED"


async def test_what_a_worker_repeats_is_tried_again_soon_and_told_once(monkeypatch, caplog):
    monkeypatch.setattr(engine, "AWAY_SECONDS", 0.01)
    tries = 0
    done = asyncio.Event()

    async def heartbeat() -> None:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise db.OperationalError("the connection is lost")
        done.set()

    repeating = asyncio.create_task(Worker()._repeat(heartbeat, 600))
    await asyncio.wait_for(done.wait(), 5)
    repeating.cancel()
    assert [r.getMessage() for r in caplog.records] == [
        "heartbeat waits for the database: the connection is lost"
    ]

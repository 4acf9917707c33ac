"""In the only process, work begins right after its commit: its job finds it under way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any, cast
from unittest.mock import AsyncMock, Mock

import psycopg
import pytest
from channels.layers import get_channel_layer
from django.test import AsyncRequestFactory
from procrastinate.manager import JobManager

from config import asgi
from sessions_app import engine, live
from sessions_app.events import MessageCreated, Payload
from sessions_app.models import Agent, Session, Turn
from sessions_app.runners import registry
from sessions_app.runners.base import Capabilities, Problem, TurnContext
from sessions_app.threads import in_thread

from .scenes import jobs, open_session

pytestmark = pytest.mark.django_db(transaction=True)


class Patient:
    """A runner that says one thing when it may, and counts how many of its kind run at once."""

    kind = "patient"
    label = "Patient"
    capabilities = Capabilities(resumes=True)

    def __init__(self) -> None:
        self.may_go_on = asyncio.Event()
        self.running = self.most = 0
        self.begun = asyncio.Event()

    def check(self, instruction: str) -> list[Problem]:
        return []

    async def run(self, turn: TurnContext) -> AsyncIterator[Payload]:
        self.running += 1
        self.most = max(self.most, self.running)
        self.begun.set()
        await self.may_go_on.wait()
        self.running -= 1
        yield MessageCreated(role="assistant", text="Done.")


@pytest.fixture
async def patient(agent: Agent) -> AsyncIterator[Patient]:
    runner = Patient()
    registry.register(runner)
    await in_thread(Agent.objects.filter(pk=agent.pk).update, runner="patient")
    agent.runner = "patient"
    yield runner
    registry._runners.pop("patient")


@pytest.fixture
async def worker(one_loop: None) -> AsyncIterator[engine.Worker]:
    """The worker of this process, with a job table that gives it no job."""
    worker = engine.worker()
    worker.jobs = cast("JobManager", Mock(get_stalled_jobs=AsyncMock(return_value=[])))
    loops = asyncio.create_task(worker.look_after())
    async with asyncio.timeout(5):
        while not get_channel_layer().groups.get(live.WORKERS):
            await asyncio.sleep(0.01)
    yield worker
    loops.cancel()
    await asyncio.gather(loops, *worker._tasks, return_exceptions=True)


async def completed(*sessions: Session) -> None:
    """Wait until every turn of the sessions is done."""
    async with asyncio.timeout(10):
        for session in sessions:
            unfinished = session.turns.exclude(state="COMPLETED")
            while await in_thread(unfinished.exists):
                await asyncio.sleep(0.02)


async def test_a_turn_begins_without_its_job_which_then_finds_it_done(
    patient, worker, agent, alice
):
    patient.may_go_on.set()
    session = await in_thread(open_session, agent, alice)
    await completed(session)
    assert await in_thread(jobs, session) == 1, "nobody took the job"
    async with asyncio.timeout(5):
        await engine.advance.func(session.pk)
    assert patient.most == 1


async def test_a_job_waits_for_what_was_begun_ahead_of_it(patient, worker, agent, alice):
    session = await in_thread(open_session, agent, alice)
    async with asyncio.timeout(5):
        await patient.begun.wait()
    job = asyncio.create_task(engine.advance.func(session.pk))
    await asyncio.sleep(0.2)
    assert not job.done(), "its place in the job table is taken as long as the session is worked"
    patient.may_go_on.set()
    async with asyncio.timeout(5):
        await job
    await completed(session)


async def test_what_failed_when_it_was_begun_ahead_is_done_by_its_job(
    patient, worker, agent, alice, monkeypatch
):
    real, asked = Turn.objects.claim, []

    def away_at_first(*args: Any, **kwargs: Any) -> Turn | None:
        asked.append(args)
        if len(asked) == 1:
            raise psycopg.OperationalError("the server closed the connection")
        return real(*args, **kwargs)

    monkeypatch.setattr(Turn.objects, "claim", away_at_first)
    patient.may_go_on.set()
    session = await in_thread(open_session, agent, alice)
    async with asyncio.timeout(5):
        while not asked or worker._tasks:
            await asyncio.sleep(0.01)
        await engine.advance.func(session.pk)
    await completed(session)


async def test_a_job_that_was_taken_elsewhere_hides_no_later_one(
    patient, worker, agent, alice, settings
):
    patient.may_go_on.set()
    session = await in_thread(open_session, agent, alice)
    await completed(session)
    async with asyncio.timeout(5):
        while worker._tasks:
            await asyncio.sleep(0.01)
    settings.REDIS = "redis://elsewhere"
    await in_thread(session.submit, "And another.", author=alice)
    async with asyncio.timeout(5):
        await engine.advance.func(session.pk)
    await completed(session)
    assert worker._begun == {}


async def test_no_more_begin_than_there_are_slots_however_they_are_woken(
    patient, worker, agent, alice
):
    worker.slots = asyncio.Semaphore(2)
    sessions = [await in_thread(open_session, agent, alice) for _ in range(5)]
    ahead = asyncio.create_task(engine.advance.func(sessions[4].pk))
    others = [asyncio.create_task(engine.advance.func(s.pk)) for s in sessions[:4]]
    await asyncio.sleep(0.3)
    assert patient.running == 2
    patient.may_go_on.set()
    async with asyncio.timeout(10):
        await asyncio.gather(ahead, *others)
    await completed(*sessions)
    assert patient.most == 2


async def test_a_worker_without_its_job_table_begins_nothing(patient, worker, agent, alice):
    worker.jobs = None
    patient.may_go_on.set()
    session = await in_thread(open_session, agent, alice)
    await asyncio.sleep(0.3)
    assert await in_thread(jobs, session) == 1
    assert patient.most == 0


async def test_with_other_workers_about_the_job_alone_says_who_begins(
    patient, worker, agent, alice, settings
):
    settings.REDIS = "redis://elsewhere"
    patient.may_go_on.set()
    await in_thread(open_session, agent, alice)
    await asyncio.sleep(0.3)
    assert patient.most == 0


async def test_a_requests_middleware_and_view_share_a_thread_and_requests_do_not(
    monkeypatch: Any,
):
    """Two requests that wait for each other would never end if they shared a thread."""
    both, threads = threading.Barrier(2, timeout=10), []

    def respond(handler: Any, request: Any) -> Any:
        both.wait()
        threads.append(threading.get_ident())
        return original(handler, request)

    def outermost(request: Any) -> Any:
        seen.append(threading.get_ident())
        return chain(request)

    seen: list[int] = []
    original = asgi.OneThread._get_response
    monkeypatch.setattr(asgi.OneThread, "_get_response", respond)
    handler = asgi.OneThread()
    chain = handler._middleware_chain
    monkeypatch.setattr(handler, "_middleware_chain", outermost)
    answers = await asyncio.gather(*(_get(handler) for _ in range(2)))
    assert [answer["status"] for answer in answers] == [200, 200]
    assert sorted(seen) == sorted(threads)
    assert len(set(seen)) == 2


async def _get(handler: asgi.OneThread) -> dict[str, Any]:
    scope = AsyncRequestFactory().get("/healthz").scope
    sent: list[dict[str, Any]] = []
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if sent:
            await gone.wait()
        sent.append({})
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await handler(scope, receive, send)
    return next(message for message in sent if message.get("type") == "http.response.start")

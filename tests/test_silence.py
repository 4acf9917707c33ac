"""Every hint is lost: all that waits looks for itself, and everything still arrives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from django.test import Client
from procrastinate.contrib.django import app

from approvals_app.models import ApprovalRequest
from sessions_app import engine, live
from sessions_app.models import Session, Turn
from sessions_app.threads import in_thread

from .conftest import signed_in
from .pages import Timeline, Watcher

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("one_loop")]

GATED = "```sh gate=ask name=greet\necho hello from the step\n```\n\nThat was it.\n"
LONG = "```sh gate=ask name=long\necho it has begun; sleep 600\n```\n"


@pytest.fixture
def lost(monkeypatch) -> list[str]:
    """The groups to which hints were sent that nobody got."""
    groups: list[str] = []

    async def nowhere(group: str, message: dict[str, Any]) -> None:
        groups.append(group)

    monkeypatch.setattr(live, "_group_send", nowhere)
    return groups


@pytest.fixture
async def deaf_worker(settings, lost, one_loop) -> AsyncIterator[None]:
    """A worker with all its loops, which does not listen for notifications of jobs."""
    settings.SIGNALBOX = {**settings.SIGNALBOX, "HEARTBEAT_SECONDS": 0.3}
    jobs = app.with_connector(app.connector.get_worker_connector())
    loops = asyncio.create_task(engine.worker().look_after())
    async with jobs.open_async():
        working = asyncio.create_task(
            jobs.run_worker_async(
                concurrency=2,
                delete_jobs="always",
                install_signal_handlers=False,
                listen_notify=False,
                shutdown_graceful_timeout=1.0,
            )
        )
        yield
        await engine.worker().stop(grace=0)
        for task in (working, loops):
            task.cancel()
        await asyncio.gather(working, loops, return_exceptions=True)


async def seen(page: Watcher, what: Callable[[Timeline], bool]) -> None:
    """Apply frames until the page shows it."""
    while not what(page.timeline):
        frame = await page.frame()
        assert frame is not None
        page.timeline.apply(frame)


def showing(*words: str) -> Callable[[Timeline], bool]:
    return lambda timeline: all(word in timeline.text() for word in words)


async def post(client: Client, address: str, **form: str) -> Any:
    answer = await in_thread(client.post, address, form)
    assert answer.status_code == 302, answer.content.decode()
    return answer


async def approve(client: Client, number: int) -> None:
    request = await in_thread(ApprovalRequest.objects.get, turn__number=number)
    form = {"verdict": "approve", "digest": request.digest}
    await post(client, f"/approvals/{request.pk}/decision/", **form)


async def test_the_whole_of_a_session_goes_on_without_a_single_hint(
    agent, alice, bob, lost, deaf_worker
):
    mine, others = await in_thread(signed_in, alice), await in_thread(signed_in, bob)
    await post(mine, "/sessions/", agent=agent.pk, instruction=GATED)
    session = await in_thread(Session.objects.get)
    async with Watcher(session, alice) as page:
        # Submitted, run, parked: found by timer three times, and then the frame as well.
        await seen(page, showing("greet", "Approve"))
        await approve(others, 1)
        await seen(page, showing("hello from the step", "That was it.", "completed"))

        await post(mine, f"/sessions/{session.pk}/turns/", instruction=LONG)
        await seen(page, showing("Turn 2", "long"))
        await until_parked(2)
        await approve(others, 2)
        await until(session.events.filter(type="tool_call.started", turn__number=2).exists)
        turn = await in_thread(session.turns.get, number=2)
        await post(others, f"/turns/{turn.pk}/cancellation/", reason="Not today.")
        await seen(page, showing("cancelled by bob", "Not today."))
        timeline = await page.catch_up()
        fresh = await in_thread(Timeline, session, mine)
    assert timeline.plain() == fresh.plain()
    states = await in_thread(lambda: list(session.turns.values_list("state", flat=True)))
    assert states == ["COMPLETED", "CANCELLED"]
    assert {live.RAIL, live.WORKERS, live.session_group(session.pk)} <= set(lost)


async def until_parked(number: int) -> None:
    parked = Turn.objects.filter(number=number, state="WAITING_FOR_PERMISSION")
    await until(parked.exists)


async def until(what: Callable[[], bool]) -> None:
    while not await in_thread(what):
        pass

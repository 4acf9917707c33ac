"""Frames stay short, whatever is in the events: one may have to wait for a reader in memory."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.db import transaction

from sessions_app import events, timeline
from sessions_app.models import Agent, Session
from sessions_app.threads import in_thread

from .pages import Timeline, Watcher

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("one_loop")]


async def opened(agent: Agent, owner: User) -> Session:
    session, _ = await in_thread(
        Session.objects.start, agent=agent, owner=owner, instruction="Just a word."
    )
    return session


def _record(session: Session, *payloads: events.Payload) -> None:
    turn = session.turns.get()
    with transaction.atomic():
        session.record(*payloads, turn=turn)


async def say(session: Session, *texts: str) -> None:
    said = [events.MessageCreated(role="system", text=text) for text in texts]
    await in_thread(_record, session, *said)


def call(number: int) -> events.ToolCallStarted:
    return events.ToolCallStarted(
        call_id=f"step-{number}", kind="shell", tool="sh", title=f"step {number}"
    )


def result(number: int, head: str) -> events.ToolCallCompleted:
    output = events.Output(head=head, size=len(head))
    return events.ToolCallCompleted(
        call_id=f"step-{number}", status="succeeded", exit_code=0, output=output
    )


async def frames_of(page: Watcher) -> list[str]:
    """Take and apply everything there is to come."""
    last = await in_thread(lambda: Session.objects.get(pk=page.session.pk).last_seq)
    taken = []
    while page.timeline.last < last:
        frame = await page.frame()
        assert frame is not None
        page.timeline.apply(frame)
        taken.append(frame)
    return taken


def same(page: Watcher, fresh: Timeline) -> None:
    rows = list(fresh.plain().items())
    assert list(page.timeline.plain().items())[-len(rows) :] == rows


PLAIN = "x" * 63 + "\n"
QUOTED = "\"'<>&" * 12 + "\n"
COLOURED = "\x1b[1;31m\"\x1b[3;4;95m'\x1b[0m" * 3 + "\n"


@pytest.mark.parametrize("line", [PLAIN, QUOTED, COLOURED], ids=["plain", "quoted", "coloured"])
@pytest.mark.parametrize("order", ["one after the other", "all at once"])
async def test_no_frame_is_long_whatever_was_printed(agent, alice, line, order):
    session = await opened(agent, alice)
    head = (line * 2000)[: 60 * 1024]
    async with Watcher(session, alice) as page:
        await page.disconnect()
        if order == "all at once":
            await in_thread(_record, session, *(call(n) for n in range(12)))
            await in_thread(_record, session, *(result(n, head) for n in range(12)))
        else:
            for n in range(12):
                await in_thread(_record, session, call(n), result(n, head))
        await page.connect()
        frames = await frames_of(page)
        same(page, await in_thread(Timeline, session, page.client))
    longest = max(len(frame.encode()) for frame in frames)
    assert longest < max(timeline.FRAME_BYTES, timeline.ROW_BYTES) + 20_000
    assert len(frames) >= 6


async def test_a_row_that_no_frame_may_hold_says_where_it_can_be_seen(agent, alice):
    session = await opened(agent, alice)
    async with Watcher(session, alice) as page:
        await say(session, "before", "endless " * 60_000, "after")
        frames = await frames_of(page)
        same(page, await in_thread(Timeline, session, page.client))
        text = page.timeline.text()
        assert "before" in text
        assert "after" in text
        assert "is too long to be shown here" in text
        assert sum(map(len, frames)) < 100_000
        seq = await in_thread(session.events.filter(data__text__startswith="endless").get)
        raw = await in_thread(page.client.get, f"/sessions/{session.pk}/raw/?after={seq.seq - 1}")
        assert "endless endless" in raw.content.decode()

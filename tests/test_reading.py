"""What a feed reads in its one statement: events, parts of their items, and who may see them."""

from __future__ import annotations

import pytest
from django.db import transaction

from sessions_app import reading
from sessions_app.events import MessageCreated, Payload, ProgressUpdated, ToolCallStarted
from sessions_app.models import Session, Turn
from sessions_app.threads import in_thread

from .test_frames import opened

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("one_loop")]


async def record(session: Session, *payloads: Payload, turn: Turn | None = None) -> int:
    def recorded() -> int:
        with transaction.atomic():
            return session.record(*payloads, turn=turn)

    return await in_thread(recorded)


def progress(percent: int) -> ProgressUpdated:
    return ProgressUpdated(label=f"{percent} of 200", fraction=percent / 200)


async def test_an_item_is_read_in_a_few_rows_however_often_it_was_updated(agent, alice):
    session = await opened(agent, alice)
    turn = await in_thread(session.turns.get)
    last = await record(session, *(progress(n) for n in range(200)), turn=turn)
    await record(session, progress(200), turn=turn)
    page = await reading.read(session.pk, last, {alice.pk})
    assert page is not None
    assert [event.data["label"] for event in page.events] == ["200 of 200"]
    types = {part.type for part in page.parts}
    assert types == {"turn.queued", "progress.updated"}
    # The first and the latest of each type; the very latest is in the page.
    assert len(page.parts) <= 2 * len(types)
    assert min(page.parts, key=lambda part: part.seq).type == "turn.queued"


async def test_what_is_in_the_page_is_no_part_of_it(agent, alice):
    session = await opened(agent, alice)
    turn = await in_thread(session.turns.get)
    call = ToolCallStarted(call_id="a", kind="file", tool="read", title="Read")
    last = await record(session, MessageCreated(role="assistant", text="Before."), turn=turn)
    await record(session, call, turn=turn)
    page = await reading.read(session.pk, last, {alice.pk})
    assert page is not None
    assert [event.type for event in page.events] == ["tool_call.started"]
    assert page.parts == []


async def test_a_page_says_who_may_see_it(agent, alice, bob, charlie):
    session = await opened(agent, alice)
    page = await reading.read(session.pk, 0, {alice.pk, bob.pk, charlie.pk})
    assert page is not None
    assert page.viewers == {alice.pk, bob.pk}


async def test_where_nothing_is_new_nothing_is_read(agent, alice):
    session = await opened(agent, alice)
    await in_thread(session.refresh_from_db)
    assert await reading.read(session.pk, session.last_seq, {alice.pk}) is None

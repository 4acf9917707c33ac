"""Readers that stop reading: what they are sent is bounded, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from django.test import Client

from sessions_app import feeds, live, readers, timeline
from sessions_app.readers import UNACKNOWLEDGED, Drawn, OutOfStep, Reader, stop
from sessions_app.threads import in_thread

from .pages import Timeline, Watcher, socket
from .test_frames import opened, say

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("one_loop")]

LONG = "words " * 700


def reader_of(page: Watcher) -> Reader:
    found = feeds._feeds[page.session.pk].readers
    return next(reader for reader in found if reader.user_id == page.user.pk)


async def heard(page: Watcher) -> None:
    """Wait until everything that a page said it has drawn was taken note of."""
    async with asyncio.timeout(5):
        while reader_of(page).unacknowledged:
            await asyncio.sleep(0)


async def drain(page: Watcher) -> int:
    """Take every frame that was sent, and return how many bytes they are."""
    taken = 0
    while taken < reader_of(page).unacknowledged:
        frame = await page.frame()
        assert frame is not None
        page.timeline.apply(frame)
        taken += len(frame.encode())
    return taken


# -- a reader that says nothing ------------------------------------------------------------------


async def test_a_reader_that_says_nothing_is_sent_a_bounded_part_and_others_get_all(
    agent, alice, bob
):
    session = await opened(agent, alice)
    async with Watcher(session, alice) as silent, Watcher(session, bob) as reading:
        silent.acknowledges = False
        for batch in range(10):
            await say(session, *(f"{batch}.{n} {LONG}" for n in range(40)))
        await reading.catch_up()
        text = reading.timeline.text()
        assert all(f"{batch}.39 " in text for batch in range(10))
        longest = UNACKNOWLEDGED + timeline.FRAME_BYTES + 10_000
        assert UNACKNOWLEDGED < await drain(silent) < longest
        assert silent.timeline.last < reading.timeline.last
        # What it says brings it to where everybody is: `apply` refuses gaps and doubles.
        silent.acknowledges = True
        await silent.acknowledge()
        await silent.catch_up()
        assert silent.timeline.plain() == reading.timeline.plain()


async def test_a_reader_without_room_is_neither_read_nor_rendered_for(
    agent, alice, bob, monkeypatch
):
    session = await opened(agent, alice)
    asked: list[int] = []
    read = feeds.Feed._read

    async def counted(self: feeds.Feed, cursor: int) -> Any:
        asked.append(cursor)
        return await read(self, cursor)

    async with Watcher(session, alice) as silent, Watcher(session, bob) as reading:
        silent.acknowledges = False
        await say(session, *(LONG for _ in range(120)))
        await reading.catch_up()
        monkeypatch.setattr(feeds.Feed, "_read", counted)
        for n in range(5):
            await say(session, f"more {n}")
            await reading.catch_up()
        assert len(asked) <= 2 * 5 + 2
        assert reader_of(silent).cursor not in asked


async def test_a_reader_that_draws_nothing_for_long_has_to_come_back_and_misses_nothing(
    agent, alice, settings
):
    settings.SIGNALBOX = {**settings.SIGNALBOX, "STALLED_SECONDS": 0.3}
    session = await opened(agent, alice)
    async with Watcher(session, alice) as page:
        page.acknowledges = False
        await say(session, *(f"line {n} {LONG}" for n in range(150)))
        while (frame := await page.frame()) is not None:
            page.timeline.apply(frame)
        assert page.closed_with == readers.COME_BACK_LATER
        await page.disconnect()
        page.acknowledges = True
        await page.connect()
        await page.catch_up()
        fresh = await in_thread(Timeline, session, page.client)
        assert page.timeline.last == fresh.last
        text = page.timeline.text()
        assert all(f"line {n} words" in text for n in range(150))


async def test_drafts_wait_for_nobody_and_are_bounded_as_well(agent, alice, bob):
    session = await opened(agent, alice)
    async with Watcher(session, alice) as silent, Watcher(session, bob) as reading:
        silent.acknowledges = False
        await say(session, "listening")
        await silent.frame()
        await reading.catch_up()
        for n in range(100):
            await live.draft(session.pk, "trn_1", "step-1", f"{n} {LONG * 2}")
            assert f"{n} words" in str(await reading.frame())
            await heard(reading)
        assert UNACKNOWLEDGED < reader_of(silent).unacknowledged < UNACKNOWLEDGED + 10_000
        assert silent.others == 0
        taken = 0
        while reader_of(silent)._sent[-1].others > silent.others:
            taken += len(str(await silent.frame()))
        assert taken <= UNACKNOWLEDGED + 10_000
        await silent.acknowledge()
        await say(session, "a fact")
        assert "a fact" in str(await silent.frame())
        await live.draft(session.pk, "trn_1", "step-1", "the newest")
        assert "the newest" in str(await silent.frame())


async def test_a_signal_that_found_no_room_is_given_later(agent, alice, monkeypatch, settings):
    settings.SIGNALBOX = {**settings.SIGNALBOX, "POLL_SECONDS": 0.1}
    monkeypatch.setattr(readers, "UNACKNOWLEDGED", 100)
    session = await opened(agent, alice)
    client = Client()
    await in_thread(client.force_login, alice)
    page = socket(client, f"/ws/rail/?at={int(time.time())}")
    await page.connect()
    await in_thread(session.submit, "More.", author=alice)
    assert "rail" in await page.receive_from(timeout=5)
    await in_thread(session.submit, "Still more.", author=alice)
    assert await page.receive_nothing(timeout=1)
    await page.send_to(json.dumps({"others": 1}))
    assert "rail" in await page.receive_from(timeout=5)
    await page.disconnect()


# -- what a page may say -------------------------------------------------------------------------

JUNK = [
    " ",
    "x",
    "null",
    "[]",
    "{}",
    '"drawn"',
    '{"drawn": -1}',
    '{"drawn": 1.0}',
    '{"drawn": true}',
    '{"drawn": "1"}',
    '{"drawn": null}',
    '{"drawn": 9999}',
    '{"drawn": 1' + "0" * 400 + "}",
    '{"others": 9}',
    '{"drawn": 1, "others": -1}',
    "[" * 1000,
    '{"drawn": 1}' + " " * 2000,
    b'{"drawn": 1}',
]


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: repr(junk)[:24])
async def test_a_page_that_says_what_cannot_be_is_told_so_and_logged_nowhere(
    agent, alice, bob, junk, caplog
):
    session = await opened(agent, alice)
    async with Watcher(session, alice) as page, Watcher(session, bob) as other:
        if isinstance(junk, bytes):
            await page.socket.send_to(bytes_data=junk)
        else:
            await page.socket.send_to(junk)
        while (message := await page.socket.receive_output(timeout=5))["type"] == "websocket.send":
            pass
        assert (message["type"], message["code"]) == ("websocket.close", 4400)
        assert message["reason"].endswith("Reload the page.")
        await say(session, "for the other")
        assert "for the other" in (await other.catch_up()).text()
    assert caplog.text == ""


async def test_a_page_that_goes_on_saying_nothing_new_is_closed(agent, alice):
    session = await opened(agent, alice)
    async with Watcher(session, alice) as page:
        await say(session, "one")
        await page.catch_up()
        for _ in range(readers.IDLE_MESSAGES + 1):
            await page.socket.send_to(json.dumps({"drawn": page.timeline.last}))
        assert await page.frame() is None
        assert page.closed_with == 4400


# -- the account of one reader -------------------------------------------------------------------


async def ignore(*anything: object) -> None:
    return None


def fresh_reader() -> Reader:
    return Reader(1, 10, ignore, ignore)


async def test_what_is_drawn_is_taken_off_in_the_order_in_which_it_was_sent():
    reader = fresh_reader()
    for text, seq in (("a" * 100, 11), ("d" * 30, None), ("b" * 200, 15), ("d" * 40, None)):
        await reader.send(text, seq)
    assert reader.unacknowledged == 370
    reader.acknowledge(Drawn(10, 0))
    assert reader.unacknowledged == 370
    reader.acknowledge(Drawn(11, 0))
    assert reader.unacknowledged == 270
    reader.acknowledge(Drawn(11, 1))
    assert reader.unacknowledged == 240
    # A program that counts no drafts: the next number says that what came before it has come.
    reader.acknowledge(Drawn(15, 0))
    assert reader.unacknowledged == 40
    reader.acknowledge(Drawn(15, 2))
    assert reader.unacknowledged == 0


async def test_bytes_are_counted_and_not_characters():
    reader = fresh_reader()
    await reader.send("€", 11)
    assert reader.unacknowledged == 3


@pytest.mark.parametrize("said", [Drawn(12, 0), Drawn(11, 1)])
async def test_more_than_was_sent_is_refused(said):
    reader = fresh_reader()
    await reader.send("a", 11)
    with pytest.raises(OutOfStep):
        reader.acknowledge(said)


async def test_it_says_once_that_there_is_room_again():
    reader = fresh_reader()
    for seq in (11, 12, 13):
        await reader.send("x" * UNACKNOWLEDGED, seq)
    assert not reader.has_room
    assert not reader.acknowledge(Drawn(11, 0))
    assert reader.acknowledge(Drawn(12, 0))
    assert not reader.acknowledge(Drawn(13, 0))
    reader.forget()


async def test_whoever_draws_at_all_is_waited_for_again():
    reader = fresh_reader()
    for seq in range(11, 15):
        await reader.send("x" * UNACKNOWLEDGED, seq)
    first = reader._patience
    assert first is not None
    reader.acknowledge(Drawn(10, 0))
    assert reader._patience is first
    await asyncio.sleep(0)
    reader.acknowledge(Drawn(11, 0))
    assert first.cancelled()
    assert reader._patience is not None
    assert reader._patience.when() > first.when()
    reader.acknowledge(Drawn(14, 0))
    assert reader._patience is None


async def test_nothing_is_sent_to_a_reader_that_was_closed():
    written: list[str] = []

    async def write(text: str) -> None:
        written.append(text)

    reader = Reader(1, 10, write, ignore)
    await reader.close(4403)
    await reader.send("a", 11)
    assert not reader.has_room
    assert written == []


async def test_a_task_that_is_being_cancelled_is_not_cut_off_in_what_it_cleans_up():
    cleaned, cleaning, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def receives() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await go_on.wait()
            cleaned.set()

    task = asyncio.create_task(receives())
    await asyncio.sleep(0)
    stop(task)
    await cleaning.wait()
    stop(task)
    go_on.set()
    await asyncio.wait({task})
    assert cleaned.is_set()
    assert task.cancelled()

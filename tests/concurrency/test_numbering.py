"""Numbers without a gap: many writers at once, and a reader with a cursor that misses nothing."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict

import pytest
from django.db import connections, transaction

from sessions_app.events import ProgressUpdated
from sessions_app.models import Session, Turn
from sessions_app.models.event import append_async
from sessions_app.threads import close_pool, pool

from ..crowd import PATIENCE, errors_in, together, until_somebody_waits
from ..scenes import claimed

pytestmark = pytest.mark.django_db(transaction=True)

WRITERS = 8
APPENDS = 40
LONGEST = 7


def batches(writer: int) -> list[list[ProgressUpdated]]:
    """What one writer appends: batches of differing length, each event named for its place."""
    return [
        [
            ProgressUpdated(label=f"{writer} {append} {place}")
            for place in range(1 + (writer + append) % LONGEST)
        ]
        for append in range(APPENDS)
    ]


def write_through_record(session: Session, turn: Turn, writer: int) -> list[int]:
    lasts = []
    for batch in batches(writer):
        with transaction.atomic():
            lasts.append(Session.objects.get(pk=session.pk).record(*batch, turn=turn))
    return lasts


def write_through_the_async_pool(session: Session, turn: Turn, writer: int) -> list[int]:
    async def write() -> list[int]:
        lasts = []
        try:
            for batch in batches(writer):
                async with (await pool()).connection() as conn:
                    last = await append_async(
                        conn, session.pk, batch, turn_id=turn.pk, fence=turn.fence
                    )
                lasts.append(last)
            return lasts
        finally:
            await close_pool()

    return asyncio.run(write())


def read_on(session: Session, cursor: int, written: threading.Event) -> list[tuple[int, str]]:
    """Follow the stream in pages, as a feed does, until the writers are through and all is read."""
    seen: list[tuple[int, str]] = []
    while True:
        through = written.is_set()
        page = session.events.after(cursor).order_by("seq").values_list("seq", "data__label")[:50]
        rows = list(page)
        seen += rows
        cursor = rows[-1][0] if rows else cursor
        if through and not rows:
            return seen


def test_eight_writers_leave_no_gap_and_a_reader_with_a_cursor_misses_nothing(session: Session):
    turn = claimed(session)
    start = Session.objects.get(pk=session.pk).last_seq
    written, running = threading.Event(), threading.Semaphore(0)

    def writer(number: int):
        def write() -> list[int]:
            door = write_through_the_async_pool if number % 4 == 3 else write_through_record
            try:
                return door(session, turn, number)
            finally:
                running.release()

        return write

    def reader() -> list[tuple[int, str]]:
        return read_on(session, start, written)

    def bell() -> None:
        for _ in range(WRITERS):
            running.acquire()
        written.set()

    *lasts, seen, second, _ = together(*map(writer, range(WRITERS)), reader, reader, bell)
    assert not errors_in([*lasts, seen, second])

    expected = [event.label for number in range(WRITERS) for b in batches(number) for event in b]
    # What a reader met on its way, in the order it met it: no gap, no loss, no double.
    assert [seq for seq, _ in seen] == list(range(start + 1, start + 1 + len(expected)))
    assert sorted(label for _, label in seen) == sorted(expected)
    assert second == seen
    session.refresh_from_db()
    assert session.last_seq == start + len(expected)

    # Each writer's own events stand in the order it wrote them, its batches unbroken.
    by_writer: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for seq, label in seen:
        by_writer[int(label.split()[0])].append((seq, label))
    for number in range(WRITERS):
        assert [label for _, label in by_writer[number]] == [
            event.label for batch in batches(number) for event in batch
        ]
        numbers = iter(seq for seq, _ in by_writer[number])
        for batch, last in zip(batches(number), lasts[number], strict=True):
            assert [next(numbers) for _ in batch] == list(range(last - len(batch) + 1, last + 1))


def test_a_writer_that_has_not_committed_holds_back_the_numbers_after_its_own(session: Session):
    """Commit order equals number order: the second writer waits for the first."""
    numbered = threading.Event()
    order: list[str] = []

    def first() -> int:
        with transaction.atomic():
            last = Session.objects.get(pk=session.pk).record(ProgressUpdated(label="first"))
            numbered.set()
            until_somebody_waits()
            order.append("first")
        return last

    def second() -> int:
        numbered.wait(PATIENCE)
        with transaction.atomic():
            last = Session.objects.get(pk=session.pk).record(ProgressUpdated(label="second"))
            order.append("second")
        return last

    one, two = together(first, second)
    assert (two, order) == (one + 1, ["first", "second"])


def test_numbers_of_a_rolled_back_append_are_given_again(session: Session):
    before = session.last_seq
    with transaction.atomic():
        session.record(ProgressUpdated(label="never"), ProgressUpdated(label="never"))
        transaction.set_rollback(True)
    with transaction.atomic():
        assert session.record(ProgressUpdated(label="now")) == before + 1
    numbers = session.events.order_by("seq").values_list("seq", flat=True)
    assert list(numbers) == list(range(1, before + 2))


def test_writers_of_two_sessions_do_not_wait_for_each_other(session: Session, agent, alice):
    other, _ = Session.objects.start(agent=agent, owner=alice, instruction="Another one.")
    with transaction.atomic():
        session.record(ProgressUpdated(label="open"))

        def write() -> int:
            with transaction.atomic():
                with connections["default"].cursor() as cursor:
                    cursor.execute("SET LOCAL lock_timeout = '2s'")
                return Session.objects.get(pk=other.pk).record(ProgressUpdated(label="other"))

        [last] = together(write)
    assert last == other.last_seq + 1

"""The numbers are right, who may read them, and what asking for them costs."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.utils import timezone
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from sessions_app import engine, live, metrics
from sessions_app.models import Session
from sessions_app.threads import in_thread

from .conftest import signed_in, work
from .pages import Watcher
from .scenes import claimed, held, let_the_lease_run_out

pytestmark = pytest.mark.django_db(transaction=True)

TOKEN = "open sesame"
GATED = "```sh gate=ask\necho two\n```\n"


@pytest.fixture(autouse=True)
def _count_anew(monkeypatch) -> None:
    """Have no count of the database be kept from one question to the next."""
    monkeypatch.setattr(metrics, "KEPT", 0.0)


def told(name: str, **labels: str) -> float:
    """What is told under this name now, 0 when it is not."""
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    return 0.0


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


# -- who may read --------------------------------------------------------------------------------


def test_staff_read_the_metrics_and_others_are_refused(staff, charlie):
    answer = signed_in(staff).get("/metrics")
    assert answer.status_code == 200
    assert answer["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b"signalbox_queue_depth" in answer.content
    assert signed_in(charlie).get("/metrics").status_code == 403
    # Also from this machine: behind a proxy everybody comes from it.
    visitor = Client(REMOTE_ADDR="127.0.0.1").get("/metrics")
    assert (visitor.status_code, visitor["WWW-Authenticate"]) == (401, "Bearer")


def test_whoever_has_the_token_reads_the_metrics_and_nobody_with_another(settings, charlie):
    settings.SIGNALBOX = {**settings.SIGNALBOX, "METRICS_TOKEN": TOKEN}
    for client, status in ((Client(), 401), (signed_in(charlie), 403)):
        assert client.get("/metrics", headers={"Authorization": "Bearer no"}).status_code == status
        assert client.get("/metrics", headers={"Authorization": TOKEN}).status_code == status
        good = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert good.status_code == 200


def test_without_a_token_set_an_empty_one_opens_nothing():
    for given in ("Bearer ", "Bearer", ""):
        assert Client().get("/metrics", headers={"Authorization": given}).status_code == 401


# -- what lies in the database -------------------------------------------------------------------


def test_turns_are_counted_by_state_and_only_what_a_worker_could_take_is_queue(agent, alice):
    waiting, _ = Session.objects.start(agent=agent, owner=alice, instruction=GATED)
    asyncio.run(work(waiting.pk))
    waiting.submit("Behind the one that waits.", author=alice)
    Session.objects.start(agent=agent, owner=alice, instruction="Not yet taken.")
    done, _ = Session.objects.start(agent=agent, owner=alice, instruction="Just a word.")
    asyncio.run(work(done.pk))
    assert told("signalbox_turns", state="QUEUED") == 2
    assert told("signalbox_turns", state="WAITING_FOR_PERMISSION") == 1
    assert told("signalbox_turns", state="WAITING_FOR_INPUT") == 0
    assert told("signalbox_turns", state="RUNNING") == 0
    assert told("signalbox_queue_depth") == 1


def test_a_turn_that_was_let_go_of_is_running_and_in_the_queue(session):
    session.turns.update(state="RUNNING", attempt=1, lease_until=None)
    assert told("signalbox_turns", state="RUNNING") == 1
    assert told("signalbox_queue_depth") == 1


def test_the_database_is_asked_once_in_a_while_however_often_metrics_are_read(monkeypatch):
    asked = []
    monkeypatch.setattr(metrics, "KEPT", 60.0)
    monkeypatch.setattr(metrics, "_counts", lambda: asked.append(1) or ({}, 0, 0))
    collector = metrics._FromDatabase()
    for _ in range(20):
        assert len(list(collector.collect())) == 4
    assert len(asked) == 1


def test_metrics_are_told_also_while_the_database_is_away(monkeypatch):
    assert told("signalbox_database_up") == 1
    nowhere = {**metrics.connection_parameters(), "host": "/nowhere"}
    monkeypatch.setattr(metrics, "connection_parameters", lambda: nowhere)
    assert told("signalbox_database_up") == 0
    assert b"signalbox_queue_depth" not in metrics.exposition()
    assert b"signalbox_sockets" in metrics.exposition()


# -- what the process does -----------------------------------------------------------------------


def test_a_claim_is_counted_with_what_it_waited(session):
    before = value("signalbox_claim_seconds_count", attempt="first")
    waited = value("signalbox_claim_seconds_sum", attempt="first")
    Session.objects.filter(pk=session.pk).update(
        listed_at=session.listed_at.replace(microsecond=0) - timedelta(seconds=100)
    )
    asyncio.run(work(session.pk))
    assert value("signalbox_claim_seconds_count", attempt="first") == before + 1
    assert 100 <= value("signalbox_claim_seconds_sum", attempt="first") - waited < 130
    assert value("signalbox_running") == 0


def test_a_turn_that_was_let_go_of_waited_since_then_and_not_since_it_was_started(session):
    turn = claimed(session)
    long_ago = session.listed_at - timedelta(minutes=10)
    Session.objects.filter(pk=session.pk).update(listed_at=long_ago, last_activity_at=long_ago)
    with held(turn):
        turn.release()
    again = claimed(session)
    assert timezone.now() - again.ready_at < timedelta(seconds=30)


def test_a_turn_that_was_lost_waited_since_its_lease_ran_out(session):
    turn = claimed(session)
    let_the_lease_run_out(turn)
    ended = session.turns.get().lease_until
    assert claimed(session, "second-worker").ready_at == ended


async def recorded(session: Session, by: User) -> None:
    await in_thread(session.submit, "And another word.", author=by)


async def test_a_live_event_is_counted_once_and_catching_up_is_not(one_loop, session, alice):
    before = value("signalbox_emit_to_frame_seconds_count")
    async with Watcher(session, alice) as first, Watcher(session, alice) as second:
        await second.connect(after="0")
        await second.frame()
        assert value("signalbox_emit_to_frame_seconds_count") == before
        last = session.last_seq
        await recorded(session, alice)
        await first.catch_up()
        session = await in_thread(Session.objects.get, pk=session.pk)
        new = session.last_seq - last
        assert new > 0
        await second.frame()
        await until("signalbox_emit_to_frame_seconds_count", before + new)


async def test_open_sockets_are_counted(one_loop, session, alice):
    before = value("signalbox_sockets")
    async with Watcher(session, alice) as page:
        await page.disconnect()
        await page.connect()
        async with Watcher(session, alice):
            await until("signalbox_sockets", before + 2)
    await until("signalbox_sockets", before)


async def until(name: str, count: float, **labels: str) -> None:
    """Wait for a count: what is seen from outside comes just before it is counted."""
    async with asyncio.timeout(5):
        while value(name, **labels) != count:
            await asyncio.sleep(0.01)


async def test_news_that_only_the_timer_found_is_counted(one_loop, monkeypatch, session, alice):
    async with Watcher(session, alice) as page:
        await recorded(session, alice)
        await page.catch_up()
        # Hinted just now: what the timer finds besides is on its way.
        monkeypatch.setattr(metrics, "ON_ITS_WAY", 60.0)
        before = value("signalbox_found_by_timer_total", by="feed")
        await recorded(session, alice)
        await page.catch_up()
        assert value("signalbox_found_by_timer_total", by="feed") == before

        async def lost(group: str, message: object) -> None:
            """Every hint is lost."""

        monkeypatch.setattr(live, "_group_send", lost)
        monkeypatch.setattr(metrics, "ON_ITS_WAY", 0.0)
        async with asyncio.timeout(20):
            while value("signalbox_found_by_timer_total", by="feed") == before:
                # A hint that was on its way before may still serve the first of these.
                await recorded(session, alice)
                await page.catch_up()


async def test_a_wake_up_that_rescue_gave_is_counted(one_loop, session):
    before = value("signalbox_found_by_timer_total", by="rescue")
    await in_thread(session.turns.update, state="RUNNING", attempt=1, lease_until=None)
    await in_thread(forget_jobs)
    await engine.worker().rescue()
    assert value("signalbox_found_by_timer_total", by="rescue") == before + 1


def forget_jobs() -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM procrastinate_jobs")

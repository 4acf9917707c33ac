"""The stream as a page sees it: what it shows live is what a fresh page shows."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.test import Client

from approvals_app.decisions import decide
from approvals_app.models import ApprovalRequest
from sessions_app import engine, events, feeds, live, readers
from sessions_app.models import Agent, Session, Turn
from sessions_app.threads import in_thread

from .pages import Timeline, Watcher, socket
from .test_events import golden

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("one_loop")]

GATED = "Words.\n\n```sh name=first\necho one\n```\n\n```sh gate=ask\necho two\n```\n\nThe end.\n"


async def opened(agent: Agent, owner: User, instruction: str = "Just a word.") -> Session:
    session, _ = await in_thread(
        Session.objects.start, agent=agent, owner=owner, instruction=instruction
    )
    return session


async def parked(agent: Agent, owner: User) -> tuple[Session, ApprovalRequest]:
    session = await opened(agent, owner, GATED)
    await engine.worker().advance(session.pk)
    return session, await in_thread(ApprovalRequest.objects.get, session=session)


async def same_as_fresh(watcher: Watcher) -> Timeline:
    """Replay equals live: the page assembled from frames is the page rendered anew.

    A fresh page begins with the newest rows; what was watched for long holds older ones too.
    """
    timeline = await watcher.catch_up()
    fresh = await in_thread(Timeline, watcher.session, watcher.client)
    assert timeline.last == fresh.last
    rows = list(fresh.plain().items())
    assert list(timeline.plain().items())[-len(rows) :] == rows
    return timeline


# -- replay equals live, for every verb that records ---------------------------------------------


async def test_a_submitted_turn_shows_live_as_on_a_fresh_page(agent, alice):
    session = await opened(agent, alice)
    async with Watcher(session, alice) as page:
        await in_thread(session.submit, "And another word.", author=alice)
        timeline = await same_as_fresh(page)
    assert "And another word." in timeline.text()


async def test_a_worked_turn_shows_live_as_on_a_fresh_page(agent, alice):
    session = await opened(agent, alice, GATED)
    async with Watcher(session, alice) as page:
        await engine.worker().advance(session.pk)
        timeline = await same_as_fresh(page)
    assert "echo two" in timeline.text()


@pytest.mark.parametrize("verdict", ["approve", "reject"])
async def test_a_decision_and_what_follows_show_live_as_on_a_fresh_page(agent, alice, bob, verdict):
    session, request = await parked(agent, alice)
    async with Watcher(session, alice) as page:
        await in_thread(
            decide, request.pk, by=bob, verdict=verdict, digest=request.digest, reason="because"
        )
        await same_as_fresh(page)
        await engine.worker().advance(session.pk)
        timeline = await same_as_fresh(page)
    assert "bob" in timeline.text()


async def _cancel(session: Session, user: User) -> None:
    turn = await in_thread(session.turns.get)
    await in_thread(turn.cancel, by=user, reason="not needed")


async def _close(session: Session, user: User) -> None:
    await in_thread(session.close, Session.State.COMPLETED, by=user)


async def _close_and_archive(session: Session, user: User) -> None:
    await _close(session, user)
    await in_thread(session.archive, by=user)
    await in_thread(session.unarchive, by=user)


async def test_a_failed_turn_and_its_retry_show_live_as_on_a_fresh_page(agent, alice):
    session = await opened(agent, alice, "```sh\nexit 3\n```")
    async with Watcher(session, alice) as page:
        await engine.worker().advance(session.pk)
        await same_as_fresh(page)
        turn = await in_thread(session.turns.get)
        await in_thread(turn.retry, by=alice)
        timeline = await same_as_fresh(page)
    assert "Turn 2" in timeline.text()


async def test_a_cancelled_turn_and_its_retry_show_live_as_on_a_fresh_page(agent, alice):
    session, _ = await parked(agent, alice)
    async with Watcher(session, alice) as page:
        await _cancel(session, alice)
        timeline = await same_as_fresh(page)
        assert "Retry" in timeline.text()
        turn = await in_thread(session.turns.get)
        await in_thread(turn.retry, by=alice)
        timeline = await same_as_fresh(page)
    assert "Retried as turn 2" in timeline.text()


async def test_progress_shows_live_as_on_a_fresh_page(agent, alice):
    session, _ = await parked(agent, alice)
    turn = await in_thread(session.turns.get)
    async with Watcher(session, alice) as page:
        for done in (0.25, 0.75):
            label = f"{done:%} done"
            progress = events.ProgressUpdated(label=label, fraction=done)
            await in_thread(_record, session, turn, progress)
            timeline = await same_as_fresh(page)
            assert label in timeline.text()


async def test_an_edit_shows_live_as_on_a_fresh_page(agent, alice):
    session, _ = await parked(agent, alice)
    queued, _ = await in_thread(session.submit, "And another word.", author=alice)
    async with Watcher(session, alice) as page:
        await in_thread(queued.edit, "And a better one.", by=alice)
        timeline = await same_as_fresh(page)
    assert "And a better one." in timeline.text()
    assert "another" not in timeline.text()


async def test_an_interruption_shows_live_as_on_a_fresh_page(agent, alice):
    session, _ = await parked(agent, alice)
    async with Watcher(session, alice) as page:
        await in_thread(session.submit, "At once.", author=alice, when_busy="interrupt")
        timeline = await same_as_fresh(page)
    assert "Turn 2 interrupted it" in timeline.text()


@pytest.mark.parametrize("verb", [_cancel, _close, _close_and_archive])
async def test_ending_a_parked_turn_shows_live_as_on_a_fresh_page(
    agent, alice, verb: Callable[[Session, User], object]
):
    session, _ = await parked(agent, alice)
    async with Watcher(session, alice) as page:
        await verb(session, alice)  # type: ignore[misc]
        await same_as_fresh(page)


async def test_every_kind_of_event_shows_live_as_on_a_fresh_page(agent, alice):
    session = await opened(agent, alice)
    turn = await in_thread(session.turns.get)
    async with Watcher(session, alice) as page:
        for type in events.PAYLOADS:
            await in_thread(_record, session, turn, events.load(type, golden(type)))
        await same_as_fresh(page)


def _record(session: Session, turn: Turn | None, *payloads: events.Payload) -> None:
    from django.db import transaction

    with transaction.atomic():
        session.record(*payloads, turn=turn)


def _say(session: Session, *texts: str) -> None:
    _record(session, None, *(events.MessageCreated(role="system", text=text) for text in texts))


# -- nothing lost, nothing twice -----------------------------------------------------------------


async def test_what_stands_beside_the_timeline_follows_the_events_and_holds_none_of_them_up(
    agent, alice
):
    session = await opened(agent, alice)
    async with Watcher(session, alice) as page:
        await in_thread(session.submit, "And another word.", author=alice)
        said = str(await page.frame())
        assert "And another word." in said
        assert "session-header" not in said
        while "session-header" not in said:
            said = str(await page.frame())
        assert "And another word." in said, "the waiting turn is shown above the composer"
        assert not said.startswith("<!--")


async def test_a_socket_dropped_ten_times_while_events_flow_shows_each_row_once(agent, alice):
    session = await opened(agent, alice)
    async with Watcher(session, alice) as page:
        for drop in range(10):
            await in_thread(_say, session, *(f"message {drop}.{n}" for n in range(30)))
            frame = await page.frame()
            if frame is not None and drop % 2:
                # Half of the time the frame was under way when the connection went.
                page.timeline.apply(frame)
            await page.disconnect()
            await in_thread(_say, session, f"while away {drop}")
            await page.connect()
        timeline = await same_as_fresh(page)
    text = timeline.text()
    for drop in range(10):
        assert text.count(f"while away {drop}") == 1
        assert all(text.count(f"message {drop}.{n} ") == 1 for n in range(29))


async def test_everything_arrives_when_every_hint_is_lost(agent, alice, monkeypatch):
    async def lost(group: str, message: dict[str, object]) -> None:
        return None

    session = await opened(agent, alice)
    async with Watcher(session, alice) as page:
        monkeypatch.setattr(live, "_group_send", lost)
        await in_thread(_say, session, "found by looking")
        timeline = await same_as_fresh(page)
    assert "found by looking" in timeline.text()


async def test_a_long_absence_is_caught_up_in_pages(agent, alice):
    session = await opened(agent, alice)
    async with Watcher(session, alice) as page:
        await page.disconnect()
        await in_thread(_say, session, *(f"line {n}." for n in range(350)))
        await page.connect()
        timeline = await page.catch_up()
    assert all(f"line {n}." in timeline.text() for n in range(350))


async def test_viewers_share_one_reading_and_get_the_same_bytes(agent, alice, bob):
    session = await opened(agent, alice)
    async with Watcher(session, alice) as one, Watcher(session, bob) as other:
        assert len(feeds._feeds) == 1
        await in_thread(_say, session, "the same for both")
        assert await one.frame() == await other.frame()


async def test_a_feed_that_fails_tells_its_sockets_to_come_back(agent, alice, monkeypatch):
    session = await opened(agent, alice)
    async with Watcher(session, alice) as page:

        async def broken(self: feeds.Feed, cursor: int) -> None:
            raise RuntimeError("the database is away")

        monkeypatch.setattr(feeds.Feed, "_read", broken)
        await in_thread(_say, session, "anything")
        assert await page.frame() is None
        assert page.closed_with == readers.COME_BACK
        monkeypatch.undo()
        await page.connect()
        assert "anything" in (await same_as_fresh(page)).text()


async def test_a_feed_that_cannot_even_begin_is_not_joined_again(agent, alice, monkeypatch):
    from channels.layers import get_channel_layer

    async def away(group: str, channel: str) -> None:
        raise ConnectionError("the layer is away")

    session = await opened(agent, alice)
    monkeypatch.setattr(get_channel_layer(), "group_add", away)
    async with Watcher(session, alice) as page:
        assert await page.frame() is None
        assert page.closed_with == readers.COME_BACK
        monkeypatch.undo()
        await page.connect()
        await in_thread(_say, session, "back again")
        assert "back again" in (await same_as_fresh(page)).text()


# -- drafts and lists ----------------------------------------------------------------------------


async def test_a_draft_is_shown_and_is_no_event(agent, alice):
    session = await opened(agent, alice)
    async with Watcher(session, alice) as page:
        # A frame says that the feed listens.
        await in_thread(_say, session, "listening")
        await page.catch_up()
        await live.draft(session.pk, "trn_1", "step-1", "half a line")
        frame = await page.frame()
    assert frame is not None
    assert "half a line" in frame
    assert not frame.startswith("<!--")


async def test_a_change_of_state_is_signalled_to_those_who_see_the_session(agent, alice, charlie):
    session = await opened(agent, alice)
    client, stranger = Client(), Client()
    await in_thread(client.force_login, alice)
    await in_thread(stranger.force_login, charlie)
    address = f"/ws/rail/?at={int(time.time())}"
    mine, theirs = socket(client, address), socket(stranger, address)
    await mine.connect()
    await theirs.connect()
    await in_thread(session.submit, "More.", author=alice)
    assert "rail" in await mine.receive_from(timeout=5)
    assert await theirs.receive_nothing(timeout=0.2)
    await mine.disconnect()
    await theirs.disconnect()


# -- who may listen ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/ws/sessions/{}/?after=0", "/ws/sessions/ses_none/?after=0"])
async def test_charlie_gets_no_frame_and_is_told_not_to_come_back(agent, alice, charlie, path):
    session = await opened(agent, alice)
    client = Client()
    await in_thread(client.force_login, charlie)
    stranger = socket(client, path.format(session.pk))
    await stranger.connect()
    message = await stranger.receive_output(timeout=5)
    assert message["type"] == "websocket.close"
    assert message["code"] == 4403


@pytest.mark.parametrize("path", ["/ws/sessions/{}/?after=0", "/ws/rail/"])
async def test_nobody_listens_without_signing_in(agent, alice, path):
    session = await opened(agent, alice)
    stranger = socket(Client(), path.format(session.pk))
    await stranger.connect()
    message = await stranger.receive_output(timeout=5)
    assert (message["type"], message["code"]) == ("websocket.close", 4403)
    assert AnonymousUser().is_authenticated is False


async def test_a_page_of_another_site_cannot_connect(agent, alice):
    session = await opened(agent, alice)
    client = Client()
    await in_thread(client.force_login, alice)
    for origin in ("http://evil.example", "http://testserver.evil.example", "null", ""):
        foreign = socket(client, f"/ws/sessions/{session.pk}/", origin=origin)
        connected, _ = await foreign.connect()
        assert not connected, origin


async def test_a_revoked_member_gets_nothing_from_the_next_event_on(agent, alice, bob):
    session = await opened(agent, alice)
    async with Watcher(session, bob) as page, Watcher(session, alice) as owner:
        await in_thread(agent.members.remove, bob)
        await in_thread(_say, session, "for members only")
        assert await page.frame() is None
        assert page.closed_with == 4403
        assert "for members only" in (await same_as_fresh(owner)).text()


@pytest.mark.parametrize("after", ["1000000", "-1", "x", "1e3", "9" * 40, "%00"])
async def test_a_cursor_that_cannot_be_is_refused_and_the_page_stays(agent, alice, after):
    session = await opened(agent, alice)
    async with Watcher(session, alice) as page:
        await page.disconnect()
        await page.connect(after)
        assert await page.frame() is None
        assert page.closed_with == 4400


async def test_signing_out_closes_the_sockets_of_that_sign_in_only(agent, alice):
    session = await opened(agent, alice)
    async with Watcher(session, alice) as here, Watcher(session, alice) as there:
        await in_thread(_say, session, "listening")
        await here.catch_up()
        await there.catch_up()
        await in_thread(here.client.post, "/sign-out/")
        while (frame := await here.frame()) is not None:
            assert "listening" not in frame
        assert here.closed_with == 4403
        await in_thread(_say, session, "still here")
        assert "still here" in (await there.catch_up()).text()


async def test_a_revoked_member_gets_no_more_drafts(agent, alice, bob, settings):
    settings.SIGNALBOX = {**settings.SIGNALBOX, "POLL_SECONDS": 0}
    session = await opened(agent, alice)
    async with Watcher(session, bob) as page:
        await in_thread(_say, session, "listening")
        await page.catch_up()
        await in_thread(agent.members.remove, bob)
        await live.draft(session.pk, "trn_1", "step-1", "for members only")
        while (frame := await page.frame()) is not None:
            assert "for members only" not in frame
        assert page.closed_with == 4403


async def test_lists_are_refreshed_when_every_hint_is_lost(agent, alice, monkeypatch):
    async def lost(group: str, message: dict[str, object]) -> None:
        return None

    session = await opened(agent, alice)
    client = Client()
    await in_thread(client.force_login, alice)
    page = socket(client, f"/ws/rail/?at={int(time.time())}")
    await page.connect()
    monkeypatch.setattr(live, "_group_send", lost)
    await in_thread(session.submit, "More.", author=alice)
    assert "rail" in await page.receive_from(timeout=5)
    await page.disconnect()


@pytest.mark.parametrize("seconds", [5, 500], ids=["a while", "long"])
async def test_lists_that_changed_between_a_page_and_its_socket_are_refreshed(
    agent, alice, charlie, seconds
):
    await opened(agent, alice)
    made = int(time.time()) - seconds
    client = Client()
    await in_thread(client.force_login, alice)
    page = socket(client, f"/ws/rail/?at={made}")
    await page.connect()
    assert "rail" in await page.receive_from(timeout=5)
    await page.disconnect()


async def test_lists_that_somebody_else_changed_meanwhile_are_not(agent, alice, charlie):
    await opened(agent, alice)
    client = Client()
    await in_thread(client.force_login, charlie)
    page = socket(client, f"/ws/rail/?at={int(time.time()) - 5}")
    await page.connect()
    assert await page.receive_nothing(timeout=1)
    await page.disconnect()


@pytest.mark.parametrize("at", ["", "x", "-5", "9" * 40, "1e9"])
async def test_a_page_that_does_not_say_when_it_was_made_is_told_of_changes(agent, alice, at):
    session = await opened(agent, alice)
    client = Client()
    await in_thread(client.force_login, alice)
    page = socket(client, f"/ws/rail/?at={at}")
    await page.connect()
    assert await page.receive_nothing(timeout=0.5)
    await in_thread(session.submit, "More.", author=alice)
    assert "rail" in await page.receive_from(timeout=5)
    await page.disconnect()


async def test_output_made_to_break_the_view_breaks_nothing(agent, alice):
    session = await opened(agent, alice)
    async with Watcher(session, alice) as page:
        await in_thread(_say, session, "listening")
        await page.catch_up()
        await live.draft(session.pk, "trn_1", "step-1", f"\x1b[{'9' * 5000}m")
        assert "step-1" in str(await page.frame())
        await in_thread(_say, session, "still listening")
        assert "still listening" in (await page.catch_up()).text()


async def test_a_page_that_left_while_it_was_written_to_disturbs_nobody(agent, alice, bob):
    session = await opened(agent, alice)
    async with Watcher(session, alice) as page, Watcher(session, bob) as gone:
        await in_thread(_say, session, "listening")
        await page.catch_up()
        await gone.catch_up()
        [reader] = [
            reader for reader in feeds._feeds[session.pk].readers if reader.user_id == gone.user.pk
        ]

        async def closed(text: str) -> None:
            raise ConnectionError("Attempt to send on a closed protocol")

        reader.write = closed
        await in_thread(_say, session, "for who is left")
        assert "for who is left" in (await page.catch_up()).text()

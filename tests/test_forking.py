"""Forking: who may, from where, with which files, and that two streams are never mixed."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from approvals_app.decisions import decide
from sessions_app import events, forking, inherited, timeline
from sessions_app.delegation import delegate
from sessions_app.environments import copying, layout
from sessions_app.environments import registry as environments
from sessions_app.forking import fork
from sessions_app.models import Agent, ExecutionEnvironment, NotAllowed, NotPossible, Session, Turn
from sessions_app.threads import in_thread

from .conftest import signed_in, work
from .crowd import errors_in, together
from .pages import Timeline, Watcher, parse
from .scenes import asked, claimed, everything, finished, held, open_session, parked, types

pytestmark = pytest.mark.django_db(transaction=True)

HTMX = {"HTTP_HX_REQUEST": "true"}


def said(turn: Turn, *texts: str) -> None:
    with held(turn) as session:
        payloads = (events.MessageCreated(role="assistant", text=text) for text in texts)
        session.record(*payloads, turn=turn)


def worked(session: Session, *texts: str, state: str = "COMPLETED") -> Turn:
    """Claim the session's next turn, let it say something and end."""
    turn = claimed(session)
    said(turn, *(texts or ("Done.",)))
    return finished(turn, state)


def refused(turn: Turn, by: User, match: str, error: type = NotPossible) -> None:
    before = everything()
    with pytest.raises(error, match=match):
        fork(turn, by=by)
    assert everything() == before


def shelf() -> list[str]:
    """The environments there are on disk."""
    root = environments.get("local").root
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


@pytest.fixture
def trusting(agent: Agent) -> Agent:
    """What the tests run needs no permission."""
    Agent.objects.filter(pk=agent.pk).update(allow_confined=True)
    return agent


def with_files(session: Session, **files: str) -> None:
    """Give a session an environment with files, as a turn's steps would."""
    provider: Any = environments.get("local")
    environment = async_to_sync(provider.open)(session.pk)
    for name, text in files.items():
        (environment.work / name).write_text(text)
    ExecutionEnvironment.objects.update_or_create(
        session=session, defaults={"provider": "local", "state": "ACTIVE"}
    )


def file_of(session: Session, name: str) -> str:
    return (environments.get("local").root / session.pk / "work" / name).read_text()


class TestWhatAForkIs:
    def test_its_own_numbers_start_with_where_it_comes_from(self, session, agent, bob):
        turn = worked(session, "First words.")
        end = session.events.get(type="turn.completed").seq
        made = fork(turn, by=bob)
        assert (made.agent, made.owner, made.state) == (agent, bob, "CREATED")
        assert (made.forked_from, made.forked_seq, made.last_seq) == (session, end, 1)
        [first] = made.events.all()
        assert (first.seq, first.type, first.turn) == (1, "session.forked", None)
        assert first.payload == events.SessionForked(
            agent="Runbook", title="Fork of Just a word.", by="bob",
            session_id=session.pk, turn=1, last_seq=end, files=False,
        )  # fmt: skip

    def test_nothing_is_recorded_in_the_other_session(self, session, alice):
        turn = worked(session)
        before = types(session)
        fork(turn, by=alice)
        assert types(session) == before

    def test_its_first_turn_is_its_number_one(self, session, alice):
        made = fork(worked(session), by=alice)
        turn, _ = made.submit("Go on.", author=alice)
        assert turn.number == 1
        assert types(made) == [
            "session.forked", "turn.queued", "message.created", "session.activated",
        ]  # fmt: skip

    def test_a_fork_is_forked_again(self, session, alice):
        made = fork(worked(session), by=alice)
        made.submit("Go on.", author=alice)
        again = fork(worked(made), by=alice)
        assert again.forked_from == made
        assert again.title == made.title == "Fork of Just a word."

    def test_what_failed_or_was_stopped_can_be_forked_too(self, session, alice):
        assert fork(worked(session, state="FAILED"), by=alice).last_seq == 1
        session.submit("Again.", author=alice)
        session.refresh_from_db()
        assert fork(worked(session, state="CANCELLED"), by=alice).last_seq == 1

    def test_the_same_form_twice_makes_one(self, session, alice):
        turn = worked(session)
        first = fork(turn, by=alice, idempotency_key="form-1")
        assert fork(turn, by=alice, idempotency_key="form-1") == first
        assert fork(turn, by=alice) != first
        session.submit("Another.", author=alice)
        other = worked(session)
        with pytest.raises(NotPossible, match="sent before for something else"):
            fork(other, by=alice, idempotency_key="form-1")

    def test_the_other_session_may_be_deleted(self, session, alice):
        made = fork(worked(session), by=alice)
        session.delete()
        made.refresh_from_db()
        page = signed_in(alice).get(f"/sessions/{made.pk}/").content.decode()
        assert "forked from a session that is not there any more" in page


class TestWhoMay:
    def test_an_outsider_may_not(self, session, charlie):
        refused(worked(session), charlie, "may not see", NotAllowed)

    def test_an_owner_who_is_no_member_any_more_may_not(self, session, agent, alice):
        turn = worked(session)
        agent.members.remove(alice)
        refused(turn, alice, "no member of Runbook", NotAllowed)
        answer = signed_in(alice).post(f"/turns/{turn.pk}/fork/")
        assert answer.status_code == 403
        assert "no member of Runbook" in answer.content.decode()

    def test_an_agent_that_is_switched_off_takes_no_forks(self, session, agent, alice):
        turn = worked(session)
        Agent.objects.filter(pk=agent.pk).update(enabled=False)
        refused(Turn.objects.get(pk=turn.pk), alice, "switched off", NotAllowed)

    @pytest.mark.parametrize("state", ["QUEUED", "RUNNING", "WAITING_FOR_PERMISSION"])
    def test_a_turn_that_has_not_ended_cannot_be_forked(self, session, alice, state):
        turn = session.turns.get()
        if state != "QUEUED":
            turn = claimed(session)
        if state == "WAITING_FOR_PERMISSION":
            turn = parked(turn)
        refused(turn, alice, r"Turn 1 is .*\. A session is forked at a turn that has ended\.")
        answer = signed_in(alice).post(f"/turns/{turn.pk}/fork/", **HTMX)
        assert answer.status_code == 409
        assert "has ended" in answer.content.decode()

    def test_the_page_goes_to_the_fork(self, session, alice):
        turn = worked(session)
        answer = signed_in(alice).post(f"/turns/{turn.pk}/fork/")
        made = Session.objects.get(forked_from=session)
        assert (answer.status_code, answer["Location"]) == (302, f"/sessions/{made.pk}/")
        answer = signed_in(alice).post(f"/turns/{turn.pk}/fork/", **HTMX)
        again = Session.objects.filter(forked_from=session).exclude(pk=made.pk).get()
        assert (answer.status_code, answer["HX-Redirect"]) == (204, f"/sessions/{again.pk}/")


class TestFiles:
    def test_they_are_copied_as_they_are_now(self, session, alice):
        turn = worked(session)
        with_files(session, note="of turn 1")
        session.submit("More.", author=alice)
        worked(session)
        with_files(session, note="of turn 2")
        made = fork(turn, by=alice)
        assert file_of(made, "note") == "of turn 2"
        environment = made.environment
        assert (environment.provider, environment.state, environment.holder) == (
            "local",
            "STOPPED",
            "",
        )
        assert made.events.get().data["files"] is True

    def test_without_an_environment_there_is_nothing_to_copy(self, session, alice):
        made = fork(worked(session), by=alice)
        assert not ExecutionEnvironment.objects.filter(session=made).exists()
        assert made.events.get().data["files"] is False
        assert shelf() == []

    def test_a_deleted_environment_is_not_copied(self, session, alice):
        turn = worked(session)
        with_files(session, note="x")
        ExecutionEnvironment.objects.filter(session=session).update(state="DELETED")
        assert not ExecutionEnvironment.objects.filter(session=fork(turn, by=alice)).exists()

    @pytest.mark.parametrize("state", ["RUNNING", "WAITING_FOR_PERMISSION", "WAITING_FOR_INPUT"])
    def test_while_a_turn_is_open_they_may_change(self, session, alice, state):
        turn = worked(session)
        with_files(session, note="x")
        session.submit("More.", author=alice)
        open_turn = claimed(session)
        if state != "RUNNING":
            parked(open_turn, state)
        refused(turn, alice, "Turn 2 of this session is .* Fork when it has ended")
        assert shelf() == [session.pk]

    def test_a_turn_that_starts_meanwhile_stops_it(self, session, alice, monkeypatch):
        turn = worked(session)
        with_files(session, note="x")
        session.submit("More.", author=alice)
        duplicate = layout.duplicate

        def slowly(*arguments: Any) -> bool:
            done = duplicate(*arguments)
            worked(session, "Started and ended while files were copied.")
            return done

        monkeypatch.setattr(layout, "duplicate", slowly)
        with pytest.raises(NotPossible, match="started while its files were copied"):
            fork(turn, by=alice)
        assert shelf() == [session.pk]
        assert Session.objects.count() == 1

    def test_a_full_disk_makes_no_fork(self, session, alice, monkeypatch):
        turn = worked(session)
        with_files(session, note="x")

        def full(*arguments: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(copying, "_move", full)
        refused(turn, alice, r"No space left on device\. Nothing was forked\.")
        assert shelf() == [session.pk]
        answer = signed_in(alice).post(f"/turns/{turn.pk}/fork/")
        assert answer.status_code == 409

    def test_what_cannot_be_recorded_leaves_no_files(self, session, alice, monkeypatch):
        turn = worked(session)
        with_files(session, note="x")

        def broken(*arguments: object) -> None:
            raise RuntimeError("in the middle")

        monkeypatch.setattr(forking, "_create", broken)
        with pytest.raises(RuntimeError, match="in the middle"):
            fork(turn, by=alice)
        assert shelf() == [session.pk]
        assert Session.objects.count() == 1

    def test_two_forms_at_once_make_one_fork_and_one_copy(self, session, alice, monkeypatch):
        turn = worked(session)
        with_files(session, note="x")
        results = together(
            *[lambda: fork(Turn.objects.get(pk=turn.pk), by=alice, idempotency_key="form-1")] * 4
        )
        assert errors_in(results) == []
        assert len({made.pk for made in results}) == 1
        assert sorted(shelf()) == sorted([session.pk, results[0].pk])


WRITE = "```sh\n{}\n```"
REPOSITORY = (
    "git init -q -b main r; cd r; echo one > f; git add f; git commit -qm first; echo two >> f"
)


class TestAFullFork:
    def test_it_resumes_with_the_files_and_its_diff_is_its_own(self, agent, alice):
        """A mark is named after the number of a turn, and a fork counts from 1 again."""
        Agent.objects.filter(pk=agent.pk).update(allowed_commands=[REPOSITORY, "echo three >> r/f"])
        session = open_session(agent, alice, WRITE.format(REPOSITORY))
        async_to_sync(work)(session.pk)
        turn = session.turns.get()
        assert turn.state == "COMPLETED", turn.error_message
        assert session.artifacts.filter(name="turn-1.diff").exists()
        made = fork(turn, by=alice)
        made.submit(WRITE.format("echo three >> r/f"), author=alice)
        async_to_sync(work)(made.pk)
        assert made.turns.get().state == "COMPLETED"
        assert "execution_environment.resumed" in types(made)
        assert "execution_environment.started" not in types(made)
        assert file_of(made, "r/f") == "one\ntwo\nthree\n"
        assert file_of(session, "r/f") == "one\ntwo\n"
        [diff] = made.artifacts.all()
        with diff.open() as content:
            text = content.read().decode()
        assert "+three" in text
        assert "+two" not in text


# -- what stands above ----------------------------------------------------------------------------


def above(made: Session, user: User, before: int | None = None) -> list[str]:
    found = inherited.page(made, user, before)["above"]
    return [item.anchor.type for item in found["items"]]


def texts(made: Session, user: User) -> list[str]:
    items = inherited.page(made, user)["above"]["items"]
    return [item.data["text"] for item in items if item.anchor.type == "message.created"]


class TestWhatStandsAbove:
    def test_the_rows_up_to_the_end_of_the_turn(self, session, alice):
        turn = worked(session, "First words.")
        session.submit("More.", author=alice)
        worked(session, "Second words.")
        made = fork(turn, by=alice)
        assert texts(made, alice) == ["Just a word.", "First words."]
        assert above(made, alice) == [
            "session.created", "turn.queued", "message.created", "session.activated",
            "message.created",
        ]  # fmt: skip

    def test_a_turn_that_was_queued_before_an_earlier_one_ended_is_left_out(self, session, alice):
        """Its row and its instruction have lower numbers than the end of the turn forked at."""
        turn = claimed(session)
        second, _ = session.submit("Queued meanwhile.", author=alice)
        said(turn, "Said after that.")
        finished(turn)
        made = fork(turn, by=alice)
        queued = session.events.get(type="turn.queued", turn=second)
        assert queued.seq < (made.forked_seq or 0)
        assert texts(made, alice) == ["Just a word.", "Said after that."]
        worked(session, "It ran later.")
        assert texts(made, alice) == ["Just a word.", "Said after that."]
        later = fork(second, by=alice)
        assert texts(later, alice) == [
            "Just a word.", "Queued meanwhile.", "Said after that.", "It ran later.",
        ]  # fmt: skip

    def test_a_turn_that_was_withdrawn_before_is_told(self, session, alice):
        turn = claimed(session)
        second, _ = session.submit("Never mind.", author=alice)
        second.cancel(by=alice)
        finished(turn)
        assert texts(fork(turn, by=alice), alice) == ["Just a word.", "Never mind."]

    def test_what_happened_to_a_row_later_is_not_shown(self, session, alice):
        turn = claimed(session)
        child = delegate(
            turn, agent="Runbook", instruction="Over there.", by=alice, key="k", ref="k"
        )
        finished(turn)
        made = fork(turn, by=alice)
        worked(child, "Done there.")
        assert "handoff_summary.created" in types(session)
        client = signed_in(alice)
        page = parse(client.get(f"/sessions/{made.pk}/").content.decode())
        section = next(node for node in walk(page) if node.attributes.get("class") == "inherited")
        assert "at work then" in section.text()
        assert "Done there." not in section.text()
        assert "Done there." in client.get(f"/sessions/{session.pk}/").content.decode()

    def test_those_who_may_not_see_the_other_session_read_one_line(self, session, agent, bob):
        turn = worked(session, "First words.")
        made = fork(turn, by=bob)
        agent.members.remove(bob)
        client = signed_in(bob)
        page = client.get(f"/sessions/{made.pk}/").content.decode()
        assert "This was forked from a session that you may not see." in page
        assert "First words." not in page
        assert client.get(f"/sessions/{made.pk}/inherited/?before=99").status_code == 404

    def test_a_session_that_is_no_fork_has_nothing_above(self, session, alice):
        client = signed_in(alice)
        assert 'class="inherited"' not in client.get(f"/sessions/{session.pk}/").content.decode()
        assert client.get(f"/sessions/{session.pk}/inherited/?before=9").status_code == 404
        assert client.get(f"/sessions/{session.pk}/inherited/?before=x").status_code == 400

    def test_older_rows_come_page_by_page_and_never_beyond_the_fork(self, session, alice):
        turn = claimed(session)
        said(turn, *(f"Word {number}." for number in range(250)))
        finished(turn)
        made = fork(turn, by=alice)
        client = signed_in(alice)
        page = parse(client.get(f"/sessions/{made.pk}/").content.decode())
        seen = [n.attributes["id"] for n in walk(page) if is_inherited(n)]
        pages = 1
        while link := next(
            (n for n in walk(page) if "/inherited/" in str(n.attributes.get("hx-get"))), None
        ):
            page = parse(client.get(str(link.attributes["hx-get"])).content.decode())
            seen = [n.attributes["id"] for n in walk(page) if is_inherited(n)] + seen
            pages += 1
        assert pages == 3
        numbers = [int(str(name).removeprefix("inherited-")) for name in seen]
        assert numbers == sorted(set(numbers))
        assert numbers[-1] <= (made.forked_seq or 0)
        assert len(numbers) == 4 + 250
        answer = client.get(f"/sessions/{made.pk}/inherited/?before=999999999")
        last = [n.attributes["id"] for n in walk(parse(answer.content.decode())) if is_inherited(n)]
        assert last[-1] == seen[-1]

    def test_a_fork_of_a_fork_shows_one_session_and_a_link_further_up(self, session, alice):
        made = fork(worked(session, "In the first."), by=alice)
        made.submit("Go on.", author=alice)
        again = fork(worked(made, "In the fork."), by=alice)
        assert texts(again, alice) == ["Go on.", "In the fork."]
        assert above(again, alice)[0] == "session.forked"
        page = signed_in(alice).get(f"/sessions/{again.pk}/").content.decode()
        assert f'href="/sessions/{session.pk}/"' in page
        assert "In the first." not in page


def walk(node: Any) -> Any:
    for child in node.children:
        if not isinstance(child, str):
            yield child
            yield from walk(child)


def is_inherited(node: Any) -> bool:
    return (
        str(node.attributes.get("id", "")).startswith("inherited-")
        and node.tag == "li"
        and ("event" in str(node.attributes.get("class")))
    )


class TestItIsReadOnly:
    @pytest.fixture
    def made(self, session, alice) -> Session:
        approval = asked(session)
        decide(approval.pk, by=alice, verdict="reject", digest=approval.digest)
        turn = claimed(session, "second")
        said(turn, "\n".join(f"line {n}" for n in range(20)))
        finished(turn, "FAILED")
        made = fork(turn, by=alice)
        made.submit("\n".join(f"- line {n}" for n in range(20)), author=alice)
        worked(made, "Words.", state="FAILED")
        return made

    def test_no_form_and_no_button_is_in_what_stands_above(self, made, alice):
        page = parse(signed_in(alice).get(f"/sessions/{made.pk}/").content.decode())
        section = next(node for node in walk(page) if node.attributes.get("class") == "inherited")
        assert "rejected by alice" in section.text()
        assert "failed" in section.text()
        assert [
            n.tag for n in walk(section) if n.tag in ("form", "button", "input", "textarea")
        ] == []
        own = page.find("timeline")
        assert own is not None
        labels = {n.text() for n in walk(own) if n.tag == "button"}
        assert labels == {"Retry", "Fork from here"}

    def test_no_name_on_the_page_is_given_twice(self, made, alice):
        page = parse(signed_in(alice).get(f"/sessions/{made.pk}/").content.decode())
        names = [n.attributes["id"] for n in walk(page) if n.attributes.get("id")]
        assert len(names) == len(set(names))
        assert {"event-1", "inherited-1"} <= set(names)

    def test_a_card_that_was_left_open_could_not_be_decided_there(self, session, alice):
        asked(session)
        session.refresh_from_db()
        items, _, _ = timeline.page_before(session)
        item = next(item for item in items if item.family == "approval_request")
        assert "<form" in timeline.render_row(item)
        item.inherited = True
        assert "<form" not in timeline.render_row(item)


class TestTheStreamsAreNeverMixed:
    def test_page_older_events_and_raw_hold_the_forks_own_only(self, session, alice):
        made = fork(worked(session, "Of the parent."), by=alice)
        made.submit("Of the fork.", author=alice)
        made.refresh_from_db()
        client = signed_in(alice)
        shown = Timeline(made, client)
        assert shown.last == made.last_seq == 4
        assert [*shown.rows] == ["event-1", "event-2", "event-3", "event-4"]
        assert "Of the parent." not in shown.text()
        older = client.get(f"/sessions/{made.pk}/events/?before=99").content.decode()
        raw = client.get(f"/sessions/{made.pk}/raw/").content.decode()
        for text in (older, raw):
            assert "Of the fork." in text
            assert "Of the parent." not in text
        assert raw.count('<td class="num">') == 4

    @pytest.mark.usefixtures("one_loop")
    async def test_the_socket_starts_at_the_forks_own_first_event(self, session, alice):
        made = await in_thread(lambda: fork(worked(session, "Of the parent."), by=alice))
        async with Watcher(made, alice) as watcher:
            await watcher.disconnect()
            await watcher.connect(after="0")
            frame = await watcher.frame()
            assert frame is not None
            assert frame.startswith("<!--1 1-->")
            assert "Forked by <bdi>alice</bdi>" in frame
            assert "Of the parent." not in frame

    @pytest.mark.usefixtures("one_loop")
    async def test_replay_equals_live_on_a_fork(self, session, alice):
        made = await in_thread(lambda: fork(worked(session, "Of the parent."), by=alice))
        async with Watcher(made, alice) as watcher:
            await in_thread(lambda: made.submit("Go on.", author=alice))
            await in_thread(lambda: worked(made, "Words."))
            live = (await watcher.catch_up()).plain()
            assert live == (await in_thread(Timeline, made, watcher.client)).plain()

    def test_two_that_read_the_same_numbers_get_their_own(self, session, alice):
        turn = worked(session, "Of the parent.")
        made = fork(turn, by=alice)
        assert session.events.get(seq=1).type == "session.created"
        assert made.events.get(seq=1).type == "session.forked"


def test_the_page_of_a_fork_asks_as_many_questions_for_long_histories(session, alice):
    def count(words: int) -> int:
        owner = open_session(session.agent, alice)
        made = fork(worked(owner, *(f"Word {n}." for n in range(words))), by=alice)
        client = signed_in(alice)
        client.get(f"/sessions/{made.pk}/")
        with CaptureQueriesContext(connection) as queries:
            assert client.get(f"/sessions/{made.pk}/").status_code == 200
        return len(queries)

    assert count(2) == count(300)


def test_a_button_is_there_for_those_who_may_work(session, agent, alice, bob):
    worked(session)
    agent.members.remove(alice)
    pages = {
        user: signed_in(user).get(f"/sessions/{session.pk}/").content.decode()
        for user in (alice, bob)
    }
    assert 'data-may-work="false"' in pages[alice]
    assert 'data-may-work="true"' in pages[bob]
    assert all("Fork from here" in page for page in pages.values())


def test_a_form_opened_by_hand_leads_home(session, alice: User):
    client: Client = signed_in(alice)
    assert client.get(f"/turns/{session.turns.get().pk}/fork/").status_code == 302

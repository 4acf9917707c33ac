"""Delegating: who may, how far, once per key, and what comes back."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.utils import timezone

from sessions_app import delegation, engine, events
from sessions_app.delegation import delegate
from sessions_app.feeds import render_regions
from sessions_app.forking import fork
from sessions_app.models import Agent, Artifact, Fenced, NotAllowed, NotPossible, Session, Turn
from sessions_app.models.artifact import store
from sessions_app.models.lineage import MOST_LEVELS, NAMED, SUMMARY
from sessions_app.runners import registry
from sessions_app.runners.base import TurnContext, TurnFailure
from sessions_app.threads import in_thread
from sessions_app.views import context

from .conftest import signed_in, work
from .pages import Timeline, Watcher, parse
from .scenes import claimed, everything, finished, held, jobs, open_session, parked, types
from .test_engine import Scripted, advance
from .test_forking import HTMX, said, walk

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def other(alice: User) -> Agent:
    """Another agent, which alice may use and bob may not."""
    other = Agent.objects.create(name="Reviewer", runner="runbook")
    other.members.set([alice])
    return other


def given(turn: Turn, by: User, instruction: str = "Review it.", **more: Any) -> Session:
    return delegate(
        turn, **{"agent": "Reviewer", "instruction": instruction, "by": by, "key": "k", **more}
    )


def handed(session: Session) -> list[events.HandoffSummaryCreated]:
    found = session.events.filter(type="handoff_summary.created").order_by("seq")
    return [event.payload for event in found]  # type: ignore[misc]


def refused(turn: Turn, by: User, match: str, error: type = NotPossible, **more: Any) -> None:
    before = everything()
    with pytest.raises(error, match=match):
        given(turn, by, **more)
    assert everything() == before


class TestGivingWork:
    def test_a_child_is_opened_and_its_first_turn_queued(self, session, other, alice):
        turn = claimed(session)
        child = given(turn, alice, ref="step-1")
        assert (child.parent, child.spawned_by_turn) == (session, turn)
        assert (child.agent, child.owner, child.title) == (other, alice, "Review it.")
        assert types(child) == [
            "session.created", "turn.queued", "message.created", "session.activated",
        ]  # fmt: skip
        assert child.events.get(seq=1).data["parent"] == session.pk
        assert jobs(child) == 1
        told = session.events.get(type="session.delegated")
        assert told.turn == turn
        assert told.payload == events.SessionDelegated(
            session_id=child.pk, agent="Reviewer", title="Review it.", by="alice", ref="step-1"
        )

    def test_the_same_key_within_the_turn_is_the_same_child(self, session, other, alice):
        turn = claimed(session)
        child = given(turn, alice)
        before = everything()
        assert given(turn, alice) == given(turn, alice, agent=other.pk) == child
        assert everything() == before
        assert given(turn, alice, key="another") != child
        finished(turn)
        session.submit("More.", author=alice)
        assert given(claimed(session), alice) not in (child, None)

    def test_the_same_key_for_something_else_is_a_conflict(self, session, other, alice):
        turn = claimed(session)
        given(turn, alice)
        refused(turn, alice, "under the same key", instruction="Something else.")
        refused(turn, alice, "under the same key", agent="Runbook")

    def test_a_child_that_was_worked_on_is_still_the_same(self, session, other, alice):
        turn = claimed(session)
        child = given(turn, alice)
        finished(claimed(child))
        child.submit("By hand.", author=alice)
        assert given(turn, alice) == child

    def test_what_cannot_be_stored_is_written_as_a_sign(self, session, other, alice):
        child = given(claimed(session), alice, instruction="a\x00b")
        assert child.turns.get().instruction == "a\u2400b"
        assert given(session.turns.get(), alice, instruction="a\x00b") == child


class TestWhoMay:
    def test_the_other_agent_has_to_be_theirs(self, session, other, bob, staff):
        turn = claimed(session)
        refused(turn, bob, "There is no agent “Reviewer” that bob may use.", NotAllowed)
        assert given(turn, staff).owner == staff

    def test_an_agent_they_may_not_use_is_as_good_as_none(self, session, other, bob):
        turn = claimed(session)
        messages = []
        for name in ("Reviewer", "Nobody"):
            with pytest.raises(NotAllowed) as refusal:
                given(turn, bob, agent=name)
            messages.append(str(refusal.value).replace(name, "…"))
        assert messages[0] == messages[1]

    def test_one_that_is_switched_off_takes_no_work(self, session, other, alice):
        Agent.objects.filter(pk=other.pk).update(enabled=False)
        refused(claimed(session), alice, "Reviewer is switched off", NotAllowed)

    def test_an_instruction_that_the_other_would_refuse_is_refused_at_once(
        self, session, other, alice
    ):
        refused(
            claimed(session), alice, "Reviewer would refuse .* Line 1", instruction="```sh\n```"
        )

    def test_an_archived_session_delegates_nothing(self, session, other, alice):
        turn = finished(claimed(session))
        session.archive(by=alice)
        refused(turn, alice, "archived")


class TestHowFar:
    def test_work_is_given_on_five_times(self, session, other, alice):
        current, chain = session, []
        for _ in range(MOST_LEVELS):
            current = given(claimed(current), alice)
            chain.append(current)
        refused(claimed(current), alice, "at most 5 times")
        assert len(chain) == 5

    def test_a_turn_gives_work_ten_times(self, session, other, alice):
        turn = claimed(session)
        children = [given(turn, alice, key=f"k{n}") for n in range(delegation.MOST_PER_TURN)]
        refused(turn, alice, "at most 10 times", key="one more")
        assert given(turn, alice, key="k3") == children[3], "a repeat is no new one"
        finished(turn)
        session.submit("More.", author=alice)
        assert given(claimed(session), alice, key="one more")


# -- what comes back -------------------------------------------------------------------------------


def made(session: Session, turn: Turn, name: str, kind: str = "file") -> None:
    sha256, size = store(io.BytesIO(name.encode()))
    Artifact.objects.create(
        session=session, turn=turn, kind=kind, name=name, media_type="text/plain",
        size=size, sha256=sha256,
    )  # fmt: skip


class TestWhatComesBack:
    def test_the_last_words_and_what_was_made(self, session, other, alice):
        child = given(claimed(session), alice)
        turn = claimed(child)
        said(turn, "First.", "All is well.")
        made(child, turn, "report.txt")
        made(child, turn, "turn-1-step-1.log", "log_bundle")
        assert handed(session) == []
        finished(turn)
        assert handed(session) == [
            events.HandoffSummaryCreated(
                session_id=child.pk, agent="Reviewer", title="Review it.", turn=1,
                outcome="completed", summary="All is well.", artifacts=("report.txt",),
                artifact_count=1,
            )
        ]  # fmt: skip

    def test_why_it_failed(self, session, other, alice):
        child = given(claimed(session), alice)
        turn = claimed(child)
        said(turn, "Trying.")
        with held(turn):
            closing = events.TurnFailed(code="step_failed", message="It broke.")
            turn.finish(closing, state="FAILED", code="step_failed", message="It broke.")
        [told] = handed(session)
        assert (told.outcome, told.summary) == ("failed", "It broke.")

    def test_who_stopped_it(self, session, other, alice):
        child = given(claimed(session), alice)
        child.turns.get().cancel(by=alice, reason="not needed")
        [told] = handed(session)
        assert (told.outcome, told.summary) == ("cancelled", "Stopped by alice: not needed")

    def test_it_is_bounded(self, session, other, alice):
        child = given(claimed(session), alice)
        turn = claimed(child)
        said(turn, "x" * 100_000)
        for number in range(NAMED + 5):
            made(child, turn, f"{number:0300}")
        finished(turn)
        [told] = handed(session)
        assert len(told.summary) == SUMMARY
        assert told.summary.endswith("…")
        assert (len(told.artifacts), told.artifact_count) == (NAMED, NAMED + 5)

    def test_it_comes_when_nothing_is_queued_any_more_and_once(self, session, other, alice):
        child = given(claimed(session), alice)
        child.submit("And then this.", author=alice)
        finished(claimed(child))
        assert handed(session) == []
        finished(claimed(child), "FAILED")
        assert [(told.turn, told.outcome) for told in handed(session)] == [(2, "failed")]
        Session.objects.get(pk=child.pk).settle()
        assert len(handed(session)) == 1

    def test_each_time_it_comes_to_rest(self, session, other, alice):
        child = given(claimed(session), alice)
        finished(claimed(child))
        child.submit("Again.", author=alice)
        finished(claimed(child), "FAILED")
        child.turns.get(number=2).retry(by=alice)
        finished(claimed(child))
        told = [(told.turn, told.outcome) for told in handed(session)]
        assert told == [(1, "completed"), (2, "failed"), (3, "completed")]

    def test_a_question_is_no_rest(self, session, other, alice):
        child = given(claimed(session), alice)
        turn = parked(claimed(child), "WAITING_FOR_INPUT")
        assert handed(session) == []
        turn.cancel(by=alice)
        assert [told.outcome for told in handed(session)] == ["cancelled"]

    def test_closing_it_with_work_open_is_told_and_closing_it_at_rest_is_not(
        self, session, other, alice
    ):
        child = given(claimed(session), alice)
        claimed(child)
        child.submit("Queued.", author=alice)
        child.close("CANCELLED", by=alice)
        assert [(told.turn, told.outcome) for told in handed(session)] == [(2, "cancelled")]
        child.submit("Reopened.", author=alice)
        finished(claimed(child))
        child.close("COMPLETED", by=alice)
        assert [told.turn for told in handed(session)] == [2, 3]

    def test_a_clock_that_is_behind_changes_nothing(self, session, other, alice):
        child = given(claimed(session), alice)
        finished(claimed(child))
        child.turns.update(finished_at=timezone.now() + timedelta(hours=1))
        child.submit("On another machine.", author=alice)
        finished(claimed(child))
        assert [told.turn for told in handed(session)] == [1, 2]

    def test_a_session_without_a_parent_tells_nobody(self, session):
        finished(claimed(session))
        assert "handoff_summary.created" not in types(session)

    def test_a_summary_changes_nothing_in_the_parent_but_its_story(self, session, other, alice):
        turn = claimed(session)
        child = given(turn, alice)
        before = Session.objects.get(pk=session.pk)
        finished(claimed(child))
        after = Session.objects.get(pk=session.pk)
        assert (after.state, after.fence) == (before.state, before.fence)
        assert after.last_seq == before.last_seq + 1
        finished(turn)

    @pytest.mark.parametrize("end", ["COMPLETED", "CANCELLED", "ARCHIVED"])
    def test_a_parent_that_is_closed_or_archived_is_told_all_the_same(
        self, session, other, alice, end
    ):
        child = given(claimed(session), alice)
        session.close("COMPLETED" if end == "ARCHIVED" else end, by=alice)
        if end == "ARCHIVED":
            session.archive(by=alice)
        finished(claimed(child))
        assert len(handed(session)) == 1
        session.refresh_from_db()
        assert session.state == end

    def test_a_parent_that_was_deleted_does_not_stop_the_child(self, session, other, alice):
        child = given(claimed(session), alice)
        turn = claimed(child)
        session.delete()
        finished(turn)
        child.refresh_from_db()
        assert (child.state, child.parent) == ("WAITING_FOR_INPUT", None)

    def test_a_parent_that_is_deleted_meanwhile_does_not_stop_it_either(
        self, session, other, alice, monkeypatch
    ):
        child = given(claimed(session), alice)
        turn = claimed(child)

        def gone(self: Session, *payloads: Any, **more: Any) -> int:
            if payloads[0].type == "handoff_summary.created":
                raise Fenced("gone")
            return record(self, *payloads, **more)

        record = Session.record
        monkeypatch.setattr(Session, "record", gone)
        finished(turn)
        child.refresh_from_db()
        assert child.state == "WAITING_FOR_INPUT"


# -- runners ---------------------------------------------------------------------------------------


@pytest.fixture
def scripted(agent: Agent) -> Iterator[Scripted]:
    runner = Scripted()
    registry.register(runner)
    Agent.objects.filter(pk=agent.pk).update(runner="scripted")
    yield runner
    del registry._runners["scripted"]


class TestRunners:
    @pytest.fixture
    def session(self, scripted: Scripted, agent: Agent, alice: User) -> Session:
        return open_session(agent, alice)

    def test_a_runner_gives_work_once_however_often_it_is_run(
        self,
        session,
        other,
        scripted: Scripted,
    ):
        told: list[str] = []

        async def script(turn: TurnContext) -> AsyncIterator[Any]:
            told.append(await turn.delegate("one", "Reviewer", "Review it."))
            told.append(await turn.delegate("one", "Reviewer", "Review it."))
            yield events.MessageCreated(role="assistant", text="Given.")

        scripted.script = script
        advance(session)
        [child] = session.children.all()
        assert told == [child.pk, child.pk]
        assert child.spawned_by_turn == session.turns.get()
        order = types(session)
        assert order.index("session.delegated") < order.index("message.created", 3)

    def test_a_refusal_fails_the_turn_with_its_reason(
        self,
        session,
        other,
        bob,
        scripted: Scripted,
    ):
        async def script(turn: TurnContext) -> AsyncIterator[Any]:
            await turn.delegate("one", "Nobody", "Review it.")
            yield events.MessageCreated(role="assistant", text="Never said.")

        scripted.script = script
        advance(session)
        turn = session.turns.get()
        assert (turn.state, turn.error_code) == ("FAILED", "delegation_refused")
        assert turn.error_message == "There is no agent “Nobody” that alice may use."
        assert not session.children.exists()

    def test_a_runner_may_catch_a_refusal(self, session, other, scripted: Scripted):
        async def script(turn: TurnContext) -> AsyncIterator[Any]:
            try:
                await turn.delegate("one", "Nobody", "Review it.")
            except TurnFailure as refusal:
                yield events.MessageCreated(role="assistant", text=f"Not done: {refusal}")

        scripted.script = script
        advance(session)
        assert session.turns.get().state == "COMPLETED"

    def test_a_worker_that_lost_the_turn_delegates_nothing(
        self,
        session,
        other,
        scripted: Scripted,
    ):
        async def script(turn: TurnContext) -> AsyncIterator[Any]:
            await in_thread(Session.objects.filter(pk=session.pk).update, fence="somebody:2")
            await turn.delegate("one", "Reviewer", "Review it.")
            yield events.MessageCreated(role="assistant", text="Never said.")

        scripted.script = script
        advance(session)
        assert not Session.objects.filter(parent=session).exists()
        assert "session.delegated" not in types(session)

    def test_a_runner_cannot_make_up_what_came_back(
        self,
        session,
        other,
        scripted: Scripted,
        caplog,
    ):
        async def script(turn: TurnContext) -> AsyncIterator[Any]:
            yield events.HandoffSummaryCreated(
                session_id="ses_x", agent="a", title="b", turn=1, outcome="completed"
            )

        scripted.script = script
        advance(session)
        assert session.turns.get().error_code == "runner_error"
        assert "may not author handoff_summary.created" in caplog.text


BOOK = """# Have it reviewed

````delegate agent="Reviewer" name=review
# Review it

```sh
echo reviewed
```
````

That was given away.
"""


class TestRunbooks:
    def test_a_runbook_delegates_and_goes_on_at_once(self, agent, other, alice):
        Agent.objects.filter(pk=other.pk).update(allowed_commands=["echo reviewed"])
        session = open_session(agent, alice, BOOK)
        async_to_sync(work)(session.pk)
        [child] = session.children.all()
        assert child.turns.get().instruction == "# Review it\n\n```sh\necho reviewed\n```\n"
        assert session.turns.get().state == "COMPLETED"
        engine.replace_worker(None)
        async_to_sync(work)(child.pk)
        assert child.turns.get().state == "COMPLETED"
        [told] = handed(session)
        assert (told.session_id, told.outcome, told.summary) == (
            child.pk,
            "completed",
            "# Review it",
        )

    def test_a_refusal_stops_it_or_is_told(self, agent, other, alice):
        refused = open_session(agent, alice, BOOK.replace("Reviewer", "Nobody"))
        async_to_sync(work)(refused.pk)
        assert refused.turns.get().error_code == "delegation_refused"
        engine.replace_worker(None)
        goes_on = BOOK.replace('"Reviewer"', '"Nobody" on-failure=continue')
        told = open_session(agent, alice, goes_on)
        async_to_sync(work)(told.pk)
        assert told.turns.get().state == "COMPLETED"
        texts = list(
            told.events.filter(type="message.created").values_list("data__text", flat=True)
        )
        assert texts[-2:] == [
            "`review` was not delegated: There is no agent “Nobody” that alice may use.",
            "That was given away.",
        ]


# -- pages -----------------------------------------------------------------------------------------


def form(**more: str) -> dict[str, str]:
    return {"agent": "Reviewer", "delegated": "Review it.", "submission": "form-1", **more}


class TestPages:
    def test_a_person_delegates_from_the_inspector(self, session, other, alice):
        client = signed_in(alice)
        finished(claimed(session))
        page = client.get(f"/sessions/{session.pk}/").content.decode()
        assert f"/sessions/{session.pk}/delegations/" in page
        answer = client.post(f"/sessions/{session.pk}/delegations/", form(agent=other.pk))
        assert (answer.status_code, answer["Location"]) == (302, f"/sessions/{session.pk}/")
        [child] = session.children.all()
        assert (child.owner, child.spawned_by_turn) == (alice, session.turns.get())
        told = session.events.get(type="session.delegated")
        assert (told.turn, told.data["by"], told.data["ref"]) == (None, "alice", None)
        client.post(f"/sessions/{session.pk}/delegations/", form(agent=other.pk))
        assert session.children.count() == 1

    def test_what_was_typed_is_kept_when_it_is_refused(self, session, other, bob):
        client = signed_in(bob)
        for headers in ({}, HTMX):
            answer = client.post(f"/sessions/{session.pk}/delegations/", form(), **headers)
            assert answer.status_code == 403
            text = answer.content.decode()
            assert "There is no agent “Reviewer” that bob may use." in text
            assert "Review it.</textarea>" in text
        answer = client.post(
            f"/sessions/{session.pk}/delegations/",
            form(agent="Runbook", delegated="```sh\n```"),
            **HTMX,
        )
        assert answer.status_code == 409

    def test_an_owner_who_may_not_work_may_not_delegate(self, session, agent, other, alice):
        agent.members.remove(alice)
        answer = signed_in(alice).post(f"/sessions/{session.pk}/delegations/", form(), **HTMX)
        assert answer.status_code == 403
        assert "no member of Runbook" in answer.content.decode()
        assert not session.children.exists()

    def test_the_form_comes_back_empty_with_a_key_of_its_own(self, session, other, alice):
        client = signed_in(alice)
        for text in ("One.", "Two."):
            answer = client.post(
                f"/sessions/{session.pk}/delegations/",
                form(delegated=text, submission=text),
                **HTMX,
            )
            assert answer.status_code == 200
            [area] = [n for n in walk(parse(answer.content.decode())) if n.tag == "textarea"]
            assert area.text() == ""
        assert session.children.count() == 2

    def test_only_agents_that_may_be_used_are_offered(self, session, other, bob):
        finished(claimed(session))
        page = parse(signed_in(bob).get(f"/sessions/{session.pk}/").content.decode())
        select = page.find("delegate-agent")
        assert select is not None
        assert select.text() == "Runbook"

    @pytest.mark.usefixtures("one_loop")
    async def test_replay_equals_live_for_what_was_given_and_came_back(self, session, other, alice):
        async with Watcher(session, alice) as watcher:
            child = await in_thread(lambda: given(claimed(session), alice, ref="k"))
            await watcher.catch_up()
            assert "at work" in watcher.timeline.text()
            await in_thread(
                lambda: (said(turn := claimed(child), "All is *well*."), finished(turn))
            )
            live = (await watcher.catch_up()).plain()
            assert live == (await in_thread(Timeline, session, watcher.client)).plain()
            assert "at work" not in watcher.timeline.text()
            assert "All is well" in watcher.timeline.text()
            rows = [row for row in watcher.timeline.rows.values() if "Reviewer" in row.text()]
            assert len(rows) == 1, "what comes back stands where it was given"


class TestTheInspector:
    def lineage(self, session: Session, user: User) -> str:
        answer = signed_in(user).get(f"/sessions/{session.pk}/lineage/")
        assert answer.status_code == 200
        return answer.content.decode()

    def test_it_shows_where_a_session_comes_from_and_what_came_of_it(self, session, other, alice):
        turn = claimed(session)
        child = given(turn, alice)
        finished(turn)
        made = fork(turn, by=alice)
        text = self.lineage(session, alice)
        assert f'href="/sessions/{child.pk}/"' in text
        assert f'href="/sessions/{made.pk}/"' in text
        for below in (child, made):
            assert f'href="/sessions/{session.pk}/"' in self.lineage(below, alice)
        finished(claimed(child), "FAILED")
        assert "failed" in self.lineage(session, alice)

    def test_it_is_the_same_on_the_page(self, session, other, alice):
        given(claimed(session), alice)
        client = signed_in(alice)
        page = parse(client.get(f"/sessions/{session.pk}/").content.decode())
        alone = parse(client.get(f"/sessions/{session.pk}/lineage/").content.decode())
        here, there = page.find("lineage-list"), alone.find("lineage-list")
        assert here is not None
        assert there is not None
        assert here.plain() == there.plain()

    def test_what_a_reader_may_not_see_is_only_counted(self, session, other, alice, bob):
        child = given(claimed(session), alice, instruction="A secret review.")
        text = self.lineage(session, bob)
        assert "1 that you may not see" in text
        assert "secret" not in text
        assert child.pk not in text
        other.members.add(bob)
        session.agent.members.remove(bob)
        text = self.lineage(child, bob)
        assert "A session you may not see" in text
        assert session.pk not in text.replace(f"/sessions/{child.pk}/lineage/", "")

    def test_frames_hold_nothing_of_it(self, session, other, alice):
        """They are the same for every reader; the list is fetched by each for themselves."""
        given(claimed(session), alice, instruction="A secret review.")
        frame, _ = render_regions(session.pk, {alice.pk})
        assert "secret" not in frame
        assert "lineage" not in frame

    def test_many_are_counted(self, session, other, alice, monkeypatch):
        monkeypatch.setattr(context, "RELATED", 2)
        turn = claimed(session)
        for number in range(4):
            given(turn, alice, key=str(number), instruction=f"Number {number}.")
        text = self.lineage(session, alice)
        assert "Number 3." in text
        assert "Number 1." not in text
        assert "and 2 earlier" in text

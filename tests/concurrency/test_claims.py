"""Many workers at one session: each piece of work is taken by exactly one of them."""

from __future__ import annotations

import threading
from functools import partial
from itertools import chain

import pytest
from django.db import transaction
from django.db.models.functions import Now

from sessions_app.events import MessageCreated, TurnCompleted
from sessions_app.models import Agent, Event, Fenced, Session, Turn

from ..crowd import PATIENCE, errors_in, together, until_locked, until_somebody_waits
from ..scenes import (
    LEASE,
    claimed,
    finished,
    held,
    let_the_lease_run_out,
    open_session,
    parked,
    types,
)

pytestmark = pytest.mark.django_db(transaction=True)

ROUNDS = 10


def claim(session: Session, number: int) -> Turn | None:
    return Turn.objects.claim(session.pk, f"worker-{number}", lease=LEASE)


def all_claim(session: Session, workers: int) -> list[Turn]:
    results = together(*(partial(claim, session, number) for number in range(workers)))
    assert errors_in(results) == []
    return [turn for turn in results if turn is not None]


@pytest.mark.parametrize("workers", [2, 8])
def test_of_workers_that_claim_at_once_exactly_one_gets_the_turn(agent, alice, workers):
    for _ in range(ROUNDS):
        session = open_session(agent, alice)
        [won] = all_claim(session, workers)
        assert (won.attempt, won.state) == (1, "RUNNING")
        assert session.turns.get().holder == won.holder
        session.refresh_from_db()
        assert session.fence == f"{won.pk}:1"
        assert types(session).count("turn.started") == 1


@pytest.mark.parametrize("workers", [2, 8])
def test_workers_that_share_a_session_run_its_turns_once_each_and_in_order(agent, alice, workers):
    session = open_session(agent, alice)
    for number in range(2, 13):
        session.submit(f"Number {number}.", author=alice)

    def work(number: int) -> list[int]:
        done: list[int] = []
        while session.turns.exclude(state="COMPLETED").exists():
            turn = claim(session, number)
            if turn is not None:
                with held(turn) as locked:
                    locked.record(MessageCreated(role="assistant", text=f"{turn.number}"))
                finished(turn)
                done.append(turn.number)
        return done

    results = together(*(partial(work, number) for number in range(workers)))
    assert errors_in(results) == []
    assert sorted(chain(*results)) == list(range(1, 13))
    said = session.events.filter(type="message.created", data__role="assistant").order_by("seq")
    assert [int(event.data["text"]) for event in said] == list(range(1, 13))
    assert types(session).count("turn.started") == 12
    assert set(session.turns.values_list("attempt", flat=True)) == {1}


@pytest.mark.parametrize("workers", [2, 8])
def test_of_workers_that_rescue_at_once_exactly_one_takes_the_turn_over(agent, alice, workers):
    for _ in range(ROUNDS):
        session = open_session(agent, alice)
        lost = claimed(session, "dead-worker")
        let_the_lease_run_out(lost)
        [won] = all_claim(session, workers)
        assert (won.pk, won.attempt) == (lost.pk, 2)
        started = session.events.filter(type="turn.started").order_by("seq")
        assert [event.data["reason"] for event in started] == ["started", "rescued"]


def test_a_lease_that_is_renewed_while_somebody_takes_the_turn_over_is_kept(agent, alice):
    """Heartbeats renew without the session's lock: the claim looks at the lease once more."""
    session = open_session(agent, alice)
    slow = claimed(session, "slow-worker")
    let_the_lease_run_out(slow)
    renewed = threading.Event()

    def renew() -> None:
        with transaction.atomic():
            Turn.objects.filter(pk=slow.pk).update(lease_until=Now() + LEASE)
            renewed.set()
            until_somebody_waits()

    def take_over() -> Turn | None:
        renewed.wait(PATIENCE)
        return claim(session, 1)

    assert together(renew, take_over) == [None, None]
    turn = session.turns.get()
    assert (turn.holder, turn.attempt) == ("slow-worker", 1)
    session.refresh_from_db()
    assert session.fence == slow.fence


def test_of_workers_woken_by_a_decision_exactly_one_goes_on(agent: Agent, alice):
    for _ in range(ROUNDS):
        session = open_session(agent, alice)
        turn = parked(claimed(session))
        assert all_claim(session, 2) == []
        with held(turn):
            assert turn.resume(by="bob")
        [won] = all_claim(session, 4)
        assert (won.pk, won.attempt) == (turn.pk, 2)


def append_as(turn: Turn, text: str) -> int:
    """What the engine's own append does: no lock, only the fence."""
    payload = MessageCreated(role="assistant", text=text)
    with transaction.atomic():
        return Event.objects.append(turn.session_id, [payload], turn_id=turn.pk, fence=turn.fence)


def test_a_dead_worker_that_writes_while_it_is_rescued_writes_before_that_or_never(agent, alice):
    """The fence is tested on the row that is locked, not on an old snapshot of another."""
    for number in range(ROUNDS * 2):
        session = open_session(agent, alice)
        lost = claimed(session, "dead-worker")
        let_the_lease_run_out(lost)
        written, won = together(
            partial(append_as, lost, "Still here."),
            partial(claim, session, 1),
            backwards=bool(number % 2),
        )
        assert isinstance(won, Turn)
        said = session.events.filter(type="message.created", data__role="assistant").first()
        taken = session.events.get(type="turn.started", data__attempt=2)
        if isinstance(written, Fenced):
            assert said is None
        else:
            assert said.seq == written < taken.seq
        with pytest.raises(Fenced):
            append_as(lost, "Once more.")


def test_a_dead_worker_that_waits_for_the_row_while_it_is_rescued_writes_nothing(agent, alice):
    """The order that matters, made on purpose: the append waits, the fence changes, it goes on."""
    session = open_session(agent, alice)
    lost = claimed(session, "dead-worker")
    let_the_lease_run_out(lost)
    count = session.events.count()

    def rescue() -> Turn | None:
        with transaction.atomic():
            turn = claim(session, 1)
            until_somebody_waits()
            return turn

    def write() -> int:
        until_locked(session)
        return append_as(lost, "Still here.")

    won, refused = together(rescue, write)
    assert won.attempt == 2
    assert isinstance(refused, Fenced)
    assert session.events.count() == count + 1, "only the start of the second attempt"


def test_a_dead_worker_that_finishes_while_it_is_rescued_leaves_one_outcome(agent, alice):
    for number in range(ROUNDS):
        session = open_session(agent, alice)
        lost = claimed(session, "dead-worker")
        let_the_lease_run_out(lost)

        def finish(turn: Turn = lost) -> None:
            with held(turn):
                turn.finish(TurnCompleted(duration_ms=1), state="COMPLETED")

        results = together(finish, partial(claim, session, 1), backwards=bool(number % 2))
        refused = errors_in(results)
        turn = session.turns.get()
        if refused:
            assert isinstance(refused[0], Fenced)
            assert (turn.state, turn.attempt) == ("RUNNING", 2)
            assert "turn.completed" not in types(session)
        else:
            assert (turn.state, turn.attempt) == ("COMPLETED", 1)
            assert types(session).count("turn.started") == 1

"""Two people decide at the same moment: exactly one wins, the other is told who."""

from __future__ import annotations

from functools import partial

import pytest
from django.contrib.auth.models import User
from django.db import transaction

from approvals_app.decisions import Conflict, decide
from approvals_app.models import ApprovalRequest, Decision
from sessions_app.models import Agent, Session, Turn

from ..crowd import errors_in, together, until_locked, until_somebody_waits
from ..scenes import asked, jobs, open_session, types

pytestmark = pytest.mark.django_db(transaction=True)

ROUNDS = 20


def decided(request: ApprovalRequest, by: User, verdict: str, **more: str) -> ApprovalRequest:
    return decide(request.pk, by=by, verdict=verdict, digest=request.digest, **more)


def test_of_two_deciders_exactly_one_wins_and_the_other_is_told_who(agent: Agent, alice, bob):
    winners = set()
    for number in range(ROUNDS):
        session = open_session(agent, alice)
        request = asked(session)
        doings = [
            partial(decided, request, alice, "approve"),
            partial(decided, request, bob, "reject", reason="Not today."),
        ]
        results = together(*doings, backwards=bool(number % 2))
        [lost] = errors_in(results)
        assert isinstance(lost, Conflict)

        request.refresh_from_db()
        winner, verdict, outcome = {
            "APPROVED": ("alice", "approve", "approved"),
            "REJECTED": ("bob", "reject", "rejected"),
        }[request.state]
        winners.add(winner)
        assert request.resolved_by == winner
        assert f"{outcome} already by {winner}" in str(lost)
        made = Decision.objects.filter(request=request).values_list("by__username", "verdict")
        assert list(made) == [(winner, verdict)]
        assert types(session).count("approval_request.resolved") == 1
        assert session.turns.get().state == "RUNNING"
        assert jobs(session) == 2, "one wake-up for the turn, and one for its continuation"
    assert winners <= {"alice", "bob"}


def test_of_eight_who_approve_at_once_one_is_recorded(agent: Agent, alice):
    people = [User.objects.create_user(f"member-{number}") for number in range(8)]
    agent.members.add(*people)
    session = open_session(agent, alice)
    request = asked(session)
    results = together(*(partial(decided, request, person, "approve") for person in people))
    assert len(errors_in(results)) == 7
    assert {type(error) for error in errors_in(results)} == {Conflict}
    assert Decision.objects.count() == 1
    assert types(session).count("approval_request.resolved") == 1


def test_the_identical_repeat_by_the_same_person_is_no_error_even_at_once(agent: Agent, alice, bob):
    session = open_session(agent, alice)
    request = asked(session)
    results = together(*[partial(decided, request, bob, "approve")] * 4)
    assert errors_in(results) == []
    assert {result.state for result in results} == {"APPROVED"}
    assert Decision.objects.count() == 1
    assert types(session).count("approval_request.resolved") == 1
    assert jobs(session) == 2


def test_a_decider_who_waits_for_the_other_sees_what_the_other_decided(agent, alice, bob):
    """Not by chance of timing: the second is in the middle of its own when the first commits."""
    session = open_session(agent, alice)
    request = asked(session)

    def first() -> None:
        with transaction.atomic():
            Session.objects.lock(session.pk)
            until_somebody_waits()
            decided(request, alice, "reject", reason="Too late in the day.")

    def second() -> None:
        until_locked(session)
        decided(request, bob, "approve")

    _, refused = together(first, second)
    assert isinstance(refused, Conflict)
    assert str(refused) == "This request is rejected already by alice: Too late in the day."


def test_a_decision_and_a_cancellation_at_once_have_one_consistent_outcome(agent, alice, bob):
    for number in range(ROUNDS):
        session = open_session(agent, alice)
        request = asked(session)
        turn = Turn.objects.get(pk=request.turn_id)
        doings = [
            partial(decided, request, bob, "approve"),
            partial(turn.cancel, by=alice, reason="Changed my mind."),
        ]
        results = together(*doings, backwards=bool(number % 2))
        lost = errors_in(results)
        request.refresh_from_db()
        turn.refresh_from_db()
        session.refresh_from_db()
        if request.state == "APPROVED":
            # Decided first: the turn goes on, and the wish to end it is carried out by its worker.
            assert lost == []
            assert turn.state == "RUNNING"
            assert turn.cancel_requested_by == "alice"
            assert session.state == "ACTIVE"
            assert jobs(session) == 2
        else:
            # Cancelled first: nothing is left to decide.
            assert [type(error) for error in lost] == [Conflict]
            assert "cancelled already by alice" in str(lost[0])
            assert (request.state, turn.state) == ("CANCELLED", "CANCELLED")
            assert session.state == "WAITING_FOR_INPUT"
            assert not Decision.objects.filter(request=request).exists()
            assert jobs(session) == 1
        assert types(session).count("approval_request.resolved") == 1


def test_a_decision_and_the_end_of_the_session_at_once_leave_nothing_open(agent, alice, bob):
    for number in range(ROUNDS // 2):
        session = open_session(agent, alice)
        request = asked(session)
        doings = [
            partial(decided, request, bob, "approve"),
            partial(Session.objects.get(pk=session.pk).close, "CANCELLED", by=alice),
        ]
        results = together(*doings, backwards=bool(number % 2))
        request.refresh_from_db()
        session.refresh_from_db()
        assert session.state == "CANCELLED"
        assert session.turns.get().state == "CANCELLED"
        if request.state == "APPROVED":
            assert errors_in(results) == []
        else:
            assert request.state == "CANCELLED"
            assert [type(error) for error in errors_in(results)] == [Conflict]
        assert types(session).count("approval_request.resolved") == 1

"""What a worker may do to a turn: all of it while the turn is its own, none of it afterwards."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from sessions_app import gates
from sessions_app.events import UsageRecorded
from sessions_app.held import HeldTurn
from sessions_app.models import Fenced, Session
from sessions_app.models.states import TurnState
from sessions_app.runners.base import Grant

from .scenes import action, claimed, everything, let_the_lease_run_out, parked

pytestmark = pytest.mark.django_db

QUESTION = gates.Question("step-1", action(), "A step", ask=True)


class Environment:
    confined, network, detail, resumed = True, False, "somewhere", False


DOINGS: dict[str, Callable[[HeldTurn], Any]] = {
    "review": lambda held: held.review(QUESTION),
    "redeem": lambda held: held.redeem(Grant("step-1", action().digest()), action().digest()),
    "artifact": lambda held: held.artifact("file", "note.txt", "0" * 64, 5, ""),
    "usage": lambda held: held.usage(UsageRecorded(input_tokens=5, cost=Decimal("0.1"))),
    "computed": lambda held: held.computed(1000),
    "environment_used": lambda held: held.environment_used(),
    "environment_opened": lambda held: held.environment_opened("local", Environment(), 5),
    "environment_failed": lambda held: held.environment_failed("local", "The disk is full."),
    "delegate": lambda held: held.delegate("step-1", "Runbook", "Just a word."),
    "finish": lambda held: held.finish(TurnState.COMPLETED, "", ""),
    "release": lambda held: held.release(),
}
# A grant that no person gave is not used up, and a question is only a question.
CHANGES_NOTHING = {"redeem", "environment_used"}


def test_everything_a_worker_can_do_is_tried():
    methods = inspect.getmembers(HeldTurn, inspect.isfunction)
    assert {name for name, _ in methods if not name.startswith("_")} == set(DOINGS)


def taken_over(session: Session) -> HeldTurn:
    stale = HeldTurn(claimed(session, "dead-worker"), "dead-worker")
    let_the_lease_run_out(stale.turn)
    claimed(session, "live-worker")
    return stale


def taken_over_by_itself(session: Session) -> HeldTurn:
    """The same worker, whose first attempt is still somewhere on its loop."""
    stale = HeldTurn(claimed(session, "worker"), "worker")
    let_the_lease_run_out(stale.turn)
    claimed(session, "worker")
    return stale


def after_the_session_was_closed(session: Session) -> HeldTurn:
    stale = HeldTurn(claimed(session), "worker")
    session.close("CANCELLED", by=session.owner)
    return stale


def after_parking(session: Session) -> HeldTurn:
    turn = claimed(session)
    stale = HeldTurn(session.turns.get(), "worker")
    parked(turn)
    return stale


def after_handing_back(session: Session) -> HeldTurn:
    stale = HeldTurn(claimed(session), "worker")
    stale.release()
    return stale


def while_the_next_turn_runs(session: Session) -> HeldTurn:
    stale = HeldTurn(claimed(session), "worker")
    session.submit("And this.", author=session.owner)
    stale.turn.cancel(by=session.owner)
    HeldTurn(session.turns.get(number=1), "worker").finish(TurnState.CANCELLED, "", "")
    claimed(session, "worker")
    return stale


OVERTAKEN = [
    taken_over,
    taken_over_by_itself,
    after_the_session_was_closed,
    after_parking,
    after_handing_back,
    while_the_next_turn_runs,
]


@pytest.mark.parametrize("overtaken", OVERTAKEN, ids=lambda each: each.__name__)
@pytest.mark.parametrize("doing", DOINGS)
def test_a_worker_that_lost_its_turn_changes_nothing(session, overtaken, doing):
    stale = overtaken(session)
    before = everything()
    with pytest.raises(Fenced):
        DOINGS[doing](stale)
    assert everything() == before


@pytest.mark.parametrize("doing", sorted(set(DOINGS) - CHANGES_NOTHING))
def test_the_holder_does_all_of_it(session, doing):
    held = HeldTurn(claimed(session), "first-worker")
    before = everything()
    DOINGS[doing](held)
    assert everything() != before

"""The states: what the documentation draws, what the tables say and what the code does are one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction

from sessions_app.models import Session, Turn
from sessions_app.models.states import NOWHERE, SESSION, TURN, SessionState, Transition, TurnState

from . import test_sessions, test_turns
from .scenes import claimed, finished, held, let_the_lease_run_out, open_session, parked

DOCS = Path(__file__).parent.parent / "docs" / "turns.md"
Arrow = tuple[str, str, str]
"""(state before, state after, verb)"""


# -- what is drawn ---------------------------------------------------------------------------------


def drawn() -> list[set[Arrow]]:
    """The arrows of each diagram, one for each verb; the end of final states is no verb's."""
    text = DOCS.read_text(encoding="utf-8")
    found = []
    for diagram in re.findall(r"```mermaid\nstateDiagram-v2\n(.*?)```", text, re.DOTALL):
        arrows: set[Arrow] = set()
        for line in diagram.strip().splitlines():
            parts = re.fullmatch(r" *(\S+) --> (\S+?)(?:: (.+))?", line)
            assert parts, f"{line!r} is no arrow"
            before, after, verbs = parts.groups()
            if after == "[*]":
                continue
            for verb in verbs.split(", "):
                arrow = (NOWHERE if before == "[*]" else before, after, verb)
                assert arrow not in arrows, f"{arrow} is drawn twice"
                arrows.add(arrow)
        found.append(arrows)
    return found


def told(table: dict[str, Transition], *, changes_only: bool) -> set[Arrow]:
    return {
        (str(before), str(after), verb)
        for verb, transition in table.items()
        for before, after in transition.arrows
        if before != after or not changes_only
    }


def test_the_diagram_of_turns_is_the_table():
    assert drawn()[0] == told(TURN, changes_only=False)


def test_the_diagram_of_sessions_is_the_table():
    assert drawn()[1] == told(SESSION, changes_only=True)


def test_the_states_that_end_in_the_diagram_are_the_final_ones():
    first = DOCS.read_text(encoding="utf-8").partition("```mermaid")[2].partition("```")[0]
    ends = set(re.findall(r"(\w+) --> \[\*\]", first))
    assert ends == {state for state in TurnState.values if not any(
        state in transition.leaves for transition in TURN.values()
    )}  # fmt: skip


# -- what is done ----------------------------------------------------------------------------------


@pytest.mark.django_db
def test_the_arrows_of_turns_are_what_the_code_does(session: Session, alice: Any):
    seen: set[Arrow] = {(NOWHERE, session.turns.get().state, "submit")}

    def see(verb: str, state: str, doing: Callable[[Turn, Any], Any], *, unheld: bool) -> None:
        turn = test_turns.SCENES[state](session)
        if unheld:
            let_the_lease_run_out(turn)
        turn.refresh_from_db()
        doing(turn, alice)
        seen.add((state, Turn.objects.get(pk=turn.pk).state, verb))

    for verb, doing, _ in test_turns.TRANSITIONS:
        for state in test_turns.STATES:
            unheld = doing is test_turns.claim and state == "RUNNING"
            asks_only = doing is test_turns.cancel and state == "RUNNING"
            if not asks_only and (unheld or test_turns.leads(verb, doing, state)):
                with transaction.atomic():
                    see(verb, state, doing, unheld=unheld)
                    transaction.set_rollback(True)
    assert seen == told(TURN, changes_only=False)


def open_turn(session: Session) -> Turn:
    return session.turns.exclude(state__in=["COMPLETED", "FAILED", "CANCELLED"]).get()


def submit(session: Session, alice: Any) -> None:
    session.submit("And this.", author=alice, when_busy="interrupt")


def park(state: str) -> Callable[[Session, Any], Any]:
    return lambda session, alice: parked(claimed(session), state)


def finish(state: str) -> Callable[[Session, Any], Any]:
    return lambda session, alice: finished(claimed(session), state)


def resume(session: Session, alice: Any) -> None:
    turn = open_turn(session)
    with held(turn):
        turn.resume(by="alice")


def cancel(session: Session, alice: Any) -> None:
    open_turn(session).cancel(by=alice)


def cancel_before_another(session: Session, alice: Any) -> None:
    turn = open_turn(session)
    session.submit("And this.", author=alice)
    turn.cancel(by=alice)


def close(state: str) -> Callable[[Session, Any], Any]:
    return lambda session, alice: session.close(state, by=alice)


DOINGS: list[tuple[str, Callable[[Session, Any], Any]]] = [
    ("submit", submit),
    ("park", park("WAITING_FOR_INPUT")),
    ("park", park("WAITING_FOR_PERMISSION")),
    ("resume", resume),
    ("finish", finish("COMPLETED")),
    ("finish", finish("FAILED")),
    ("finish", finish("CANCELLED")),
    ("cancel", cancel),
    ("cancel", cancel_before_another),
    ("close", close("COMPLETED")),
    ("close", close("CANCELLED")),
    ("archive", test_sessions.archive),
    ("unarchive", test_sessions.unarchive),
]


@pytest.mark.django_db
def test_the_arrows_of_sessions_are_what_the_code_does(agent: Any, alice: Any):
    """Every doing in every scene, as far as it is possible there."""
    opened = Session.objects.open(agent=agent, owner=alice)[0]
    seen: set[Arrow] = {(NOWHERE, opened.state, "open")}
    scenes = {**test_sessions.SCENES, **{f"ARCHIVED, {s}": archived(s) for s in RESTS}}
    for scene in scenes:
        for verb, doing in DOINGS:
            with transaction.atomic():
                session = scenes[scene](open_session(agent, alice), alice)
                session = Session.objects.get(pk=session.pk)
                before = session.state
                try:
                    with transaction.atomic():
                        doing(session, alice)
                except REFUSALS:
                    pass
                else:
                    after = Session.objects.get(pk=session.pk).state
                    if before != after:
                        seen.add((before, after, verb))
                transaction.set_rollback(True)
    assert seen == told(SESSION, changes_only=True)


# Not possible, or there is no turn to do it with.
REFUSALS = (test_sessions.NotPossible, Turn.DoesNotExist, AssertionError)
RESTS = ("CREATED", "WAITING_FOR_INPUT, at rest", "FAILED", "COMPLETED", "CANCELLED")


def archived(scene: str) -> Callable[[Session, Any], Session]:
    def make(session: Session, alice: Any) -> Session:
        session = test_sessions.SCENES[scene](session, alice)
        session.archive(by=alice)
        return session

    return make


def test_every_state_of_a_session_is_in_the_table():
    entered = {after for _, after, _ in told(SESSION, changes_only=True)}
    assert entered == set(SessionState.values)

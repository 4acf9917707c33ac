"""The words of the stream: each type's golden file, what is refused, what PostgreSQL gives back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from django.db import transaction
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from sessions_app import events
from sessions_app.events import PAYLOADS, Payload
from sessions_app.models import Session

from .scenes import claimed

GOLDENS = Path(__file__).parent / "goldens" / "events"


def golden(type: str) -> dict[str, Any]:
    return json.loads((GOLDENS / f"{type}.json").read_text())


every_type = pytest.mark.parametrize("type", sorted(PAYLOADS))


# -- goldens -------------------------------------------------------------------------------------


def test_every_event_type_has_a_golden_file_and_no_golden_is_left_over():
    assert {path.name for path in GOLDENS.iterdir()} == {f"{type}.json" for type in PAYLOADS}


@every_type
def test_a_golden_loads_and_dumps_back_identically(type):
    stored = golden(type)
    payload = events.load(type, stored)
    assert payload.type == type
    assert payload.model_dump(mode="json") == stored
    assert json.loads(payload.model_dump_json()) == stored
    assert events.load(type, stored) == payload


@every_type
def test_a_golden_fills_every_field_with_something_of_its_own(type):
    """So that a golden would notice a field that is not stored or not read."""
    payload = events.load(type, golden(type))
    for name, field in type_of(type).model_fields.items():
        if not field.is_required():
            assert getattr(payload, name) != field.get_default(call_default_factory=True), name


def type_of(type: str) -> type[Payload]:
    return PAYLOADS[type]


# -- what is refused -----------------------------------------------------------------------------


@every_type
def test_an_unknown_field_is_refused(type):
    with pytest.raises(ValidationError, match="extra_forbidden"):
        events.load(type, {**golden(type), "surprise": 1})


REQUIRED = [
    (type, name)
    for type, payload in sorted(PAYLOADS.items())
    for name, field in payload.model_fields.items()
    if field.is_required()
]


@pytest.mark.parametrize(("type", "name"), REQUIRED)
def test_a_missing_field_is_refused(type, name):
    stored = golden(type)
    del stored[name]
    with pytest.raises(ValidationError, match="missing"):
        events.load(type, stored)


@every_type
def test_a_payload_does_not_change(type):
    payload = events.load(type, golden(type))
    for name in type_of(type).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(payload, name, getattr(payload, name))


def test_what_lies_inside_a_payload_does_not_change_or_grow_either():
    output = events.ToolCallCompleted(call_id="a", status="failed").output
    with pytest.raises(ValidationError, match="frozen"):
        output.head = "x"
    with pytest.raises(ValidationError, match="extra_forbidden"):
        events.Output.model_validate({"head": "", "surprise": 1})


def test_an_unknown_type_is_no_payload():
    with pytest.raises(KeyError):
        events.load("message.invented", {})


@pytest.mark.parametrize(
    ("type", "change"),
    [
        ("message.created", {"role": "robot"}),
        ("message.created", {"ref": "no spaces"}),
        ("message.created", {"author": "x" * 501}),
        ("message.created", {"text": None}),
        ("tool_call.started", {"kind": "rocket"}),
        ("tool_call.started", {"call_id": ""}),
        ("tool_call.started", {"call_id": "x" * 81}),
        ("tool_call.started", {"arguments": []}),
        ("tool_call.completed", {"status": "maybe"}),
        ("tool_call.completed", {"duration_ms": -1}),
        ("progress.updated", {"fraction": 1.01}),
        ("progress.updated", {"fraction": float("nan")}),
        ("approval_request.resolved", {"outcome": "ignored"}),
        ("artifact.created", {"kind": "secret"}),
        ("artifact.created", {"size": -1}),
        ("turn.queued", {"number": 0}),
        ("turn.started", {"reason": "because"}),
    ],
)
def test_a_value_that_does_not_fit_is_refused(type, change):
    with pytest.raises(ValidationError):
        events.load(type, {**golden(type), **change})


# -- words ---------------------------------------------------------------------------------------


def test_the_kinds_of_tools_are_exactly_the_words_that_gates_match_on():
    assert get_args(events.ToolKind) == (
        "shell", "git", "repository", "file", "network", "browser", "platform", "other",
    )  # fmt: skip


def test_the_types_are_those_that_were_agreed():
    assert set(PAYLOADS) == {
        "message.created",
        "tool_call.started",
        "tool_call.completed",
        "widget.created",
        "widget.updated",
        "widget.answered",
        "approval_request.created",
        "approval_request.resolved",
        "execution_environment.started",
        "execution_environment.stopped",
        "execution_environment.resumed",
        "execution_environment.deleted",
        "execution_environment.failed",
        "artifact.created",
        "progress.updated",
        "usage.recorded",
        "handoff_summary.created",
        "turn.queued",
        "turn.edited",
        "turn.started",
        "turn.completed",
        "turn.failed",
        "turn.cancelled",
        "turn.retried",
        "session.created",
        "session.forked",
        "session.delegated",
        "session.activated",
        "session.waiting_for_input",
        "session.waiting_for_permission",
        "session.completed",
        "session.failed",
        "session.cancelled",
        "session.archived",
        "session.unarchived",
    }


def test_every_payload_class_is_registered_under_its_type():
    concrete = {
        thing
        for thing in vars(events).values()
        if isinstance(thing, type) and issubclass(thing, Payload) and "type" in vars(thing)
    }
    assert set(PAYLOADS.values()) == concrete
    assert all(payload.type == type for type, payload in PAYLOADS.items())


# -- items: which row of the timeline an event belongs to ------------------------------------------


@pytest.mark.parametrize(
    ("group", "item"),
    [
        (["tool_call.started", "tool_call.completed"], "call:trn_1:step-2"),
        (["widget.created", "widget.updated", "widget.answered"], "widget:trn_1:step-3"),
        (["approval_request.created", "approval_request.resolved"], "approval:apr_1"),
        (
            [type for type in PAYLOADS if type.startswith("turn.") and type != "turn.edited"],
            "turn:trn_1",
        ),
        (["progress.updated"], "turn:trn_1"),
    ],
)
def test_events_of_one_thing_share_an_item(group, item):
    assert {events.load(type, golden(type)).item("trn_1") for type in group} == {item}


def test_the_card_of_an_approval_is_the_request_itself():
    card = events.WidgetCreated(widget_id="w", widget="approval", body={"approval_id": "apr_1"})
    request = events.load("approval_request.created", golden("approval_request.created"))
    assert card.item("trn_1") == request.item("trn_1")


def test_an_instruction_and_its_edits_are_one_row():
    said = events.MessageCreated(role="user", text="Do it.", author="alice")
    edited = events.load("turn.edited", golden("turn.edited"))
    assert said.item("trn_1") == edited.item("trn_1") == "instruction:trn_1"


def test_what_comes_back_from_a_delegation_stands_in_its_row():
    given = events.load("session.delegated", golden("session.delegated"))
    came_back = events.load("handoff_summary.created", golden("handoff_summary.created"))
    assert given.item("trn_1") == came_back.item("") == f"child:{given.session_id}"


@pytest.mark.parametrize(
    "type",
    [
        type
        for type in PAYLOADS
        if type.startswith(("message", "session", "artifact")) and type != "session.delegated"
    ],
)
def test_other_events_are_rows_alone(type):
    assert events.load(type, golden(type)).item("trn_1") == ""


# -- what people and programs write can be stored --------------------------------------------------

NASTY = "a\x00b \ud800 \udfff \U0001f600 \u202e \x1b[31m é"
CLEAN = "a\u2400b ? ? \U0001f600 \u202e \x1b[31m é"


def nasty(payload: type[BaseModel]) -> dict[str, Any]:
    """Every free text of a payload filled with what PostgreSQL and UTF-8 cannot hold."""
    filled: dict[str, Any] = {}
    for name, field in payload.model_fields.items():
        if field.annotation is str and any(
            getattr(part, "func", None) is events.storable for part in field.metadata
        ):
            filled[name] = NASTY
    return filled


@pytest.mark.django_db
@every_type
def test_text_that_cannot_be_stored_is_made_storable(session: Session, type):
    payload = events.load(type, {**golden(type), **nasty(type_of(type))})
    for name in nasty(type_of(type)):
        assert getattr(payload, name) == CLEAN
    with transaction.atomic():
        seq = session.record(payload)
    assert session.events.get(seq=seq).payload == payload


@pytest.mark.django_db
def test_nul_and_half_surrogates_are_stored_wherever_they_hide(session: Session):
    payloads = [
        events.ToolCallStarted(
            call_id="a", kind="other", tool="x", title="x",
            arguments={NASTY: [NASTY, {"deep": {NASTY: NASTY}}, 1, None, True]},
        ),
        events.ToolCallCompleted(
            call_id="a", status="failed", output=events.Output(head=NASTY, tail=NASTY, note=NASTY)
        ),
        events.WidgetCreated(widget_id="w", widget="form", body={"fields": [{"label": NASTY}]}),
        events.WidgetAnswered(widget_id="w", by="bob", answer={NASTY: NASTY}),
    ]  # fmt: skip
    with transaction.atomic():
        last = session.record(*payloads)
    stored = session.events.after(last - len(payloads)).order_by("seq")
    assert [event.payload for event in stored] == payloads
    assert payloads[0].arguments == {CLEAN: [CLEAN, {"deep": {CLEAN: CLEAN}}, 1, None, True]}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.text(), st.dictionaries(st.text(), JSON, max_size=4))
def test_any_text_and_any_json_survives_as_json(text, arguments):
    payload = events.ToolCallStarted(
        call_id="a", kind="other", tool="x", title="x", arguments=arguments
    )
    again = events.load(payload.type, json.loads(payload.model_dump_json()))
    assert again.model_dump_json() == payload.model_dump_json()
    message = events.MessageCreated(role="user", text=text)
    assert events.load("message.created", json.loads(message.model_dump_json())) == message


@pytest.mark.django_db
@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan"), 10**400])
def test_numbers_that_json_does_not_know_are_stored_or_refused_never_an_error_later(
    session: Session, number
):
    payload = events.WidgetAnswered(widget_id="w", by="bob", answer={"n": number})
    with transaction.atomic():
        seq = session.record(payload)
    assert isinstance(session.events.get(seq=seq).payload, events.WidgetAnswered)


# -- PostgreSQL gives back what was recorded -------------------------------------------------------


@pytest.mark.django_db
@every_type
def test_a_recorded_payload_is_read_back_as_it_was(session: Session, type):
    turn = claimed(session)
    payload = events.load(type, golden(type))
    with transaction.atomic():
        seq = session.record(payload, turn=turn)
    event = session.events.get(seq=seq)
    assert (event.type, event.data, event.payload) == (type, golden(type), payload)
    assert (event.turn, event.item) == (turn, payload.item(turn.pk))
    assert event.created_at is not None

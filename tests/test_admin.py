"""The admin: everything is there to be looked through, and no fact can be changed there."""

from __future__ import annotations

import html
import re
from decimal import Decimal
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.utils import quote
from django.contrib.auth.models import Permission, User
from django.db.models import Model
from django.test import Client

from sessions_app.models import Agent, AuditHead, Session, Turn

from .conftest import signed_in
from .scenes import claimed, everything, finished, open_session
from .test_access import SECRET, Stage, stage  # noqa: F401

pytestmark = pytest.mark.django_db

MODELS: list[type[Model]] = [
    model
    for app in ("sessions_app", "approvals_app")
    for model in apps.get_app_config(app).get_models()
    # Where the chain ends is nothing to look at.
    if model is not AuditHead
]
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
FACTS = [model for model in MODELS if model is not Agent]
every_fact = pytest.mark.parametrize("model", FACTS, ids=lambda model: model.__name__)


@pytest.fixture
def client(stage: Stage) -> Client:  # noqa: F811
    return signed_in(stage.staff)


def place(model: type[Model]) -> str:
    return f"/admin/{model._meta.app_label}/{model._meta.model_name}/"


def address_of(row: Model, what: str = "change") -> str:
    return f"{place(type(row))}{quote(str(row.pk))}/{what}/"


def page(client: Client, address: str, **query: Any) -> str:
    answer = client.get(address, query)
    assert answer.status_code == 200, f"{address} {query}"
    return answer.content.decode()


def test_every_model_of_ours_is_registered():
    assert set(MODELS) <= set(admin.site._registry)


def test_the_front_page_bears_our_name_and_lists_every_model(client):
    shown = page(client, "/admin/")
    assert "Signalbox" in shown
    for model in MODELS:
        assert f'href="{place(model)}"' in shown


@every_model
def test_the_list_shows_its_rows(client, model):
    shown = page(client, place(model))
    for row in model._default_manager.all():
        assert f'href="{address_of(row)}' in shown


def registered(model: type[Model]) -> admin.ModelAdmin:
    return admin.site._registry[model]


@every_model
def test_the_list_can_be_searched(client, model):
    fields = registered(model).search_fields
    if not fields:
        pytest.fail(f"{model.__name__} cannot be searched")
    for words in (SECRET, "no such thing", "ses_1", "'; --", "\u202e"):
        page(client, place(model), q=words)
    assert " 0 " in page(client, place(model), q="no such thing at all")


@every_model
def test_every_filter_of_the_list_loads_with_every_choice_it_offers(client, model):
    shown = page(client, place(model))
    filters = registered(model).list_filter
    assert filters, f"{model.__name__} cannot be filtered"
    choices = set(re.findall(r'<a href="(\?[^"]+)"', shown))
    assert len(choices) >= len(filters)
    for query in choices:
        page(client, place(model) + query.replace("&amp;", "&"))


@every_model
def test_the_list_can_be_sorted_by_every_column(client, model):
    for column in range(1, len(registered(model).list_display) + 1):
        page(client, place(model), o=column)
        page(client, place(model), o=-column)


@every_model
def test_the_page_of_a_row_and_its_history_load(client, model):
    for row in model._default_manager.all():
        assert str(row)[:20] in page(client, address_of(row))
        page(client, address_of(row, "history"))


@every_model
def test_the_number_of_queries_for_a_list_does_not_grow_with_its_rows(
    client, model, django_assert_max_num_queries
):
    with django_assert_max_num_queries(15):
        page(client, place(model))


# -- facts -----------------------------------------------------------------------------------------


@every_fact
def test_a_fact_cannot_be_added_changed_or_deleted(client, model):
    row = model._default_manager.first()
    assert row is not None
    before = everything()
    assert client.get(f"{place(model)}add/").status_code == 403
    assert client.post(f"{place(model)}add/", {"title": "New"}).status_code == 403
    form = {field.name: "changed" for field in model._meta.fields}
    assert client.post(address_of(row), form).status_code == 403
    assert client.get(address_of(row, "delete")).status_code == 403
    assert client.post(address_of(row, "delete"), {"post": "yes"}).status_code == 403
    many = {"action": "delete_selected", "_selected_action": [row.pk], "post": "yes"}
    client.post(place(model), many)
    assert everything() == before


@every_fact
def test_the_page_of_a_fact_has_no_way_to_save(client, model):
    row = model._default_manager.first()
    shown = page(client, address_of(row))
    assert 'name="_save"' not in shown
    assert "delete_selected" not in page(client, place(model))


# -- agents are configured here --------------------------------------------------------------------


def agent_form(**changes: Any) -> dict[str, Any]:
    return {
        "name": "Mailer",
        "description": "",
        "runner": "runbook",
        "runner_settings": "{}",
        "allowed_commands": '["git status"]',
        "enabled": "on",
        **changes,
    }


def test_an_agent_can_be_made_and_changed(client, bob):
    answer = client.post(f"{place(Agent)}add/", agent_form(members=[bob.pk]))
    assert answer.status_code == 302, answer.content.decode()
    made = Agent.objects.get(name="Mailer")
    assert (made.allowed_commands, made.allow_confined) == (["git status"], False)
    assert list(made.members.all()) == [bob]
    answer = client.post(address_of(made), agent_form(allow_confined="on"))
    assert answer.status_code == 302
    made.refresh_from_db()
    assert made.allow_confined
    assert not made.members.exists()


@pytest.mark.parametrize(
    "changes", [{"name": ""}, {"runner_settings": "{"}, {"allowed_commands": "["}]
)
def test_an_agent_with_a_mistake_is_not_saved_and_the_form_says_so(client, changes):
    before = everything()
    answer = client.post(f"{place(Agent)}add/", agent_form(**changes))
    assert answer.status_code == 200
    assert "errorlist" in answer.content.decode()
    assert everything() == before


def test_an_agent_that_was_used_cannot_be_deleted(client, stage):  # noqa: F811
    agent = stage.session.agent
    client.post(address_of(agent, "delete"), {"post": "yes"})
    assert Agent.objects.filter(pk=agent.pk).exists()


# -- who -------------------------------------------------------------------------------------------


@every_model
def test_an_outsider_is_sent_away(client, charlie, model):
    row = model._default_manager.first()
    for address in (place(model), address_of(row)):
        answer = signed_in(charlie).get(address)
        assert answer.status_code == 302
        assert answer["Location"].startswith("/admin/login/")
        assert SECRET not in answer.content.decode()


def test_staff_without_rights_see_nothing(client):
    helper = User.objects.create_user("helper", is_staff=True)
    for model in MODELS:
        assert signed_in(helper).get(place(model)).status_code == 403


# -- sessions and turns are moved here -------------------------------------------------------------


def act(user: User, model: type[Model], action: str, *rows: Model, reason: str = "") -> str:
    """Tick rows of a list, choose an action, and return the page that follows."""
    form = {"action": action, "_selected_action": [row.pk for row in rows], "reason": reason}
    answer = signed_in(user).post(place(model), form, follow=True)
    return html.unescape(answer.content.decode())


def messages_of(shown: str) -> list[str]:
    return re.findall(r'<li class="(?:success|warning|error)">(.*?)</li>', shown, re.DOTALL)


@pytest.fixture
def resting(agent: Agent, alice: User) -> list[Session]:
    made = []
    for number in range(3):
        session = open_session(agent, alice, f"Session {number}")
        finished(claimed(session))
        made.append(session)
    return made


@pytest.mark.parametrize(
    ("action", "state", "told"),
    [
        ("complete", "COMPLETED", "session.completed"),
        ("cancel", "CANCELLED", "session.cancelled"),
        ("archive", "ARCHIVED", "session.archived"),
    ],
)
def test_sessions_are_moved_from_their_list_in_the_name_of_who_did_it(
    resting, staff, action, state, told
):
    shown = act(staff, Session, action, *resting)
    assert messages_of(shown) == [f"3 {state.lower()}."]
    for session in resting:
        session.refresh_from_db()
        assert session.state == state
        assert session.events.get(type=told).data["by"] == "admin"


def test_sessions_come_back_from_the_archive_by_their_list(resting, staff, alice):
    for session in resting:
        session.archive(by=alice)
    shown = act(staff, Session, "unarchive", *resting)
    assert messages_of(shown) == ["3 unarchived."]
    assert set(Session.objects.values_list("state", flat=True)) == {"WAITING_FOR_INPUT"}
    assert resting[0].events.get(type="session.unarchived").data["by"] == "admin"


def test_a_row_that_cannot_be_moved_is_named_with_the_reason_and_stays(
    resting, agent, alice, staff
):
    busy = open_session(agent, alice, "A <b>busy</b> one")
    claimed(busy)
    shown = act(staff, Session, "archive", *resting, busy)
    assert messages_of(shown) == [
        "3 archived, 1 refused.",
        "“A <b>busy</b> one” was refused: A turn is still open. Stop it, then archive the session.",
    ]
    busy.refresh_from_db()
    assert busy.state == "ACTIVE"
    before = everything()
    assert messages_of(act(staff, Session, "archive", busy))[0] == "0 archived, 1 refused."
    assert everything() == before


def test_markup_in_a_title_is_shown_as_it_is_written(agent, alice, staff):
    busy = open_session(agent, alice, "A <b>busy</b> one")
    form = {"action": "archive", "_selected_action": [busy.pk]}
    raw = signed_in(staff).post(place(Session), form, follow=True).content.decode()
    assert "&lt;b&gt;busy&lt;/b&gt;" in raw
    assert "<b>busy</b>" not in raw


def test_what_ends_something_says_why(resting, agent, alice, staff):
    assert 'name="reason"' in page(signed_in(staff), place(Session))
    act(staff, Session, "cancel", resting[0], reason=" The week is over. ")
    told = resting[0].events.get(type="session.cancelled").data
    assert (told["by"], told["reason"]) == ("admin", "The week is over.")
    session = open_session(agent, alice)
    act(staff, Turn, "cancel", session.turns.get(), reason="Not this one.")
    told = session.events.get(type="turn.cancelled").data
    assert (told["by"], told["reason"]) == ("admin", "Not this one.")


def test_turns_are_cancelled_and_retried_from_their_list(agent, alice, staff):
    session = open_session(agent, alice)
    running = claimed(session)
    queued, _ = session.submit("And this.", author=alice)
    shown = act(staff, Turn, "cancel", running, queued)
    assert messages_of(shown) == ["2 cancelled or asked to end."]
    queued.refresh_from_db()
    running.refresh_from_db()
    assert (queued.state, running.cancel_requested_by) == ("CANCELLED", "admin")

    shown = act(staff, Turn, "retry", queued, running)
    assert messages_of(shown) == [
        "1 submitted again, 1 refused.",
        "Turn 1 of “Just a word.” was refused: "
        "Only a turn that failed or was cancelled can be retried.",
    ]
    again = session.turns.get(number=3)
    assert (again.retry_of, again.author) == (queued, staff)


def test_a_turn_of_a_switched_off_agent_is_not_retried(agent, alice, staff):
    turn = finished(claimed(open_session(agent, alice)), "FAILED")
    Agent.objects.filter(pk=agent.pk).update(enabled=False)
    before = everything()
    assert "switched off" in messages_of(act(staff, Turn, "retry", turn))[1]
    assert everything() == before


def helper(*rights: str) -> User:
    user = User.objects.create_user("helper", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=rights))
    return user


@pytest.mark.parametrize("action", ["complete", "cancel", "archive", "unarchive"])
def test_staff_who_may_only_look_move_no_session(resting, action):
    before = everything()
    looker = helper("view_session")
    assert f'value="{action}"' not in signed_in(looker).get(place(Session)).content.decode()
    act(looker, Session, action, *resting)
    assert everything() == before


@pytest.mark.parametrize("action", ["cancel", "retry"])
def test_staff_who_may_only_look_move_no_turn(agent, alice, action):
    session = open_session(agent, alice)
    failed = finished(claimed(session), "FAILED")
    queued, _ = session.submit("And this.", author=alice)
    before = everything()
    act(helper("view_turn", "change_session"), Turn, action, failed, queued)
    assert everything() == before


def test_staff_who_may_change_sessions_move_them(resting):
    shown = act(helper("view_session", "change_session"), Session, "complete", resting[0])
    assert messages_of(shown) == ["1 completed."]
    assert resting[0].events.get(type="session.completed").data["by"] == "helper"


# -- what was used ---------------------------------------------------------------------------------


def test_what_was_used_is_shown_and_summed_up_on_the_agent(client, stage):  # noqa: F811
    used = {
        "input_tokens": 12_345,
        "output_tokens": 67,
        "cost": Decimal("0.25"),
        "compute_ms": 890,
        "storage_bytes": 1_024,
    }
    Session.objects.filter(pk=stage.session.pk).update(**used)
    Turn.objects.filter(pk=stage.turn.pk).update(**used)
    other = open_session(stage.session.agent, stage.staff)
    Session.objects.filter(pk=other.pk).update(**used)
    for row in (stage.session, stage.turn):
        shown = page(client, address_of(row))
        for name in ("12345", "67", "0.250000", "890", "1024"):
            assert f'<div class="readonly">{name}</div>' in shown
    shown = page(client, address_of(stage.session.agent))
    assert (
        "24,690 input tokens, 134 output tokens, 0.500000 cost in USD, "
        "1,780 milliseconds of steps, 2,048 bytes of artifacts" in shown
    )


def test_the_page_to_add_an_agent_has_nothing_used(client):
    assert "0 input tokens" in page(client, f"{place(Agent)}add/")

"""The admin: everything is there to be looked through, and no fact can be changed there."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.utils import quote
from django.contrib.auth.models import User
from django.db.models import Model
from django.test import Client

from sessions_app.models import Agent

from .conftest import signed_in
from .scenes import everything
from .test_access import SECRET, Stage, stage  # noqa: F401

pytestmark = pytest.mark.django_db

MODELS: list[type[Model]] = [
    model
    for app in ("sessions_app", "approvals_app")
    for model in apps.get_app_config(app).get_models()
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

"""Signing in: by password, by a link that works once, and out again."""

from __future__ import annotations

import io
from datetime import timedelta
from functools import partial

import pytest
import time_machine
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone
from django.utils.http import int_to_base36

from config.sign_in import link_for, tokens

from .conftest import signed_in
from .crowd import errors_in, together

pytestmark = pytest.mark.django_db

COOKIE = django_settings.SESSION_COOKIE_NAME


def path_for(user: User) -> str:
    link = link_for(user, host="127.0.0.1", port=8000)
    assert link.startswith("http://127.0.0.1:8000/sign-in/")
    return link.removeprefix("http://127.0.0.1:8000")


def who(client: Client) -> str:
    """The name of whoever is signed in, as the pages see it."""
    answer = client.get("/")
    if answer.status_code == 302:
        assert answer["Location"].startswith("/sign-in/")
        return ""
    return str(answer.context["user"].username)


def refused(answer: HttpResponse, client: Client) -> bool:
    """Whether a link was refused, with a page that says what to do, and nobody was signed in."""
    assert answer.status_code == 410
    said = answer.content.decode()
    assert "sign_in_link" in said or "/sign-in/" in said, "it says where a fresh one comes from"
    assert COOKIE not in answer.cookies
    return who(client) == ""


# -- by link ---------------------------------------------------------------------------------------


def test_a_link_signs_in_once_and_leads_to_the_first_screen(alice):
    path = path_for(alice)
    first, second = Client(), Client()
    answer = first.get(path)
    assert (answer.status_code, answer["Location"]) == (302, "/")
    assert who(first) == "alice"
    assert refused(second.get(path), second)
    assert who(first) == "alice", "the first use still counts"


def test_a_link_is_not_kept_by_caches(alice):
    answer = Client().get(path_for(alice))
    assert "no-store" in answer["Cache-Control"]
    assert answer.cookies[COOKIE]["httponly"]


def test_using_a_link_ends_every_other_link_of_that_person_and_of_nobody_else(alice, bob):
    mine, also_mine, his = path_for(alice), path_for(alice), path_for(bob)
    Client().get(mine)
    client = Client()
    assert refused(client.get(also_mine), client)
    assert client.get(his).status_code == 302


def test_a_fresh_link_works_after_an_old_one_was_used(alice):
    for _ in range(3):
        alice.refresh_from_db()
        client = Client()
        client.get(path_for(alice))
        assert who(client) == "alice"


@pytest.mark.parametrize("change", ["token", "person", "nobody", "garbage", "long", "nul", "empty"])
def test_a_forged_link_signs_nobody_in(alice, bob, change):
    _, _, user, token, _ = path_for(alice).split("/")
    forged = {
        "token": f"/sign-in/{user}/{token[:-1]}{'0' if token[-1] != '0' else '1'}/",
        "person": f"/sign-in/{int_to_base36(bob.pk)}/{token}/",
        "nobody": f"/sign-in/{int_to_base36(10**9)}/{token}/",
        "garbage": f"/sign-in/!!/{token}/",
        "long": f"/sign-in/{'z' * 13}/{token}/",
        "nul": f"/sign-in/{user}%00/{token}%00/",
        "empty": f"/sign-in/{user}/-/",
    }[change]
    client = Client()
    assert refused(client.get(forged), client)
    assert client.get(path_for(alice)).status_code == 302, "the real one still works"


def test_an_expired_link_signs_nobody_in(alice):
    path = path_for(alice)
    client = Client()
    late = timezone.now() + timedelta(seconds=django_settings.PASSWORD_RESET_TIMEOUT + 60)
    with time_machine.travel(late):
        assert client.get(path).status_code == 410
    assert who(client) == ""


def test_a_link_for_a_person_who_was_switched_off_signs_nobody_in(alice):
    path = path_for(alice)
    User.objects.filter(pk=alice.pk).update(is_active=False)
    client = Client()
    assert refused(client.get(path), client)


def test_a_new_password_ends_a_link(alice):
    path = path_for(alice)
    alice.set_password("another")
    alice.save()
    client = Client()
    assert refused(client.get(path), client)


def test_a_link_is_used_by_looking_only_never_by_a_form(alice):
    path = path_for(alice)
    assert Client().post(path).status_code == 405
    assert Client().get(path).status_code == 302


def test_a_token_for_resetting_a_password_is_no_link(alice):
    from django.contrib.auth.tokens import default_token_generator

    path = f"/sign-in/{int_to_base36(alice.pk)}/{default_token_generator.make_token(alice)}/"
    client = Client()
    assert refused(client.get(path), client)


def test_two_links_of_one_second_are_two_links(alice):
    first = path_for(alice)
    Client().get(first)
    alice.refresh_from_db()
    second = path_for(alice)
    assert first != second
    assert Client().get(second).status_code == 302


@pytest.mark.django_db(transaction=True)
def test_of_eight_uses_at_once_one_signs_in(alice):
    for _ in range(4):
        alice.refresh_from_db()
        path = path_for(alice)
        clients = [Client() for _ in range(8)]
        answers = together(*(partial(client.get, path) for client in clients))
        assert errors_in(answers) == []
        assert sorted(answer.status_code for answer in answers) == [302] + [410] * 7
        assert sorted(map(who, clients)) == [""] * 7 + ["alice"]


def test_a_link_ends_the_session_of_whoever_was_signed_in_before(alice, bob):
    client = signed_in(bob)
    before = client.cookies[COOKIE].value
    client.get(path_for(alice))
    assert who(client) == "alice"
    assert client.cookies[COOKIE].value != before


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "127.0.0.1"),
        ("::1", "[::1]"),
        ("box.example", "box.example"),
    ],
)
def test_a_link_names_an_address_that_a_browser_can_open(alice, host, shown):
    assert link_for(alice, host=host, port=8123).startswith(f"http://{shown}:8123/sign-in/")


def test_the_command_prints_a_link_that_works(alice, settings):
    out = io.StringIO()
    call_command("sign_in_link", "alice", stdout=out)
    start = f":{settings.PORT}"
    client = Client()
    client.get(out.getvalue().strip().partition(start)[2])
    assert who(client) == "alice"


@pytest.mark.parametrize("name", ["nobody", "off"])
def test_the_command_says_so_when_there_is_no_such_person(db, name):
    User.objects.create_user("off", is_active=False)
    with pytest.raises(CommandError, match=f"no active person called '{name}'"):
        call_command("sign_in_link", name)


def test_a_token_says_nothing_to_another_generator(alice):
    assert tokens.check_token(alice, tokens.make_token(alice))
    assert not tokens.check_token(alice, None)


# -- by form ---------------------------------------------------------------------------------------


def test_a_person_signs_in_and_out_by_form(alice):
    client = Client()
    answer = client.get("/")
    assert answer["Location"] == "/sign-in/?next=/"
    assert client.get("/sign-in/").status_code == 200
    answer = client.post("/sign-in/", {"username": "alice", "password": "alice"})
    assert (answer.status_code, answer["Location"]) == (302, "/")
    assert who(client) == "alice"
    answer = client.post("/sign-out/")
    assert (answer.status_code, answer["Location"]) == (302, "/sign-in/")
    assert who(client) == ""


def test_signing_in_leads_to_where_one_wanted_to_go_and_never_to_another_site(alice):
    form = {"username": "alice", "password": "alice"}
    answer = Client().post("/sign-in/", {**form, "next": "/approvals/"})
    assert answer["Location"] == "/approvals/"
    for elsewhere in ("https://evil.example/", "//evil.example/", "javascript:alert(1)"):
        assert Client().post("/sign-in/", {**form, "next": elsewhere})["Location"] == "/"


@pytest.mark.parametrize(
    "form",
    [
        {"username": "alice", "password": "wrong"},
        {"username": "nobody", "password": "alice"},
        {"username": "", "password": ""},
        {"username": "alice\x00", "password": "alice"},
        {"username": "x" * 10_000, "password": "alice"},
        {},
    ],
)
def test_a_wrong_name_or_password_is_told_and_keeps_the_name(alice, form):
    client = Client()
    answer = client.post("/sign-in/", form)
    assert answer.status_code == 200
    if name := form.get("username", "").replace("\x00", ""):
        assert name[:20] in answer.content.decode()
    assert who(client) == ""


def test_signing_out_is_a_form_not_a_look(alice):
    client = signed_in(alice)
    assert client.get("/sign-out/").status_code == 405
    assert who(client) == "alice"


def test_whoever_is_signed_in_already_is_led_past_the_form(alice):
    answer = signed_in(alice).get("/sign-in/")
    assert (answer.status_code, answer["Location"]) == (302, "/")


def test_signing_in_by_form_ends_a_link_too(alice):
    path = path_for(alice)
    Client().post("/sign-in/", {"username": "alice", "password": "alice"})
    client = Client()
    assert refused(client.get(path), client)

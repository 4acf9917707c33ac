"""Sending an instruction over HTTP: what is wrong is said, nothing typed is lost, never a 500."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import Client

from sessions_app.models import Agent, Session, Turn
from sessions_app.runners.runbook.examples import examples

from .conftest import signed_in
from .scenes import asked, claimed, everything, finished, jobs, open_session

pytestmark = pytest.mark.django_db

HTMX = {"HTTP_HX_REQUEST": "true"}


class Composer:
    """One of the two places to write an instruction in, used with or without scripts."""

    def __init__(self, client: Client, address: str, agent: Agent, htmx: bool) -> None:
        self.client = client
        self.address = address
        self.agent = agent
        self.headers = HTMX if htmx else {}

    def send(self, instruction: str, **more: str) -> HttpResponse:
        form = {"agent": self.agent.pk, "instruction": instruction, "submission": "form-1", **more}
        return self.client.post(self.address, form, **self.headers)


@pytest.fixture(params=["a new session", "a session", "a session by htmx"])
def composer(request: Any, agent: Agent, alice: Any) -> Composer:
    client = signed_in(alice)
    if request.param == "a new session":
        return Composer(client, "/sessions/", agent, htmx=False)
    session = open_session(agent, alice, "Earlier.")
    finished(claimed(session))
    htmx = request.param.endswith("htmx")
    return Composer(client, f"/sessions/{session.pk}/turns/", agent, htmx)


def typed(answer: HttpResponse) -> str:
    """What stands in the answer's text box, as a browser would show it."""
    [content] = re.findall(r"<textarea[^>]*name=\"instruction\"[^>]*>(.*?)</textarea>",
                           answer.content.decode(), re.DOTALL)  # fmt: skip
    return html.unescape(content.removeprefix("\n"))


def problems(answer: HttpResponse) -> str:
    [content] = re.findall(r'<ul id="problems".*?</ul>', answer.content.decode(), re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", content)).split())


def was_refused(answer: HttpResponse, instruction: str, status: int = 422) -> str:
    """Assert that it was refused with everything typed still there; return what is said of it."""
    assert answer.status_code == status
    assert typed(answer) == instruction
    return problems(answer)


# -- what is wrong ---------------------------------------------------------------------------------

SCRIPT = '</textarea><script>alert("x")</script>'

WRONG = {
    "empty": ("", "Line 1 Write something first"),
    "blank": (" \n\t\n ", "Line 1 Write something first"),
    "1 MB": ("x" * 1_000_000, "at most 100,000"),
    "1 MB of lines": ("a line\n" * 150_000, "at most 100,000"),
    "an unknown option": ("Look:\n\n```sh colour=red\nls\n```\n", "Line 3"),
    "no such gate": ("```sh gate=allow\nls\n```\n", "Line 1"),
    "a name twice": ("```sh name=a\nls\n```\n\n```sh name=a\nls\n```\n", "Line 5"),
    "an empty block": ("\n```sh\n```\n", "Line 2"),
    "never closed": ("text\n\n```sh\nls\n", "Line 3"),
    "reserved": ("```choice\n- a\n```\n", "not available yet"),
    "broken YAML": ("```form\na: [\n```\n", "Line 3 Broken YAML"),
    "markup": (f"{SCRIPT}\n\n```sh x={SCRIPT}\nls\n```\n", "Line 3"),
    "right to left": ("\u202eabc\n\n```sh x=y\nls\n```\n", "Line 3"),
    "leading newlines": ("\n\n\n```sh x=y\nls\n```\n", "Line 4"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_and_nothing_typed_is_lost(composer, name):
    instruction, said = WRONG[name]
    before = everything()
    answer = composer.send(instruction)
    assert said in was_refused(answer, instruction)
    assert "<script>alert" not in answer.content.decode()
    assert everything() == before


def test_every_mistake_is_said_at_once(composer):
    instruction = "```sh a=1\nls\n```\n\n```sh b=2\nls\n```\n\n```form\na: [\n```\n"
    said = was_refused(composer.send(instruction), instruction)
    assert [int(line) for line in re.findall(r"Line (\d+)", said)] == [1, 5, 9, 11]


def test_after_a_mistake_the_corrected_form_is_accepted(composer):
    answer = composer.send("```sh a=1\nls\n```\n")
    # The page has other forms with keys of their own.
    form = answer.content.decode().partition('id="composer"')[2].partition("</form>")[0]
    [key] = re.findall(r'name="submission" value="(\w+)"', form)
    count = Turn.objects.count()
    answer = composer.send("```sh\nls\n```\n", submission=key)
    assert answer.status_code in {200, 302}
    assert Turn.objects.count() == count + 1


def test_an_instruction_is_kept_exactly_as_it_was_written(composer):
    instruction = "Grüße 😀 \u202e\x1b[31m <b>&amp;</b>\n\n  indented\n\ttab \n\n"
    assert composer.send(instruction).status_code in {200, 302}
    assert Turn.objects.order_by("created_at").last().instruction == instruction


def test_browsers_line_ends_are_lines(composer):
    """Forms send CR LF; a step with a carriage return at the end of each line would not run."""
    assert composer.send("Look:\r\n\r\n```sh\r\nls\r\n```\r\n").status_code in {200, 302}
    assert "\r" not in Turn.objects.order_by("created_at").last().instruction


@pytest.mark.parametrize("instruction", ["a\x00b", "\x00", "```sh\nls \x00\n```\n", "# \x00\n\nx"])
def test_a_nul_is_no_error_of_the_server(composer, instruction):
    assert composer.send(instruction).status_code in {200, 302}
    kept = Turn.objects.order_by("created_at").last().instruction
    assert kept == instruction.replace("\x00", "\N{SYMBOL FOR NULL}"), "it is seen, not dropped"


def test_a_form_beyond_all_measure_is_refused_and_changes_nothing(composer):
    before = everything()
    assert composer.send("x" * 5_000_000).status_code in {400, 413}
    assert everything() == before


def test_bytes_that_are_no_text_are_no_error_of_the_server(composer):
    body = b"submission=form-1&agent=%FF&instruction=%FF%FE%C3"
    answer = composer.client.post(
        composer.address, body, content_type="application/x-www-form-urlencoded"
    )
    assert answer.status_code in {200, 302, 422}


@pytest.mark.parametrize("method", ["get", "put", "patch", "delete"])
def test_only_a_form_submits(composer, method):
    before = everything()
    answer = getattr(composer.client, method)(composer.address)
    # A browser that reloads the address of a refused form is led back to its page.
    assert answer.status_code == (302 if method == "get" else 405)
    assert everything() == before


# -- the same form twice ---------------------------------------------------------------------------


def test_the_same_form_twice_is_one(composer):
    first = composer.send("Look at it.")
    before = everything()
    second = composer.send("Look at it.")
    assert (first.status_code, first.get("Location")) == (
        second.status_code,
        second.get("Location"),
    )
    assert everything() == before


def test_the_same_form_with_another_text_is_a_conflict_that_loses_nothing(composer):
    composer.send("Look at it.")
    before = everything()
    said = was_refused(composer.send("Look at that."), "Look at that.", status=409)
    assert "sent before with another instruction" in said
    assert everything() == before


def test_a_form_without_a_key_is_accepted_each_time(composer):
    count = Turn.objects.count()
    for _ in range(2):
        assert composer.send("Look at it.", submission="").status_code in {200, 302}
    assert Turn.objects.count() == count + 2


def test_a_key_of_any_length_is_accepted(composer):
    for key in ("x" * 64, "x" * 10_000, "😀\u202e"):
        assert composer.send("Look at it.", submission=key).status_code in {200, 302}


# -- answers ---------------------------------------------------------------------------------------


def test_a_new_session_leads_to_its_page(agent, alice):
    answer = signed_in(alice).post("/sessions/", {"agent": agent.pk, "instruction": "Look."})
    session = Session.objects.get()
    assert (answer.status_code, answer["Location"]) == (302, f"/sessions/{session.pk}/")
    page = signed_in(alice).get(answer["Location"])
    assert page.status_code == 200
    assert jobs(session) == 1


def test_a_turn_sent_by_htmx_is_answered_with_a_fresh_composer(agent, alice):
    session = open_session(agent, alice)
    answer = signed_in(alice).post(
        f"/sessions/{session.pk}/turns/", {"instruction": "And this.", "submission": "k"}, **HTMX
    )
    assert answer.status_code == 200
    assert typed(answer) == ""
    assert 'value="k"' not in answer.content.decode(), "the next form is another one"
    assert "<html" not in answer.content.decode()


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.slug)
def test_an_example_starts_with_one_click(agent, alice, example):
    client = signed_in(alice)
    assert example.title in html.unescape(client.get("/").content.decode())
    answer = client.post("/sessions/", {"agent": agent.pk, "example": example.slug})
    assert answer.status_code == 302
    assert Turn.objects.get().instruction == example.source


def test_an_example_that_is_not_there_is_an_empty_instruction(agent, alice):
    answer = signed_in(alice).post("/sessions/", {"agent": agent.pk, "example": "no-such"})
    assert answer.status_code == 422


@pytest.mark.parametrize("given", ["", "agt_gone", "x" * 5000, None])
def test_an_agent_that_is_not_there_or_not_yours_is_said_and_loses_nothing(agent, alice, given):
    form = {"instruction": "Look at it."} | ({} if given is None else {"agent": given})
    answer = signed_in(alice).post("/sessions/", form)
    assert "Choose an agent" in was_refused(answer, "Look at it.")


def test_a_disabled_agent_opens_no_session(agent, alice):
    Agent.objects.create(name="Other").members.add(alice)
    Agent.objects.filter(pk=agent.pk).update(enabled=False)
    answer = signed_in(alice).post("/sessions/", {"agent": agent.pk, "instruction": "Look."})
    assert "Choose an agent" in was_refused(answer, "Look.")


@pytest.mark.parametrize("headers", [{}, HTMX])
def test_an_archived_session_takes_no_turn_and_loses_nothing(agent, alice, headers):
    session = open_session(agent, alice)
    finished(claimed(session))
    session.archive(by=alice)
    before = everything()
    answer = signed_in(alice).post(
        f"/sessions/{session.pk}/turns/", {"instruction": "And this."}, **headers
    )
    assert "archived" in was_refused(answer, "And this.", status=409)
    assert everything() == before


# -- stopping and deciding -------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, HTMX])
def test_stopping_a_turn_that_has_ended_says_so(agent, alice, headers):
    session = open_session(agent, alice)
    turn = finished(claimed(session))
    before = everything()
    answer = signed_in(alice).post(f"/turns/{turn.pk}/cancellation/", **headers)
    assert answer.status_code == 409
    assert "completed already" in answer.content.decode()
    assert everything() == before


@pytest.mark.parametrize("headers", [{}, HTMX])
def test_a_queued_turn_is_withdrawn(agent, alice, headers):
    session = open_session(agent, alice)
    answer = signed_in(alice).post(
        f"/turns/{session.turns.get().pk}/cancellation/", {"reason": "Not\x00now."}, **headers
    )
    assert answer.status_code == (204 if headers else 302)
    assert session.turns.get().state == "CANCELLED"


@pytest.mark.parametrize("headers", [{}, HTMX])
@pytest.mark.parametrize("reason", ["Not on a Friday.", "", "x" * 10_000, "\x00", "😀<b>"])
def test_a_rejection_by_form_says_who_and_why(agent, alice, bob, headers, reason):
    request = asked(open_session(agent, alice))
    form = {
        "verdict": "reject",
        "digest": request.digest,
        "reason": reason,
    }
    answer = signed_in(bob).post(f"/approvals/{request.pk}/decision/", form, **headers)
    assert answer.status_code == (200 if headers else 302)
    request.refresh_from_db()
    assert (request.state, request.resolved_by) == ("REJECTED", "bob")
    if headers:
        assert "bob" in answer.content.decode()


@pytest.mark.parametrize("headers", [{}, HTMX])
def test_a_decision_on_a_decided_card_shows_the_card_and_who_decided(agent, alice, bob, headers):
    request = asked(open_session(agent, alice))
    address = f"/approvals/{request.pk}/decision/"
    form = {"verdict": "reject", "digest": request.digest, "reason": "Not on a Friday."}
    signed_in(bob).post(address, form)
    before = everything()
    answer = signed_in(alice).post(address, {**form, "verdict": "approve"}, **headers)
    assert answer.status_code == 409
    shown = html.unescape(answer.content.decode())
    assert "rejected already by bob: Not on a Friday." in shown
    assert everything() == before


@pytest.mark.parametrize("headers", [{}, HTMX])
@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"verdict": ""}, 400),
        ({"verdict": "maybe"}, 400),
        ({"verdict": "\x00"}, 400),
        ({"digest": ""}, 409),
        ({"digest": "0" * 64}, 409),
        ({"digest": "\x00"}, 400),
        ({"digest": "x" * 10_000}, 409),
    ],
)
def test_a_decision_that_makes_no_sense_is_refused(agent, alice, bob, change, status, headers):
    request = asked(open_session(agent, alice))
    form = {"verdict": "approve", "digest": request.digest, **change}
    before = everything()
    answer = signed_in(bob).post(f"/approvals/{request.pk}/decision/", form, **headers)
    assert answer.status_code == status
    assert everything() == before


# -- addresses that make no sense ------------------------------------------------------------------

ODD = ["%ff", "..%2f..", "%27;--", "%F0%9F%98%80", "x" * 2000, "%20", "1e9", "%00", "ses_%00"]


@pytest.mark.parametrize("odd", ODD)
def test_an_address_that_leads_nowhere_is_a_404(alice, odd):
    client = signed_in(alice)
    status = 400 if "%00" in odd else 404
    for address in (
        f"/sessions/{odd}/",
        f"/sessions/{odd}/events/?before=1",
        f"/sessions/{odd}/raw/",
        f"/sessions/{odd}/diagrams/1.svg",
        f"/artifacts/{odd}/",
        f"/artifacts/{odd}/content/",
        f"/approvals/{odd}/",
    ):
        assert client.get(address).status_code == status, address
    for address in (
        f"/sessions/{odd}/turns/",
        f"/turns/{odd}/cancellation/",
        f"/approvals/{odd}/decision/",
    ):
        assert client.post(address, {"instruction": "x"}).status_code == status, address


NUMBERS = ["", "-1", "x", "1.5", "%00", "١٢", "9" * 18, "9" * 19, "9" * 400, "0"]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_cursor_that_makes_no_sense_is_said_or_is_the_beginning(agent, alice, number):
    session = open_session(agent, alice)
    client = signed_in(alice)
    for headers in ({}, HTMX):
        answer = client.get(f"/sessions/{session.pk}/events/?before={number}", **headers)
        fits = number.isascii() and number.isdigit() and len(number) < 19
        assert answer.status_code == (200 if fits else 400)
        assert client.get(f"/sessions/{session.pk}/raw/?after={number}").status_code == 200
    assert client.get(f"/sessions/{session.pk}/diagrams/{'9' * 30}.svg").status_code == 404


@pytest.mark.parametrize("query", ["%ff", "%", "_", "'", "x" * 5000, "%F0%9F%98%80"])
def test_a_search_for_anything_finds_something_or_nothing(agent, alice, query):
    open_session(agent, alice)
    client = signed_in(alice)
    for address in (
        f"/?q={query}",
        f"/rail/?q={query}&current={query}",
        f"/?archived&q={query}",
        f"/approvals/?view={query}",
    ):
        assert client.get(address).status_code == 200, address


@pytest.mark.parametrize("address", ["/?q=%00", "/rail/?q=a%00b", "/?archived&q=%00"])
def test_a_search_for_what_cannot_be_stored_is_refused_and_says_why(agent, alice, address):
    for headers in ({}, HTMX):
        answer = signed_in(alice).get(address, **headers)
        assert answer.status_code == 400
        assert "cannot be stored" in answer.content.decode()


@pytest.mark.parametrize("field", ["agent", "submission"])
def test_a_form_whose_hidden_fields_hold_a_nul_is_refused(agent, alice, field):
    before = everything()
    form = {"agent": agent.pk, "instruction": "Look.", field: "\x00"}
    assert signed_in(alice).post("/sessions/", form).status_code == 400
    assert everything() == before


def test_a_search_finds_by_title_and_by_agent(agent, alice):
    open_session(agent, alice, "Water the plants")
    client = signed_in(alice)
    assert "Water the plants" in client.get("/rail/?q=PLANTS").content.decode()
    assert "Water the plants" in client.get("/rail/?q=runb").content.decode()
    assert "Water the plants" not in client.get("/rail/?q=100%25").content.decode()


# -- agents that cannot take work ------------------------------------------------------------------


def test_a_switched_off_agent_takes_no_turn_and_says_so(agent, alice):
    session = open_session(agent, alice)
    Agent.objects.filter(pk=agent.pk).update(enabled=False)
    before = everything()
    answer = signed_in(alice).post(f"/sessions/{session.pk}/turns/", {"instruction": "Go on."})
    assert answer.status_code == 403
    assert "switched off" in answer.content.decode()
    assert "Go on." in answer.content.decode()
    assert everything() == before


def test_an_owner_who_is_no_member_any_more_reads_but_does_not_go_on(agent, alice):
    session = open_session(agent, alice)
    agent.members.remove(alice)
    client = signed_in(alice)
    assert client.get(f"/sessions/{session.pk}/").status_code == 200
    answer = client.post(f"/sessions/{session.pk}/turns/", {"instruction": "Go on."})
    assert answer.status_code == 403
    assert "no member" in answer.content.decode()
    assert session.turns.count() == 1


def test_an_agent_whose_runner_is_unknown_says_so_instead_of_failing(agent, alice):
    Agent.objects.filter(pk=agent.pk).update(runner="modell")
    answer = signed_in(alice).post("/sessions/", {"agent": agent.pk, "instruction": "Hello."})
    assert answer.status_code == 422
    assert "No runner of kind" in answer.content.decode()
    assert Session.objects.count() == 0


# -- closing and keeping, by form ------------------------------------------------------------------


def test_a_session_is_completed_archived_and_brought_back_by_form(agent, alice):
    session = open_session(agent, alice)
    client = signed_in(alice)
    states = []
    for verb in ("completion", "archival", "restoration"):
        assert client.post(f"/sessions/{session.pk}/{verb}/").status_code == 302
        session.refresh_from_db()
        states.append(session.state)
    assert states == ["COMPLETED", "ARCHIVED", "COMPLETED"]


@pytest.mark.parametrize("verb", ["archival", "restoration"])
def test_what_is_not_possible_is_refused_with_a_reason_and_changes_nothing(agent, alice, verb):
    session = open_session(agent, alice)
    before = everything()
    answer = signed_in(alice).post(f"/sessions/{session.pk}/{verb}/")
    assert answer.status_code == 409
    assert everything() == before


def test_a_failed_turn_is_retried_by_form(agent, alice):
    session = open_session(agent, alice)
    turn = finished(claimed(session), "FAILED")
    assert signed_in(alice).post(f"/turns/{turn.pk}/retry/").status_code == 302
    assert session.turns.get(number=2).retry_of_id == turn.pk
    assert (
        signed_in(alice).post(f"/turns/{session.turns.get(number=2).pk}/retry/").status_code == 409
    )

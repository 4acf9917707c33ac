"""Who may see and do what: an outsider and a visitor at every address there is."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.apps import apps
from django.contrib.admin.utils import quote
from django.contrib.auth.models import AnonymousUser, User
from django.db import transaction
from django.http import HttpResponse
from django.test import AsyncClient, Client
from django.urls import URLPattern, URLResolver, get_resolver

from approvals_app.models import ApprovalRequest, Decision
from config.sign_in import link_for
from sessions_app import events
from sessions_app.forking import fork
from sessions_app.models import Agent, Artifact, ExecutionEnvironment, Session, Turn
from sessions_app.models.artifact import store

from .conftest import signed_in
from .scenes import action, asked, everything, finished, held, open_session
from .scenes import claimed as claim

pytestmark = pytest.mark.django_db

SECRET = "zanzibar"


# -- the stage: one of everything, each with a word that nobody else may read ----------------------


@dataclass
class Stage:
    session: Session
    turn: Turn
    queued: Turn
    approval: ApprovalRequest
    artifact: Artifact
    environment: ExecutionEnvironment
    diagram: int
    staff: User
    done: Turn
    fork: Session


@pytest.fixture
def stage(agent: Agent, alice: User, staff: User) -> Stage:
    Agent.objects.filter(pk=agent.pk).update(name=f"{SECRET} agent", description=SECRET)
    agent.refresh_from_db()
    session = open_session(agent, alice, f"# {SECRET} first")
    turn = claim(session)
    with held(turn) as locked:
        diagram = locked.record(
            events.WidgetCreated(
                widget_id="w", widget="diagram", title=SECRET,
                body={"source": f"flowchart LR\n  {SECRET} --> B\n"},
            ),
            turn=turn,
        )  # fmt: skip
        sha256, size = store(io.BytesIO(SECRET.encode()))
        artifact = Artifact.objects.create(
            session=session, turn=turn, kind="file", name=f"{SECRET}.txt",
            media_type="text/plain", size=size, sha256=sha256,
        )  # fmt: skip
        locked.record(artifact.created_event(), turn=turn)
        environment = ExecutionEnvironment.objects.create(
            session=session, provider="local", state="ACTIVE", detail=SECRET
        )
    finished(turn)
    forked = fork(turn, by=alice)
    session.submit(f"{SECRET} second", author=alice)
    approval = asked(session, action(f"echo {SECRET}"), title=f"{SECRET} step")
    queued, _ = session.submit(f"{SECRET} third", author=alice)
    with transaction.atomic():
        Decision.objects.add(
            request=approval, by=alice, verdict="approve", reason=SECRET, digest=approval.digest
        )
    session.refresh_from_db()
    waiting = Turn.objects.get(pk=approval.turn_id)
    return Stage(
        session, waiting, queued, approval, artifact, environment, diagram, staff, turn, forked
    )


# -- the addresses -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One address: where it leads on the stage, and what a signed-in outsider gets there."""

    path: Callable[[Stage], str]
    outsider: int = 404
    data: Callable[[Stage], dict[str, str]] = lambda stage: {}
    public: bool = False
    anonymous: int = 302
    methods: str = "GET"


TABLE: dict[str, Row] = {
    "": Row(lambda s: "/", outsider=200),
    "rail/": Row(lambda s: f"/rail/?current={s.session.pk}&q={SECRET[:4]}", outsider=200),
    "sessions/": Row(
        lambda s: "/sessions/",
        outsider=422,
        data=lambda s: {"agent": s.session.agent_id, "instruction": "Let me in."},
        methods="POST",
    ),
    "sessions/<str:session_id>/": Row(lambda s: f"/sessions/{s.session.pk}/"),
    "sessions/<str:session_id>/events/": Row(
        lambda s: f"/sessions/{s.session.pk}/events/?before=100"
    ),
    "sessions/<str:session_id>/raw/": Row(lambda s: f"/sessions/{s.session.pk}/raw/"),
    "sessions/<str:session_id>/turns/": Row(
        lambda s: f"/sessions/{s.session.pk}/turns/",
        data=lambda s: {"instruction": "Let me in."},
        methods="POST",
    ),
    "sessions/<str:session_id>/diagrams/<int:seq>.svg": Row(
        lambda s: f"/sessions/{s.session.pk}/diagrams/{s.diagram}.svg"
    ),
    **{
        f"sessions/<str:session_id>/{verb}/": Row(
            lambda s, verb=verb: f"/sessions/{s.session.pk}/{verb}/", methods="POST"
        )
        for verb in ("completion", "cancellation", "archival", "restoration")
    },
    "sessions/<str:session_id>/inherited/": Row(
        lambda s: f"/sessions/{s.fork.pk}/inherited/?before=100"
    ),
    "sessions/<str:session_id>/lineage/": Row(lambda s: f"/sessions/{s.session.pk}/lineage/"),
    "sessions/<str:session_id>/delegations/": Row(
        lambda s: f"/sessions/{s.session.pk}/delegations/",
        data=lambda s: {"agent": s.session.agent_id, "delegated": "Let me in."},
        methods="POST",
    ),
    "turns/<str:turn_id>/fork/": Row(lambda s: f"/turns/{s.done.pk}/fork/", methods="POST"),
    "sessions/<str:session_id>/holder/": Row(lambda s: f"/sessions/{s.session.pk}/holder/"),
    "turns/<str:turn_id>/editor/": Row(lambda s: f"/turns/{s.queued.pk}/editor/"),
    "turns/<str:turn_id>/instruction/": Row(
        lambda s: f"/turns/{s.queued.pk}/instruction/",
        data=lambda s: {"instruction": "Let me in."},
        methods="POST",
    ),
    "turns/<str:turn_id>/retry/": Row(lambda s: f"/turns/{s.queued.pk}/retry/", methods="POST"),
    "turns/<str:turn_id>/cancellation/": Row(
        lambda s: f"/turns/{s.queued.pk}/cancellation/", methods="POST"
    ),
    "artifacts/<str:artifact_id>/": Row(lambda s: f"/artifacts/{s.artifact.pk}/"),
    "artifacts/<str:artifact_id>/content/": Row(lambda s: f"/artifacts/{s.artifact.pk}/content/"),
    "approvals/": Row(lambda s: "/approvals/?view=pending", outsider=200),
    "approvals/decisions/": Row(
        lambda s: "/approvals/decisions/",
        data=lambda s: {"verdict": "approve", "ticked": f"{s.approval.pk}:{s.approval.digest}"},
        methods="POST",
        outsider=200,
    ),
    "approvals/decisions.csv": Row(lambda s: "/approvals/decisions.csv", outsider=200),
    "approvals/decisions.jsonl": Row(lambda s: "/approvals/decisions.jsonl", outsider=200),
    "approvals/<str:approval_id>/": Row(lambda s: f"/approvals/{s.approval.pk}/"),
    "approvals/<str:approval_id>/decision/": Row(
        lambda s: f"/approvals/{s.approval.pk}/decision/",
        data=lambda s: {"verdict": "approve", "digest": s.approval.digest},
        methods="POST",
    ),
    "healthz": Row(lambda s: "/healthz", outsider=200, anonymous=200, public=True),
    "readyz": Row(lambda s: "/readyz", outsider=503, anonymous=503, public=True),
    "metrics": Row(lambda s: "/metrics", outsider=403, anonymous=401, public=True),
    "favicon.ico": Row(lambda s: "/favicon.ico", outsider=302, public=True),
    "sign-in/": Row(lambda s: "/sign-in/", outsider=302, anonymous=200, public=True),
    "sign-in/<str:user>/<str:token>/": Row(
        lambda s: "/sign-in/1/forged-token/", outsider=410, anonymous=410, public=True
    ),
    "sign-out/": Row(lambda s: "/sign-out/", outsider=302, methods="POST", public=True),
}


def walk(patterns: list[Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield (route, name) of every address that the resolver knows."""
    for pattern in patterns:
        route = before + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from walk(pattern.url_patterns, route)
        else:
            assert isinstance(pattern, URLPattern)
            yield route, pattern.name or ""


ROUTES = dict(walk(get_resolver().url_patterns))
ADMIN = sorted(route for route in ROUTES if route.startswith("admin/"))


def test_every_address_is_in_the_table():
    """Whoever adds an address says here what an outsider gets there."""
    assert {route for route in ROUTES if not route.startswith("admin/")} == set(TABLE)


def admin_path(route: str, stage: Stage) -> str:
    """An admin address, with the primary key of a row that is there."""
    model = MODELS.get("/".join(route.split("/")[:3]))
    found = model._default_manager.first() if model else None
    key = quote(str(found.pk)) if found else "1"
    path = re.sub(r"<path:object_id>|<id>|<int:content_type_id>", key, route)
    path = re.sub(r"\(\?P<app_label>[^)]*\)", "sessions_app", path)
    path = re.sub(r"\(\?P<url>[^)]*\)", "anything", path)
    return "/" + path.replace("^", "").replace("$", "")


MODELS = {
    f"admin/{model._meta.app_label}/{model._meta.model_name}": model for model in apps.get_models()
}


def body(answer: HttpResponse) -> str:
    headers = " ".join(f"{name}: {value}" for name, value in answer.items())
    # What a stream of decisions tells to whom is asked beside it, by somebody who can await it.
    return headers if answer.streaming else headers + answer.content.decode()


METHODS = ["get", "post", "put"]
HTMX = [{}, {"HTTP_HX_REQUEST": "true"}]


@pytest.mark.parametrize("route", TABLE)
def test_an_outsider_is_refused_at_every_address_and_learns_nothing(stage, charlie, route):
    row = TABLE[route]
    before = everything()
    for method in METHODS:
        client = signed_in(charlie)
        for headers in HTMX:
            answer = getattr(client, method)(row.path(stage), row.data(stage), **headers)
            expected = row.outsider if method.upper() in row.methods else None
            if method == "get" and row.methods == "POST":
                # A form's address leads back to its page, and there the outsider is refused.
                expected = 405 if row.public else 302
            if expected is not None:
                assert answer.status_code == expected, (method, headers)
            assert answer.status_code < 500 or answer.status_code == expected
            assert SECRET not in body(answer), (method, headers)
    assert everything() == before


@pytest.mark.parametrize("route", TABLE)
def test_a_visitor_who_is_not_signed_in_is_sent_to_the_sign_in_page(stage, route):
    row = TABLE[route]
    before = everything()
    for method in METHODS:
        for headers in HTMX:
            answer = getattr(Client(), method)(row.path(stage), row.data(stage), **headers)
            if method.upper() in row.methods:
                assert answer.status_code == row.anonymous
            if answer.status_code == 302:
                assert answer["Location"].startswith(("/sign-in/", "/static/"))
            elif not row.public:
                assert answer.status_code in {403, 404, 405}
            assert SECRET not in body(answer)
    assert everything() == before


def test_only_staff_get_into_the_admin(stage, charlie):
    before = everything(), User.objects.count()
    outsider = signed_in(charlie)
    for route in ADMIN:
        path = admin_path(route, stage)
        if "logout" in path:
            continue
        for client, method in ((Client(), "get"), (outsider, "get"), (outsider, "post")):
            answer = getattr(client, method)(path, {"post": "yes", "action": "delete_selected"})
            assert answer.status_code in {200, 302, 403, 404, 405}, path
            if answer.status_code == 200:
                assert route == "admin/login/", "only its own sign-in page is shown"
            if answer.status_code == 302:
                target = answer["Location"]
                assert target.startswith(("/admin/login/", "/sign-in/", "/admin/")), target
            assert SECRET not in body(answer)
    assert (everything(), User.objects.count()) == before


def test_an_inactive_person_is_signed_out_by_being_switched_off(stage, alice):
    client = signed_in(alice)
    assert client.get(f"/sessions/{stage.session.pk}/").status_code == 200
    User.objects.filter(pk=alice.pk).update(is_active=False)
    assert client.get(f"/sessions/{stage.session.pk}/").status_code == 302


def test_a_member_who_leaves_loses_sight_with_the_next_request(stage, agent, bob):
    client = signed_in(bob)
    assert client.get(f"/approvals/{stage.approval.pk}/").status_code == 200
    agent.members.remove(bob)
    assert client.get(f"/approvals/{stage.approval.pk}/").status_code == 404


def test_an_owner_who_is_no_member_sees_but_does_not_decide(stage, agent, alice):
    agent.members.remove(alice)
    client = signed_in(alice)
    assert client.get(f"/sessions/{stage.session.pk}/").status_code == 200
    assert client.get(f"/approvals/{stage.approval.pk}/").status_code == 200
    form = {"verdict": "approve", "digest": stage.approval.digest}
    before = everything()
    for headers in HTMX:
        answer = client.post(f"/approvals/{stage.approval.pk}/decision/", form, **headers)
        assert answer.status_code == 403
    assert everything() == before


# -- forms from elsewhere ------------------------------------------------------------------------


@pytest.mark.parametrize("route", [route for route, row in TABLE.items() if row.methods == "POST"])
def test_a_form_from_another_site_is_refused(stage, alice, route):
    row = TABLE[route]
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice)
    before = everything()
    answer = client.post(row.path(stage), row.data(stage))
    assert answer.status_code == 403
    assert everything() == before


# -- looking changes nothing -----------------------------------------------------------------------


def counts() -> dict[str, int]:
    return {
        model._meta.label: model._default_manager.count()
        for model in apps.get_models(include_auto_created=True)
        if model._meta.app_label != "procrastinate"
    }


GETS = [route for route, row in TABLE.items() if row.methods == "GET" and not row.public]


@pytest.mark.parametrize("route", GETS)
def test_looking_changes_nothing(stage, alice, route):
    client = signed_in(alice)
    before = everything(), counts()
    for headers in HTMX:
        if route.endswith(("/content/", "decisions.csv", "decisions.jsonl")):
            continue  # asynchronous answers; see below, and the tests of exporting
        answer = client.get(TABLE[route].path(stage), **headers)
        assert answer.status_code == 200
        shown = SECRET in body(answer)
        assert shown or route.endswith((".svg", "/holder/")), "alice sees what is hers"
    assert (everything(), counts()) == before
    stage.session.refresh_from_db()
    assert stage.session.last_seq == before[0]["sessions_app.Session"][0]["last_seq"]


def test_a_download_changes_nothing_and_is_never_shown_by_the_browser(stage, alice):
    before = everything()

    async def download() -> tuple[Any, bytes]:
        client = AsyncClient()
        await client.aforce_login(alice)
        answer = await client.get(f"/artifacts/{stage.artifact.pk}/content/")
        return answer, b"".join([chunk async for chunk in answer.streaming_content])

    answer, content = async_to_sync(download)()
    assert content == SECRET.encode()
    assert answer["Content-Disposition"] == f'attachment; filename="{SECRET}.txt"'
    assert answer["Content-Type"] == "application/octet-stream"
    assert "sandbox" in answer["Content-Security-Policy"]
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert everything() == before


def test_looking_at_the_admin_changes_nothing(stage):
    client = signed_in(stage.staff)
    before = everything(), counts()
    for route in ADMIN:
        answer = client.get(admin_path(route, stage))
        assert answer.status_code in {200, 302, 403, 404, 405}, route
    assert (everything(), counts()) == before


def test_a_look_by_any_other_method_than_the_addresses_own_is_refused(stage, alice):
    for row in TABLE.values():
        if row.public:
            continue
        for method in {"GET": ["post", "put", "delete"], "POST": ["get", "put", "delete"]}[
            row.methods
        ]:
            answer = getattr(signed_in(alice), method)(row.path(stage))
            expected = 302 if method == "get" else 405
            assert answer.status_code == expected, (method, row.path(stage))


# -- one rule, asked in two ways -------------------------------------------------------------------


@pytest.fixture
def people(agent: Agent, alice: User, bob: User, charlie: User, staff: User) -> dict[str, User]:
    """Everybody, as the database knows them."""
    agent.members.remove(alice)
    off = User.objects.create_user("off-member", is_active=False)
    agent.members.add(off)
    other = Agent.objects.create(name="Other")
    elsewhere = User.objects.create_user("elsewhere")
    other.members.add(elsewhere)
    made = {
        "owner": alice,
        "member": bob,
        "staff": staff,
        "outsider": charlie,
        "member of another agent": elsewhere,
        "inactive member": off,
        "inactive staff": User.objects.create_superuser("off-staff", is_active=False),
        "superuser who is not staff": User.objects.create_user("odd", is_superuser=True),
    }
    return {name: User.objects.get(pk=person.pk) for name, person in made.items()}


SEEING = {"owner", "member", "staff"}


def rows(stage: Stage) -> dict[type, Any]:
    return {
        Session: stage.session,
        Turn: stage.turn,
        Artifact: stage.artifact,
        ExecutionEnvironment: stage.environment,
        ApprovalRequest: stage.approval,
        Decision: stage.approval.decisions.get(),
    }


def test_visible_to_and_viewers_among_are_one_rule_for_everything_that_is_shown(stage, people):
    shown = {m for m in apps.get_models() if hasattr(m._default_manager, "visible_to")}
    assert shown == {*rows(stage), Agent}, "a new one needs a row here"
    ids = [person.pk for person in people.values()]
    seeing = Session.objects.viewers_among([stage.session.pk], ids)
    assert seeing == {people[name].pk for name in SEEING}
    for model, row in rows(stage).items():
        for name, person in people.items():
            visible = model.objects.visible_to(person).filter(pk=row.pk).exists()
            assert visible == (person.pk in seeing) == (name in SEEING), (model, name)
        assert not model.objects.visible_to(AnonymousUser()).exists()


def test_an_agent_is_there_for_its_members_and_staff(stage, people, agent):
    for name, person in people.items():
        may = name in {"member", "staff"}
        assert Agent.objects.visible_to(person).filter(pk=agent.pk).exists() == may, name
        assert agent.may_decide(person) == may, name
        assert ApprovalRequest.objects.decidable_by(person).exists() == may, name
    assert not Agent.objects.visible_to(AnonymousUser()).exists()
    assert not agent.may_decide(AnonymousUser())
    assert not ApprovalRequest.objects.decidable_by(AnonymousUser()).exists()


def test_a_person_is_found_among_the_viewers_of_any_of_several_sessions(stage, people):
    other = Agent.objects.get(name="Other")
    second = open_session(other, people["outsider"])
    ids = [person.pk for person in people.values()]
    both = Session.objects.viewers_among([stage.session.pk, second.pk], ids)
    named = {"outsider", "member of another agent"}
    assert both == {people[name].pk for name in SEEING | named}
    assert Session.objects.viewers_among([], ids) == set()
    assert Session.objects.viewers_among(["ses_gone"], ids) == set()
    assert Session.objects.viewers_among([stage.session.pk], []) == set()


def test_nobody_is_seen_twice_in_a_list(stage, people, agent):
    """Memberships are asked by a subquery: a join would repeat rows."""
    agent.members.add(people["owner"], people["staff"])
    for person in people.values():
        found = list(Session.objects.visible_to(person))
        assert len(found) == len(set(found))


def test_a_sign_in_link_shows_nothing_of_the_person_it_is_not_for(stage, charlie):
    link = link_for(charlie, host="127.0.0.1", port=8000)
    client = Client()
    client.get(link.partition(":8000")[2])
    assert client.get(f"/sessions/{stage.session.pk}/").status_code == 404

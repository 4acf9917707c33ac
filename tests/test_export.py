"""Decisions as files: what a person may see, as they asked for it, and nothing that runs."""

from __future__ import annotations

import csv
import io
import json
from datetime import timedelta
from typing import Any

import pytest
from django.test import AsyncClient
from django.utils import timezone

from approvals_app import export
from approvals_app.decisions import decide
from sessions_app.models import Agent, AuditEntry, Session

from .scenes import asked, open_session

pytestmark = pytest.mark.django_db(transaction=True)


async def fetched(person: Any, kind: str, **asked_for: str) -> Any:
    client = AsyncClient()
    await client.aforce_login(person)
    answer = await client.get(f"/approvals/decisions.{kind}", asked_for)
    assert answer.status_code == 200
    assert f'filename="decisions.{kind}"' in answer["Content-Disposition"]
    return b"".join([chunk async for chunk in answer.streaming_content]).decode()


async def rows(person: Any, **asked_for: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await fetched(person, "jsonl", **asked_for)).splitlines()]


def decided(session: Session, by: Any, verdict: str, reason: str = "") -> None:
    request = asked(session)
    decide(
        request.pk, by=by, verdict=verdict, digest=request.digest, reason=reason, address="10.1.2.3"
    )  # type: ignore[arg-type]


@pytest.fixture
def decisions(agent: Agent, alice: Any, bob: Any, charlie: Any) -> None:
    """Two decisions of one agent, and one of another that only Charlie belongs to."""
    decided(open_session(agent, alice), alice, "approve", "Fine, “really”.\nGo on.")
    decided(open_session(agent, alice), bob, "reject", '=HYPERLINK("http://evil")')
    other = Agent.objects.create(name="Other", runner="runbook")
    other.members.set([charlie])
    decided(open_session(other, charlie), charlie, "approve", "Mine.")


async def test_a_member_gets_the_decisions_of_their_agents_in_the_order_of_the_chain(
    decisions, alice
):
    got = await rows(alice)
    assert [(row["entry"], row["by"], row["verdict"]) for row in got] == [
        (1, "alice", "approve"),
        (2, "bob", "reject"),
    ]
    assert got[0]["reason"] == "Fine, “really”.\nGo on."
    assert list(got[0]) == list(export.COLUMNS)
    entry = await AuditEntry.objects.aget(number=1)
    assert got[0]["entry_digest"] == entry.digest
    assert [row["address"] for row in got] == ["", ""], "addresses are for staff"


async def test_staff_get_all_of_them_with_where_they_came_from(decisions, staff):
    got = await rows(staff)
    assert [row["agent"] for row in got] == ["Runbook", "Runbook", "Other"]
    assert {row["address"] for row in got} == {"10.1.2.3"}


async def test_somebody_else_gets_nothing_of_it(decisions, charlie):
    assert [row["reason"] for row in await rows(charlie)] == ["Mine."]


async def test_they_are_filtered(decisions, staff, agent):
    today = timezone.localdate()
    tomorrow = (today + timedelta(days=1)).isoformat()
    assert len(await rows(staff, agent=agent.pk)) == 2
    assert [row["by"] for row in await rows(staff, verdict="reject")] == ["bob"]
    assert [row["verdict"] for row in await rows(staff, by="alice")] == ["approve"]
    assert len(await rows(staff, since=today.isoformat(), until=today.isoformat())) == 3
    assert await rows(staff, since=tomorrow) == []
    assert await rows(staff, by="nobody") == []


@pytest.mark.parametrize(
    "asked_for",
    [{"agent": "agt_gone"}, {"verdict": "maybe"}, {"since": "yesterday"}, {"by": "x" * 200}],
    ids=lambda asked_for: next(iter(asked_for)),
)
async def test_what_cannot_be_asked_for_is_said(decisions, staff, asked_for):
    client = AsyncClient()
    await client.aforce_login(staff)
    answer = await client.get("/approvals/decisions.csv", asked_for)
    assert answer.status_code == 400
    assert f"`{next(iter(asked_for))}`" in answer.content.decode()


async def test_a_sheet_has_a_head_and_no_formula(decisions, alice):
    sheet = list(csv.DictReader(io.StringIO(await fetched(alice, "csv"))))
    assert [row["by"] for row in sheet] == ["alice", "bob"]
    assert sheet[0]["reason"] == "Fine, “really”.\nGo on."
    assert sheet[1]["reason"] == '\'=HYPERLINK("http://evil")'


async def test_many_are_read_in_parts(decisions, staff, monkeypatch):
    monkeypatch.setattr(export, "AT_A_TIME", 2)
    assert [row["entry"] for row in await rows(staff)] == [1, 2, 3]


async def test_nobody_gets_them_who_is_not_signed_in(decisions):
    answer = await AsyncClient().get("/approvals/decisions.csv")
    assert answer.status_code == 302

"""What nobody decides in time counts as rejected, and cannot be decided any more."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from approvals_app import expiry
from approvals_app.decisions import Conflict, decide
from approvals_app.models import ApprovalRequest, Decision
from sessions_app import chores, engine
from sessions_app.models import Agent, AuditEntry, Session
from sessions_app.threads import in_thread

from .conftest import signed_in, work
from .scenes import everything, jobs, open_session, types

pytestmark = pytest.mark.django_db(transaction=True)

GATED = "```sh gate=ask on-reject=continue\necho hello\n```\n\nAnd on."


@pytest.fixture
def request_(agent: Agent, alice: Any) -> ApprovalRequest:
    """A runbook's step waits for a decision, for ten minutes at most."""
    Agent.objects.filter(pk=agent.pk).update(approvals_expire_minutes=10)
    session = open_session(agent, alice, GATED)
    asyncio.run(work(session.pk))
    return ApprovalRequest.objects.get()


def let_it_expire(request: ApprovalRequest) -> None:
    late = timezone.now() - timedelta(seconds=1)
    ApprovalRequest.objects.filter(pk=request.pk).update(expires_at=late)


def approve(request: ApprovalRequest, by: Any) -> None:
    decide(request.pk, by=by, verdict="approve", digest=request.digest)


def test_a_request_says_when_it_expires_and_its_card_counts_down(request_, alice):
    assert request_.expires_at is not None
    left = request_.expires_at - timezone.now()
    assert timedelta(minutes=9) < left <= timedelta(minutes=10)
    told = request_.session.events.get(type="approval_request.created").payload
    assert told.expires_at == request_.expires_at
    for address in ("/approvals/", f"/sessions/{request_.session_id}/"):
        shown = signed_in(alice).get(address).content.decode()
        [milliseconds] = re.findall(r'expires in <span data-left="(\d+)">9 min', shown)
        assert 500_000 < int(milliseconds) <= 600_000


def test_an_agent_without_a_limit_waits_for_ever(agent, alice):
    session = open_session(agent, alice, GATED)
    asyncio.run(work(session.pk))
    request = ApprovalRequest.objects.get()
    assert request.expires_at is None
    assert "expires in" not in signed_in(alice).get("/approvals/").content.decode()
    assert expiry.expire_due() == 0
    approve(request, alice)


def test_what_has_expired_is_refused_before_anybody_has_moved_it_on(request_, alice, bob):
    let_it_expire(request_)
    before = everything()
    for verdict in ("approve", "reject"):
        with pytest.raises(Conflict, match="expired: nobody decided in time"):
            decide(request_.pk, by=bob, verdict=verdict, digest=request_.digest)
    form = {"verdict": "approve", "digest": request_.digest}
    answer = signed_in(alice).post(f"/approvals/{request_.pk}/decision/", form)
    assert answer.status_code == 409
    assert "nobody decided in time" in answer.content.decode()
    assert everything() == before


def test_it_counts_as_rejected_and_the_turn_goes_on_with_that(request_, bob):
    let_it_expire(request_)
    assert expiry.expire_due() == 1
    request_.refresh_from_db()
    assert (request_.state, request_.resolved_by) == ("EXPIRED", "")
    session = Session.objects.get()
    assert session.state == "ACTIVE"
    assert jobs(session) == 2, "somebody is woken to go on"
    asyncio.run(work(session.pk))
    turn = session.turns.get()
    assert turn.state == "COMPLETED", "on-reject says to go on"
    resolved = session.events.get(type="approval_request.resolved").data
    assert resolved["outcome"] == "expired"
    told = session.events.filter(type="message.created").order_by("seq")
    assert any(expiry.REASON in event.data["text"] for event in told), types(session)
    with pytest.raises(Conflict, match="expired already: nobody decided in time"):
        approve(request_, bob)
    assert not Decision.objects.exists()
    assert not AuditEntry.objects.exists()


def test_expiring_twice_changes_nothing(request_):
    let_it_expire(request_)
    assert (expiry.expire_due(), expiry.expire_due()) == (1, 0)
    assert types(Session.objects.get()).count("approval_request.resolved") == 1


def test_what_is_not_due_or_was_decided_is_left_alone(request_, alice):
    assert expiry.expire_due() == 0
    approve(request_, alice)
    let_it_expire(request_)
    assert expiry.expire_due() == 0
    request_.refresh_from_db()
    assert request_.state == "APPROVED"


def test_a_closed_session_leaves_nothing_to_expire(request_, alice):
    Session.objects.get().close("CANCELLED", by=alice)
    let_it_expire(request_)
    assert expiry.expire_due() == 0


async def test_every_worker_sees_to_it(agent, alice, one_loop, monkeypatch):
    await in_thread(Agent.objects.filter(pk=agent.pk).update, approvals_expire_minutes=10)
    session = await in_thread(open_session, agent, alice, GATED)
    worker = engine.worker()
    await worker.advance(session.pk)
    request = await in_thread(ApprovalRequest.objects.get)
    await in_thread(let_it_expire, request)
    assert "expire_due" in chores.registered()
    chores.register("expire_due", expiry.expire_due, seconds=0.05)
    loops = asyncio.create_task(worker.look_after())
    try:
        async with asyncio.timeout(10):
            while (await in_thread(ApprovalRequest.objects.get)).state != "EXPIRED":
                await asyncio.sleep(0.05)
    finally:
        loops.cancel()
        await asyncio.gather(loops, return_exceptions=True)
        chores.register("expire_due", expiry.expire_due, seconds=expiry.EVERY_SECONDS)

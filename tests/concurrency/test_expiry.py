"""A request expires while somebody decides it: exactly one of both happens."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import pytest
from django.utils import timezone

from approvals_app import expiry
from approvals_app.decisions import Conflict, decide
from approvals_app.models import ApprovalRequest, Decision
from sessions_app.models import Agent, Session

from ..crowd import errors_in, together
from ..scenes import asked, jobs, open_session, types

pytestmark = pytest.mark.django_db(transaction=True)

ROUNDS = 15


def test_a_decision_and_the_end_of_its_time_are_never_both(agent: Agent, alice):
    outcomes = set()
    for number in range(ROUNDS):
        session = open_session(agent, alice)
        request = asked(session)
        soon = timezone.now() + timedelta(milliseconds=3 * number)
        ApprovalRequest.objects.filter(pk=request.pk).update(expires_at=soon)
        results = together(
            partial(decide, request.pk, by=alice, verdict="approve", digest=request.digest),
            *[expiry.expire_due] * 3,
            backwards=bool(number % 2),
        )
        assert all(isinstance(error, Conflict) for error in errors_in(results))
        expiry.expire_due()
        request.refresh_from_db()
        outcomes.add(request.state)
        decided = Decision.objects.filter(request=request).count()
        expected = {"APPROVED": (1, 2), "EXPIRED": (0, 2), "PENDING": (0, 1)}[request.state]
        assert (decided, jobs(session)) == expected
        resolved = types(session).count("approval_request.resolved")
        assert resolved == (request.state != "PENDING")
        assert Session.objects.get(pk=session.pk).turns.get().state == (
            "WAITING_FOR_PERMISSION" if request.state == "PENDING" else "RUNNING"
        )
    assert outcomes & {"APPROVED", "EXPIRED"}


def test_of_many_workers_one_expires_it(agent: Agent, alice):
    session = open_session(agent, alice)
    request = asked(session)
    late = timezone.now() - timedelta(seconds=1)
    ApprovalRequest.objects.filter(pk=request.pk).update(expires_at=late)
    results = together(*[expiry.expire_due] * 8)
    assert sorted(results) == [0] * 7 + [1]
    assert jobs(session) == 2

"""Many decide at the same moment: one chain, without a gap or a fork."""

from __future__ import annotations

from functools import partial
from io import StringIO

import pytest
from django.core.management import call_command

from approvals_app.decisions import decide
from sessions_app.models import AuditEntry, AuditHead

from ..crowd import errors_in, together
from ..scenes import asked, open_session

pytestmark = pytest.mark.django_db(transaction=True)

COUNT = 16


def test_decisions_of_many_sessions_at_once_make_one_chain(agent, alice, bob):
    requests = [asked(open_session(agent, alice)) for _ in range(COUNT)]
    doings = [
        partial(
            decide,
            request.pk,
            by=(alice, bob)[number % 2],
            verdict=("approve", "reject")[number % 2],
            digest=request.digest,
        )
        for number, request in enumerate(requests)
    ]
    assert errors_in(together(*doings)) == []
    numbers = list(AuditEntry.objects.values_list("number", flat=True))
    assert numbers == list(range(1, COUNT + 1))
    assert AuditHead.objects.get().number == COUNT
    said = StringIO()
    call_command("verify_audit", stdout=said)
    assert "is whole" in said.getvalue()

"""An installation that is older: what was decided before the chain began is in it afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from approvals_app.decisions import decide
from approvals_app.models import Decision
from sessions_app.models import AuditEntry

from .scenes import asked, open_session

pytestmark = pytest.mark.django_db(transaction=True)


def migrate(name: str) -> MigrationExecutor:
    executor = MigrationExecutor(connection)
    executor.migrate([("approvals_app", name)])
    return MigrationExecutor(connection)


@pytest.fixture
def newest() -> Iterator[str]:
    """The name of the last migration, which is applied again whatever happens."""
    [(_, name)] = MigrationExecutor(connection).loader.graph.leaf_nodes("approvals_app")
    yield name
    migrate(name)


def test_decisions_of_before_get_their_entries_in_the_order_they_were_made(
    agent, alice, bob, newest
):
    sessions = [open_session(agent, alice) for _ in range(3)]
    turns = [session.turns.get() for session in sessions]
    old = migrate("0001_initial").loader.project_state([("approvals_app", "0001_initial")]).apps
    now = timezone.now()
    for number, (session, turn) in enumerate(zip(sessions, turns, strict=True)):
        request = old.get_model("approvals_app", "ApprovalRequest").objects.create(
            session_id=session.pk, turn_id=turn.pk, key="step-1", title="ls", rule="asked",
            action={}, digest="d" * 64, state="APPROVED", resolved_at=now, resolved_by="bob",
        )  # fmt: skip
        decisions = old.get_model("approvals_app", "Decision").objects
        made = decisions.create(
            request=request, by_id=bob.pk, verdict="approve", reason=f"No. {number}",
            digest="d" * 64,
        )  # fmt: skip
        decisions.filter(pk=made.pk).update(created_at=now - timedelta(hours=number))

    migrate(newest)
    told = AuditEntry.objects.order_by("number").values_list("by", "data__reason")
    assert list(told) == [("bob", "No. 2"), ("bob", "No. 1"), ("bob", "No. 0")]
    assert Decision.objects.get(entry=1).reason == "No. 2"

    later = asked(open_session(agent, alice))
    decide(later.pk, by=alice, verdict="reject", digest=later.digest)
    said = StringIO()
    call_command("verify_audit", stdout=said)
    assert "is whole. Its head is 4:" in said.getvalue()

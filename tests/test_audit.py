"""The audit chain: whatever is changed, taken away or moved in it, or behind it, is found."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.db.models import F

from approvals_app.decisions import decide
from approvals_app.models import Decision
from sessions_app import audit
from sessions_app.models import AuditEntry, AuditHead
from sessions_app.models.audit import digest_of

from .scenes import asked, open_session

pytestmark = pytest.mark.django_db(transaction=True)

COUNT = 6
MIDDLE = 3


@pytest.fixture
def decisions(agent: Any, alice: Any, bob: Any) -> list[Decision]:
    """Six decisions of two people."""
    for number in range(COUNT):
        request = asked(open_session(agent, alice))
        by, verdict = (alice, "approve") if number % 2 else (bob, "reject")
        decide(request.pk, by=by, verdict=verdict, digest=request.digest, reason=f"No. {number}")
    return list(Decision.objects.order_by("entry"))


def tamper(sql: str, *arguments: object) -> None:
    """Do what somebody does who owns the tables: take the guards away first."""
    tables = ("sessions_app_auditentry", "approvals_app_decision")
    with transaction.atomic(), connection.cursor() as cursor:
        for table in tables:
            cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
        cursor.execute(sql, arguments)
        assert cursor.rowcount > 0, "nothing was tampered with"
        for table in tables:
            cursor.execute(f"ALTER TABLE {table} ENABLE TRIGGER ALL")


def verify(*given: str) -> str:
    said = StringIO()
    call_command("verify_audit", *given, stdout=said)
    return said.getvalue()


def refusal(*given: str) -> str:
    with pytest.raises(CommandError) as refused:
        verify(*given)
    assert refused.value.returncode == 1
    return str(refused.value)


def test_an_empty_chain_is_whole():
    assert "no entry yet" in verify()


def test_a_chain_of_decisions_is_whole_and_tells_them(decisions):
    said = verify()
    head = AuditHead.objects.get()
    assert f"{COUNT}:{head.digest}" in said
    assert verify("--noted", f"{COUNT}:{head.digest}") == said
    entry = AuditEntry.objects.get(number=1)
    assert (entry.kind, entry.by, entry.subject) == ("decision", "bob", decisions[0].request_id)
    assert entry.data["verdict"] == "reject"
    assert entry.data["reason"] == "No. 0"


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("at", "at + interval '1 second'"),
        ("kind", "'other'"),
        ("by", "'mallory'"),
        ("subject", "'apr_other'"),
        ("data", """jsonb_set(data, '{verdict}', '"approve"')"""),
        ("data", "data - 'reason'"),
        ("previous", "repeat('0', 64)"),
        ("digest", "repeat('0', 64)"),
        ("number", "number + 100"),
    ],
)
def test_an_entry_that_was_edited_is_named(decisions, change, value):
    tamper(f"UPDATE sessions_app_auditentry SET {change} = {value} WHERE number = {MIDDLE}")
    assert f"broken at entry {MIDDLE}:" in refusal()


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("verdict", "'approve'"),
        ("reason", "'Words that nobody said.'"),
        ("digest", "repeat('0', 64)"),
        ("channel", "'api'"),
        ("address", "'10.0.0.1'"),
        ("by_id", "(SELECT id FROM auth_user WHERE username = 'alice')"),
        ("request_id", "(SELECT min(id) FROM approvals_app_approvalrequest)"),
    ],
)
def test_a_decision_that_was_edited_is_named_by_its_entry(decisions, change, value):
    tamper(f"UPDATE approvals_app_decision SET {change} = {value} WHERE entry_id = {MIDDLE}")
    assert f"broken at entry {MIDDLE}: its decision on" in refusal()
    assert "was changed" in refusal()


@pytest.mark.parametrize("number", [1, MIDDLE, COUNT], ids=["first", "middle", "last"])
@pytest.mark.parametrize("entry_too", [False, True])
def test_a_row_that_was_removed_is_named(decisions, number, entry_too):
    tamper(f"DELETE FROM approvals_app_decision WHERE entry_id = {number}")
    if entry_too:
        tamper(f"DELETE FROM sessions_app_auditentry WHERE number = {number}")
    assert f"broken at entry {number}:" in refusal()
    assert "gone" in refusal()


def test_everything_removed_is_noticed(decisions):
    tamper("DELETE FROM approvals_app_decision")
    tamper("DELETE FROM sessions_app_auditentry")
    assert "broken at entry 1: it is gone" in refusal()


def test_two_entries_that_changed_places_are_noticed(decisions):
    for before, after in ((2, 102), (4, 2), (102, 4)):
        tamper("UPDATE sessions_app_auditentry SET number = %s WHERE number = %s", after, before)
    assert "broken at entry 2:" in refusal()


def test_a_forged_entry_at_the_end_is_noticed(decisions):
    last = AuditEntry.objects.get(number=COUNT)
    content: dict[str, Any] = {
        "number": COUNT + 1,
        "at": last.at + timedelta(seconds=1),
        "kind": "something",
        "by": "mallory",
        "subject": "apr_forged",
        "data": {},
        "previous": last.digest,
    }
    AuditEntry.objects.create(**content, digest=digest_of(**content))
    assert f"broken at entry {COUNT + 1}: it was not added by Signalbox" in refusal()


def test_a_chain_that_was_written_anew_is_found_with_a_head_that_was_noted(decisions):
    """Only somebody who keeps a head elsewhere can know: in the database everything matches."""
    noted = verify().split("head is ")[1].split()[0]
    tamper("UPDATE approvals_app_decision SET reason = 'Rewritten.' WHERE entry_id = 2")
    previous = ""
    for entry in AuditEntry.objects.order_by("number"):
        if entry.number == 2:
            entry.data["reason"] = "Rewritten."
        entry.previous = previous
        previous = entry.computed()
        tamper(
            "UPDATE sessions_app_auditentry"
            " SET data = jsonb_set(data, '{reason}', to_jsonb(%s::text)),"
            " previous = %s, digest = %s WHERE number = %s",
            entry.data["reason"], entry.previous, previous, entry.number,
        )  # fmt: skip
    AuditHead.objects.update(digest=previous)
    assert "is whole" in verify()
    assert f"broken at entry {COUNT}" in refusal("--noted", noted)


def test_a_shortened_chain_with_its_head_put_back_is_found_with_a_head_that_was_noted(decisions):
    noted = verify().split("head is ")[1].split()[0]
    tamper(f"DELETE FROM approvals_app_decision WHERE entry_id = {COUNT}")
    tamper(f"DELETE FROM sessions_app_auditentry WHERE number = {COUNT}")
    last = AuditEntry.objects.get(number=COUNT - 1)
    AuditHead.objects.update(number=last.number, digest=last.digest)
    assert "is whole" in verify()
    assert f"broken at entry {COUNT}: it is gone" in refusal("--noted", noted)


def test_a_head_that_is_not_one_is_refused(decisions):
    with pytest.raises(CommandError, match="NUMBER:DIGEST") as refused:
        verify("--noted", "6")
    assert refused.value.returncode == 2


@pytest.mark.parametrize("model", [AuditEntry, Decision])
def test_the_database_refuses_to_change_or_delete_a_row(decisions, model):
    key = model._meta.pk.name
    for tampering in (
        lambda: model.objects.update(**{key: F(key)}),
        lambda: model.objects.all()._raw_delete("default"),
    ):
        with pytest.raises(DatabaseError, match="only ever added"), transaction.atomic():
            tampering()
    assert "is whole" in verify()


def test_a_decision_that_is_rolled_back_leaves_no_entry_and_no_gap(decisions, agent, alice):
    request = asked(open_session(agent, alice))
    with transaction.atomic():
        decide(request.pk, by=alice, verdict="approve", digest=request.digest)
        transaction.set_rollback(True)
    assert AuditEntry.objects.count() == COUNT
    decide(request.pk, by=alice, verdict="approve", digest=request.digest)
    assert AuditHead.objects.get().number == COUNT + 1
    assert "is whole" in verify()


def test_a_long_chain_is_read_in_parts(monkeypatch, decisions):
    monkeypatch.setattr(audit, "AT_A_TIME", 4)
    assert "is whole" in verify()
    tamper(f"DELETE FROM approvals_app_decision WHERE entry_id = {COUNT}")
    assert f"broken at entry {COUNT}:" in refusal()

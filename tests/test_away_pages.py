"""Pages and sockets while the database is away: try again, and nothing that was shown is lost."""

from __future__ import annotations

import pytest
from django import db

from .conftest import signed_in

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_page_without_a_database_says_to_try_again_and_the_log_takes_one_line(
    alice, monkeypatch, caplog
):
    client = signed_in(alice)
    client.raise_request_exception = False

    def fail(*args: object, **kwargs: object) -> None:
        raise db.OperationalError("server closed the connection unexpectedly\nand more")

    monkeypatch.setattr("sessions_app.views.sessions.rail_context", fail)
    answer = client.get("/")
    assert (answer.status_code, answer["Retry-After"]) == (503, "2")
    assert "The database does not answer" in answer.content.decode()
    [record] = [r for r in caplog.records if r.name == "django.request"]
    assert record.getMessage().endswith("/: server closed the connection unexpectedly")
    assert (record.levelname, record.exc_info) == ("WARNING", None)


def test_a_mistake_of_ours_is_still_one_and_the_log_says_where(alice, monkeypatch, caplog):
    client = signed_in(alice)
    client.raise_request_exception = False
    monkeypatch.setattr("sessions_app.views.sessions.rail_context", lambda *args, **kwargs: 1 / 0)
    assert client.get("/").status_code == 500
    [record] = [r for r in caplog.records if r.name == "django.request"]
    assert record.levelname == "ERROR"
    assert record.exc_info is not None

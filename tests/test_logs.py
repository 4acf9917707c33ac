"""Every line about a turn says which one, for people and for programs."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from config import env
from sessions_app import logs, run
from sessions_app.models import Session
from sessions_app.threads import in_thread

from .conftest import work


def record(message: str = "It happened.", **more: object) -> logging.LogRecord:
    made = logging.LogRecord("sessions_app.x", logging.INFO, "x.py", 1, message, (), None)
    made.__dict__.update(more)
    logs.About().filter(made)
    return made


def line(of: logging.LogRecord) -> str:
    options = settings.LOGGING["formatters"]["line"]
    return logs.LineFormatter(options["format"], style=options["style"]).format(of)


def test_a_line_names_the_session_and_turn_it_is_about_and_no_others():
    with logs.about("ses_1", "trn_1"):
        assert line(record()).endswith("INFO sessions_app.x [ses_1 trn_1]: It happened.")
    assert line(record()).endswith("INFO sessions_app.x: It happened.")


def test_what_a_line_says_itself_goes_before_what_it_is_said_in():
    with logs.about("ses_1"):
        assert "[ses_2 trn_2]" in line(record(session="ses_2", turn="trn_2"))


def test_json_lines_are_objects_with_ids_and_the_exception():
    try:
        raise ValueError("a reason\nin two lines")
    except ValueError as error:
        failed = record(exc_info=(type(error), error, error.__traceback__))
    with logs.about("ses_1", "trn_1"):
        logs.About().filter(failed)
    said = logs.JsonFormatter().format(failed)
    assert "\n" not in said
    object = json.loads(said)
    assert object["message"] == "It happened."
    assert (object["session"], object["turn"]) == ("ses_1", "trn_1")
    assert "a reason" in object["exception"]
    assert "session" not in json.loads(logs.JsonFormatter().format(record()))


async def test_threads_know_what_they_work_for():
    with logs.about("ses_1", "trn_1"):
        assert (await in_thread(record)).turn == "trn_1"  # type: ignore[attr-defined]


@pytest.mark.django_db(transaction=True)
def test_what_a_run_logs_names_its_session_and_turn(session: Session, monkeypatch):
    said: list[logging.LogRecord] = []

    class Listening(logging.Handler):
        def emit(self, of: logging.LogRecord) -> None:
            said.append(of)

    def broken(name: str) -> object:
        raise RuntimeError("The runner is broken.")

    handler = Listening()
    handler.addFilter(logs.About())
    monkeypatch.setattr(run.runners, "get", broken)
    logging.getLogger("sessions_app").addHandler(handler)
    try:
        asyncio.run(work(session.pk))
    finally:
        logging.getLogger("sessions_app").removeHandler(handler)
    turn = session.turns.get()
    assert turn.state == "FAILED"
    about = {(each.session, each.turn) for each in said if each.name == "sessions_app.run"}  # type: ignore[attr-defined]
    assert about == {(session.pk, turn.pk)}


def test_a_format_that_there_is_not_is_refused(monkeypatch):
    monkeypatch.setenv("SIGNALBOX_LOG_FORMAT", "xml")
    with pytest.raises(ImproperlyConfigured, match="line or json"):
        env.log_format()

"""What a self-hoster can set wrong is told with an id and what to do."""

from __future__ import annotations

import pytest
from django.core.checks import run_checks

from sessions_app.checks import MOST_SECONDS


def ids() -> list[str | None]:
    return [message.id for message in run_checks() if (message.id or "").startswith("signalbox.")]


def test_the_defaults_are_fine():
    assert ids() == []


@pytest.mark.parametrize(
    ("wrong", "id"),
    [
        ({"LEASE_SECONDS": 3.0, "HEARTBEAT_SECONDS": 3.0}, "signalbox.E001"),
        ({"LEASE_SECONDS": 9.0, "HEARTBEAT_SECONDS": 0.0}, "signalbox.E001"),
        ({"CONCURRENCY": 0}, "signalbox.E002"),
    ],
)
def test_a_setting_that_would_stop_all_work_is_an_error(settings, wrong, id):
    settings.SIGNALBOX = {**settings.SIGNALBOX, **wrong}
    assert ids() == [id]


@pytest.mark.parametrize(
    ("settled", "seconds"),
    [
        ({"LEASE_SECONDS": 11.0}, "16 s"),
        ({"HEARTBEAT_SECONDS": 4.5}, "15.5 s"),
        ({"JOB_POLL_SECONDS": 60.0}, "72 s"),
    ],
)
def test_a_dead_worker_that_would_be_noticed_late_is_a_warning(settings, settled, seconds):
    settings.SIGNALBOX = {**settings.SIGNALBOX, **DEFAULTS}
    assert ids() == []
    assert sum(DEFAULTS.values()) <= MOST_SECONDS == 15
    settings.SIGNALBOX = {**settings.SIGNALBOX, **settled}
    [warning] = [message for message in run_checks() if message.id == "signalbox.W002"]
    assert seconds in warning.msg
    for name in DEFAULTS:
        assert f"SIGNALBOX_{name}" in warning.hint


DEFAULTS = {"LEASE_SECONDS": 9.0, "HEARTBEAT_SECONDS": 3.0, "JOB_POLL_SECONDS": 2.0}


def test_workers_look_for_jobs_as_often_as_the_bound_says(settings):
    from procrastinate.contrib.django import app

    waits = app.worker_defaults["fetch_job_polling_interval"]
    assert waits == settings.SIGNALBOX["JOB_POLL_SECONDS"]

"""What a self-hoster can set wrong is told with an id and what to do."""

from __future__ import annotations

import pytest
from django.core.checks import run_checks


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

"""System checks for settings that a self-hoster can get wrong."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

MOST_SECONDS = 15
"""Within this time a turn whose worker died is taken over or closed."""

_one_of_many = False


def declare_one_of_many() -> None:
    """Say that this process is a worker or a web server alone, so that there are others."""
    global _one_of_many
    _one_of_many = True


@register()
def leases_outlast_heartbeats(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """A lease that ends between two heartbeats would make every worker lose every turn."""
    options = settings.SIGNALBOX
    if options["LEASE_SECONDS"] >= 2 * options["HEARTBEAT_SECONDS"] > 0:
        return []
    return [
        Error(
            "A lease has to last at least two heartbeats.",
            hint="Raise SIGNALBOX_LEASE_SECONDS, or lower SIGNALBOX_HEARTBEAT_SECONDS.",
            id="signalbox.E001",
        )
    ]


@register()
def somebody_works(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """With no slot, turns would queue for ever."""
    if settings.SIGNALBOX["CONCURRENCY"] >= 1:
        return []
    return [
        Error(
            "No turn can run.",
            hint="Set SIGNALBOX_CONCURRENCY to 1 or more.",
            id="signalbox.E002",
        )
    ]


@register()
def hints_reach_other_processes(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """The in-memory layer ends at the process: others hear of nothing and look by timer."""
    if not _one_of_many or "InMemory" not in str(settings.CHANNEL_LAYERS["default"]["BACKEND"]):
        return []
    return [
        Warning(
            "Web and worker are separate processes, and no hint gets from one to the other.",
            hint="Set REDIS_URL in all of them. Until then news comes by timer, every "
            f"{settings.SIGNALBOX['POLL_SECONDS']:g} s (SIGNALBOX_POLL_SECONDS), and live output "
            "of running steps does not come at all.",
            id="signalbox.W001",
        )
    ]


@register()
def lost_workers_are_noticed_soon(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """The worst case: the lease was just renewed, rescue just looked, and no wake-up is heard."""
    options = settings.SIGNALBOX
    parts = [options[name] for name in ("LEASE_SECONDS", "HEARTBEAT_SECONDS", "JOB_POLL_SECONDS")]
    if sum(parts) <= MOST_SECONDS:
        return []
    return [
        Warning(
            f"A turn whose worker died may wait {sum(parts):g} s for another one; "
            f"at most {MOST_SECONDS} s are promised.",
            hint="Lower SIGNALBOX_LEASE_SECONDS, SIGNALBOX_HEARTBEAT_SECONDS or "
            "SIGNALBOX_JOB_POLL_SECONDS: their sum is how long it may take.",
            id="signalbox.W002",
        )
    ]

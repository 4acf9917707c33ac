"""System checks for settings that a self-hoster can get wrong."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, register


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

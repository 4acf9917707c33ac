"""What the first start makes and every later start finds: tables, an administrator, an agent."""

from __future__ import annotations

import psycopg
from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command

from sessions_app.models import Agent
from sessions_app.threads import connection_parameters

# Any number, as long as every start takes the same lock.
_LOCK = 0x5160A1


def prepare() -> User:
    """Bring the database up to date and return the administrator. Harmless to repeat.

    Raises CommandError when the database does not answer.
    """
    try:
        # Asked without the pool, which would try for half a minute before it gave up.
        waiting = psycopg.connect(**connection_parameters(), autocommit=True)
    except psycopg.OperationalError as error:
        reason = " ".join(str(error).split())
        raise CommandError(f"The database does not answer: {reason}. Check DATABASE_URL.") from None
    with waiting:
        # Two servers that start at once migrate one after the other.
        waiting.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
        call_command("migrate", verbosity=0, interactive=False)
        administrator = _administrator()
        if not Agent.objects.exists():
            Agent.objects.create(
                name="Runbook",
                runner="runbook",
                description="Works through a Markdown runbook, step by step. No model, no key.",
            )
    return administrator


def _administrator() -> User:
    people = get_user_model().objects
    found = people.filter(is_superuser=True, is_active=True).order_by("pk").first()
    if found is None and people.filter(username="admin").exists():
        raise CommandError(
            "No administrator is active. Make one with `manage.py createsuperuser`, "
            "then start again."
        )
    return found or people.create_superuser("admin")

"""The newest sessions that a person sees, found through indexes however many there are.

What is found here are candidates: who may see what is said by `visible_to` alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from django.db import connection

if TYPE_CHECKING:
    from django.contrib.auth.models import User

# The newest of each agent and the newest of one's own hold the newest of both. A condition with
# `or` between the two would have all sessions read and sorted.
OF_PERSON = """
SELECT id FROM (
    SELECT newest.* FROM sessions_app_agent_members AS membership CROSS JOIN LATERAL (
        SELECT id, last_activity_at FROM sessions_app_session
         WHERE agent_id = membership.agent_id AND state = ANY(%(states)s)
         ORDER BY last_activity_at DESC LIMIT %(most)s) AS newest
     WHERE membership.user_id = %(user)s
    UNION
    (SELECT id, last_activity_at FROM sessions_app_session
      WHERE owner_id = %(user)s AND state = ANY(%(states)s)
      ORDER BY last_activity_at DESC LIMIT %(most)s)
) AS found ORDER BY last_activity_at DESC LIMIT %(most)s
"""
OF_ALL = """
SELECT id FROM unnest(%(states)s::text[]) AS wanted (state) CROSS JOIN LATERAL (
    SELECT id, last_activity_at FROM sessions_app_session AS session
     WHERE session.state = wanted.state ORDER BY last_activity_at DESC LIMIT %(most)s) AS newest
 ORDER BY last_activity_at DESC LIMIT %(most)s
"""


def newest(user: User, states: Iterable[str], most: int) -> list[str]:
    """Return the ids of those sessions in some states that were active last."""
    arguments: dict[str, Any] = {
        "user": user.pk,
        "states": [str(state) for state in states],
        "most": most,
    }
    with connection.cursor() as cursor:
        cursor.execute(OF_ALL if user.is_staff else OF_PERSON, arguments)
        return [row[0] for row in cursor.fetchall()]

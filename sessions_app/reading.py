"""What a feed reads: a page of events, what their rows need besides, and who may see them.

It is one statement: one trip to the database for each frame, and one snapshot, so that who may see
the events is asked together with them.
"""

from __future__ import annotations

from typing import NamedTuple

from .models.event import Recorded
from .models.session import VIEWERS
from .threads import pool
from .timeline import PAGE, PARTS_OF_TOUCHED

# A page that is sent ends early when it is long: a frame may have to wait in memory for a reader.
READ_BYTES = 128 * 1024

FIELDS = "seq, turn_id, type, item, data, created_at"
# `whole` is the page as far as it is short enough. Parts of the items that it touches are read up
# to the same length, item by item; the page then ends before the first event of an item that was
# left out. What is in the page anyway is no part of it.
READ = f"""
WITH RECURSIVE sized AS MATERIALIZED (
    SELECT {FIELDS}, octet_length(data::text) AS size FROM sessions_app_event
     WHERE session_id = %(session)s AND seq > %(after)s ORDER BY seq LIMIT {PAGE}
), whole AS MATERIALIZED (
    SELECT * FROM (
        SELECT *, sum(size) OVER (ORDER BY seq) - size AS before FROM sized
    ) AS counted WHERE before < {READ_BYTES}
), touched AS (
    SELECT item, min(seq) AS place FROM whole WHERE item <> '' GROUP BY item
), {PARTS_OF_TOUCHED}, within AS MATERIALIZED (
    SELECT *, sum(size) OVER (ORDER BY place) - sum(size) OVER (PARTITION BY place) AS before
      FROM (SELECT {FIELDS}, place, octet_length(data::text) AS size FROM parts) AS others
     WHERE seq <= %(after)s OR seq > (SELECT max(seq) FROM whole)
), cut AS (
    SELECT min(place) AS seq FROM within WHERE before >= {READ_BYTES}
)
SELECT 'about', 0, NULL, '', '', jsonb_build_object(
           'ahead', max(seq), 'size', sum(size),
           'viewers', (SELECT jsonb_agg(id) FROM ({VIEWERS}) AS viewer)
       ), now()
  FROM sized HAVING count(*) > 0
UNION ALL
SELECT 'page', {FIELDS} FROM whole WHERE seq < coalesce((SELECT seq FROM cut), seq + 1)
UNION ALL
SELECT 'part', {FIELDS} FROM within WHERE before < {READ_BYTES}
"""  # noqa: S608


class Page(NamedTuple):
    """What was read after a number."""

    events: list[Recorded]
    parts: list[Recorded]
    ahead: int
    """Where the page would have ended if its events were short."""
    size: int
    """How many bytes of data that would have been."""
    viewers: set[int]
    """Who may see it, of those who were asked about."""


async def read(session_id: str, after: int, users: set[int]) -> Page | None:
    """Read the page after a number; None when nothing is there yet."""
    arguments = {
        "session": session_id,
        "sessions": f"{{{session_id}}}",
        "after": after,
        "users": f"{{{','.join(map(str, users))}}}",
    }
    async with (await pool()).connection() as conn:
        rows = await (await conn.execute(READ, arguments)).fetchall()
    read: dict[str, list[Recorded]] = {"about": [], "page": [], "part": []}
    for kind, *fields in rows:
        read[kind].append(Recorded(session_id, *fields))
    if not read["page"]:
        return None
    about = read["about"][0].data
    viewers = set(about["viewers"] or ())
    return Page(read["page"], read["part"], about["ahead"], about["size"], viewers)

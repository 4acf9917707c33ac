"""Pages that must not grow slower with what is stored, and catching up with a long session."""

from __future__ import annotations

import http.client
import time
from typing import Any

from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext

from sessions_app import events
from sessions_app.models import Session

from . import load
from .report import Report, median
from .stage import Stage, viewers

LONG = 50_000
CAUGHT_UP = 10_000
AT_ONCE = 500
FEW, MANY = 1_000, 100_000

# What an installation looks like after a while: most sessions rest or are closed, a few run, and
# they belong to many people. Each is a copy of one that the product made, so that a column more
# needs nothing here.
FILL = """
INSERT INTO sessions_app_session
SELECT made.*
  FROM sessions_app_session AS pattern,
       generate_series(%(first)s::int, %(last)s::int) AS n,
       LATERAL jsonb_populate_record(pattern, jsonb_build_object(
           'id', 'ses_bench' || n,
           'title', 'Session number ' || n,
           'owner_id', (%(people)s::int[])[1 + n %% cardinality(%(people)s::int[])],
           'state', CASE WHEN n %% 200 = 0 THEN 'ACTIVE' WHEN n %% 20 = 1 THEN 'FAILED'
                         WHEN n %% 5 = 2 THEN 'ARCHIVED' WHEN n %% 3 = 0 THEN 'WAITING_FOR_INPUT'
                         ELSE 'COMPLETED' END,
           'created_at', now() - n * interval '1 minute',
           'last_activity_at', now() - n * interval '1 minute',
           'listed_at', now() - n * interval '1 minute')) AS made
 WHERE pattern.id = %(pattern)s
"""


def measure(stage: Stage, report: Report, *, times: int, many: int = MANY) -> None:
    report.part("Pages, and catching up")
    short, long = _long(stage, 50), _long(stage, LONG)
    catch_up(stage, report, long)
    person = _browser(stage)
    small, large = person.compare(f"/sessions/{short.pk}/", f"/sessions/{long.pk}/", times)
    report.ratio_at_most(
        f"opening a session of {LONG:,} events, beside one of 50", large, "ms",
        beside=small, most=1.5,
    )  # fmt: skip
    same = (_queries(stage, f"/sessions/{s.pk}/") for s in (short, long))
    report.ratio_at_most(
        f"SQL queries of a session's page, {LONG:,} events beside 50", next(same), "queries",
        beside=next(same), most=1,
    )  # fmt: skip
    _lists(stage, report, person, times, many)


def _lists(stage: Stage, report: Report, person: _Browser, times: int, many: int) -> None:
    pattern = Session.objects.create(agent=stage.agent, owner=stage.people[0], title="Pattern")
    _fill(stage, pattern, 1, FEW)
    small = person.times("/", times)
    rail = person.times("/rail/", times)
    few_queries = _queries(stage, "/")
    _fill(stage, pattern, FEW + 1, many)
    report.ratio_at_most(
        f"the first screen with {many:,} sessions, beside {FEW:,}", person.times("/", times), "ms",
        beside=small, most=2,
    )  # fmt: skip
    report.ratio_at_most(
        f"the list of sessions with {many:,}, beside {FEW:,}", person.times("/rail/", times), "ms",
        beside=rail, most=2,
    )  # fmt: skip
    report.ratio_at_most(
        f"SQL queries of the first screen, {many:,} sessions beside {FEW:,}", _queries(stage, "/"),
        "queries", beside=few_queries, most=1,
    )  # fmt: skip


def catch_up(stage: Stage, report: Report, session: Session) -> None:
    """A page that was closed for 10,000 events gets them all, as many frames as it takes."""
    with viewers() as people:
        start = time.monotonic()
        after = session.last_seq - CAUGHT_UP
        people.ask(
            do="connect", base=stage.websockets, sockets=[stage.socket(session, after=after)]
        )
        result = people.ask(do="drawn", last=session.last_seq)
    spent = result["at"] - start
    report.note(f"catching up with {CAUGHT_UP:,} events", spent, "s")
    report.note("catching up: events per second", CAUGHT_UP / spent, "events/s")


def _long(stage: Stage, count: int) -> Session:
    """A session with that many events, recorded as every event is."""
    session = Session.objects.create(agent=stage.agent, owner=stage.people[0], title=f"{count}")
    for first in range(0, count, AT_ONCE):
        said = (load.said(load.Spec(), n) for n in range(first, min(count, first + AT_ONCE)))
        payloads = [events.PAYLOADS[type](**data) for type, data in said]
        with transaction.atomic():
            session.record(*payloads)
    session.refresh_from_db()
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE sessions_app_event")
    return session


def _fill(stage: Stage, pattern: Session, first: int, last: int) -> None:
    people = [person.pk for person in stage.people]
    arguments = {"pattern": pattern.pk, "people": people, "first": first, "last": last}
    with connection.cursor() as cursor:
        cursor.execute(FILL, arguments)
        cursor.execute("ANALYZE sessions_app_session")


def _queries(stage: Stage, path: str) -> int:
    """How many SQL queries a page takes, for somebody who is a member and no administrator."""
    client = Client(headers={"host": "127.0.0.1"})
    client.force_login(stage.people[0])
    client.get(path)
    with CaptureQueriesContext(connection) as captured:
        assert client.get(path).status_code == 200
    return len(captured)


class _Browser:
    """Gets pages over one connection, signed in as the first person."""

    def __init__(self, stage: Stage) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", stage.served.port, timeout=60)
        self.headers = {"Cookie": stage.cookies[0]}

    def get(self, path: str) -> float:
        """Return the milliseconds until the page was there."""
        start = time.perf_counter()
        self.connection.request("GET", path, headers=self.headers)
        answer: Any = self.connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise SystemExit(f"{path} was answered with {answer.status}.")
        return (time.perf_counter() - start) * 1000

    def times(self, path: str, times: int) -> float:
        self.get(path)
        return median([self.get(path) for _ in range(times)])

    def compare(self, one: str, other: str, times: int) -> tuple[float, float]:
        """Get two pages in turns; return the median of each."""
        self.get(one), self.get(other)
        pairs = [(self.get(one), self.get(other)) for _ in range(times)]
        return median([pair[0] for pair in pairs]), median([pair[1] for pair in pairs])


def _browser(stage: Stage) -> _Browser:
    return _Browser(stage)

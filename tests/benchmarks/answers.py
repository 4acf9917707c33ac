"""How long a person waits: from a form that is posted to what an agent does because of it."""

from __future__ import annotations

import json
from urllib.parse import urlencode

from approvals_app.models import ApprovalRequest
from sessions_app.models import Session

from .report import Report
from .stage import Stage, until, viewers

ANSWERED_IN = 15.0
# One event, and then the agent goes on, as agents do.
WORK = {"most": 1, "goes_on": 0.1}


def measure(stage: Stage, report: Report, *, times: int) -> None:
    report.part("From a form to the runner's first event, received in a frame")
    submits(stage, report, times)
    decisions(stage, report, times)


def submits(stage: Stage, report: Report, times: int) -> None:
    sessions = [stage.session() for _ in range(times)]
    stage.settled(sessions)
    posts = []
    for session in sessions:
        body = urlencode({"instruction": json.dumps(WORK), "submission": ""})
        posts.append({**_form(stage), "path": f"/sessions/{session.pk}/turns/", "body": body})
    _judge(report, "submit to the runner's first event", _ask(stage, sessions, posts))


def decisions(stage: Stage, report: Report, times: int) -> None:
    sessions = parked(stage, times)
    posts = []
    for session in sessions:
        request = ApprovalRequest.objects.get(session=session)
        body = urlencode({"verdict": "approve", "digest": request.digest})
        posts.append({**_form(stage), "path": f"/approvals/{request.pk}/decision/", "body": body})
    _judge(report, "decision to the runner's first event", _ask(stage, sessions, posts))


def parked(stage: Stage, count: int) -> list[Session]:
    """Sessions whose first turn waits for a decision."""
    sessions = [stage.session(ask=True, **WORK) for _ in range(count)]
    stage.settled(sessions, "WAITING_FOR_PERMISSION")
    return sessions


def _form(stage: Stage) -> dict[str, str]:
    return {"cookies": stage.cookies[0], "token": stage.tokens[0]}


def _ask(stage: Stage, sessions: list[Session], posts: list[dict[str, str]]) -> dict[str, float]:
    with viewers() as people:
        sockets = [stage.socket(session) for session in sessions]
        people.ask(do="connect", base=stage.websockets, sockets=sockets)
        return people.ask(do="ask", base=stage.served.base.rstrip("/"), posts=posts)


def _judge(report: Report, name: str, result: dict[str, float]) -> None:
    report.below(f"{name}: p50", result["p50"], "ms", ANSWERED_IN)
    report.note(f"{name}: p95", result["p95"], "ms")
    report.note(f"{name}: the form itself is answered in", result["answered"], "ms")


def waiting(stage: Stage, report: Report, count: int = 100) -> None:
    """Many that wait on a person hold no slot: work that comes after them starts at once."""
    report.part(f"{count} sessions that wait on a person")
    sessions = parked(stage, count)
    report.at_most(
        f"{count} sessions wait on a person: slots they occupy", stage.running(), "slots", 0
    )
    one = stage.session()
    stage.settled([one])
    body = urlencode({"instruction": json.dumps(WORK), "submission": ""})
    post = {**_form(stage), "path": f"/sessions/{one.pk}/turns/", "body": body}
    result = _ask(stage, [one], [post])
    name = f"{count} sessions wait on a person: one more submits, to its first event"
    report.below(name, result["p50"], "ms", 1000)
    for session in sessions:
        session.close(Session.State.CANCELLED, by=stage.people[0])
    until(
        lambda: not Session.objects.filter(pk__in=[s.pk for s in sessions], turns__state="RUNNING"),
        "the waiting turns do not end",
    )

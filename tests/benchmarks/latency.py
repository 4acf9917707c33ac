"""From emission to the rendered frame at a websocket client, beside the floor (see `floor`)."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sessions_app.models import Session
from sessions_app.models.event import APPEND

from .load import Spec
from .report import Report, median
from .stage import Helper, Stage, database, helper, viewers

WARM = 0.3
AHEAD = 0.4


@dataclass(frozen=True)
class Load:
    name: str
    sessions: int = 1
    viewers: int = 1
    """Sockets per session."""
    rate: float = 0
    mix: str = "work"
    judged: bool = True


LOADS = (
    Load("1 session at 50/s", rate=50),
    Load("20 sessions at 20/s", sessions=20, rate=20),
    Load("1 session at 20/s with 200 viewers", viewers=200, rate=20),
    Load("20 sessions flat out", sessions=20),
    Load("20 sessions flat out, messages only", sessions=20, mix="messages", judged=False),
)


@dataclass
class Side:
    """What the rounds of one load gave on one side."""

    rounds: list[dict[str, float]] = field(default_factory=list)

    def median(self, name: str) -> float:
        return median([round[name] for round in self.rounds])


def measure(
    stage: Stage, report: Report, loads: Sequence[Load], *, rounds: int, seconds: float
) -> None:
    report.part("From emission to the rendered frame, beside the floor")
    stage.tidy()
    ours = [stage.session() for _ in range(20)]
    bare = [
        Session.objects.create(agent=stage.agent, owner=stage.people[0], title="Floor")
        for _ in range(20)
    ]
    stage.settled(ours)
    with helper("floor") as floor:
        port = floor.ask(database=database(), append=APPEND)["port"]
        for load in loads:
            product, beside = Side(), Side()
            for _ in range(rounds):
                beside.rounds.append(_floor(floor, port, load, bare[: load.sessions], seconds))
                product.rounds.append(_product(stage, load, ours[: load.sessions], seconds))
            _judge(report, load, product, beside, seconds)


def _judge(report: Report, load: Load, product: Side, beside: Side, seconds: float) -> None:
    p50, p95 = product.median("p50"), product.median("p95")
    window = seconds - WARM
    if load.judged:
        report.ratio_at_most(
            f"{load.name}: p50 beside the floor's", p50, "ms", beside=beside.median("p50"), most=3
        )
        report.below(f"{load.name}: p95 beside its own p50", p95 / p50, "x", 3)
    else:
        report.note(f"{load.name}: p50", p50, "ms", ratio=p50 / beside.median("p50"))
    report.note(f"{load.name}: p95", p95, "ms", ratio=p95 / beside.median("p95"))
    per_second = product.median("received") / window
    ratio = product.median("received") / beside.median("received")
    if load.rate:
        wanted = load.rate * load.sessions * load.viewers
        report.at_least(f"{load.name}: reached", per_second / wanted * 100, "% of its rate", 97)
        return
    cost = product.median("server") / product.median("received") * 1000
    database_cost = product.median("database") / product.median("received") * 1000
    if load.judged:
        report.at_least(f"{load.name}: events received", per_second, "events/s", 5000)
        report.at_most(f"{load.name}: server's processor time", cost, "s/1,000 events", 0.3)
        report.note(f"{load.name}: events beside the floor's", per_second, "events/s", ratio=ratio)
    else:
        report.note(f"{load.name}: events received", per_second, "events/s", ratio=ratio)
        report.note(f"{load.name}: server's processor time", cost, "s/1,000 events")
    report.note(f"{load.name}: database's processor time", database_cost, "s/1,000 events")
    per_frame = product.median("received") / product.median("frames")
    report.note(f"{load.name}: events per frame", per_frame, "events")


def _specs(load: Load, sessions: list[Session], start: float, end: float) -> dict[str, Any]:
    """One spec per session; those with a rate begin one after the other, not all at one beat."""
    apart = 1 / load.rate / len(sessions) if load.rate else 0
    return {
        session.pk: asdict(Spec(load.mix, load.rate, start + place * apart, end))
        for place, session in enumerate(sessions)
    }


def _product(stage: Stage, load: Load, sessions: list[Session], seconds: float) -> dict[str, float]:
    stage.settled(sessions)
    with viewers() as people:
        people.ask(
            do="connect",
            base=stage.websockets,
            sockets=[
                stage.socket(session, person)
                for session in sessions
                for person in range(load.viewers)
            ],
        )
        start = time.monotonic() + AHEAD + 0.05 * load.sessions
        end = start + seconds
        for session in sessions:
            spec = _specs(load, sessions, start, end)[session.pk]
            session.submit(json.dumps(spec), author=stage.people[0])
        people.tell({"do": "collect", "start": start + WARM, "until": end})
        time.sleep(max(0.0, start + WARM - time.monotonic()))
        before = stage.processor_time()
        time.sleep(max(0.0, end - time.monotonic()))
        after = stage.processor_time()
        result = people.hear()
        stage.settled(sessions)
        return {**result, "server": after[0] - before[0], "database": after[1] - before[1]}


def _floor(
    floor: Helper, port: int, load: Load, sessions: list[Session], seconds: float
) -> dict[str, float]:
    for session in sessions:
        session.refresh_from_db()
    with viewers() as people:
        people.ask(
            do="connect",
            base=f"ws://127.0.0.1:{port}",
            tell=False,
            sockets=[
                {"path": f"/{session.pk}?after={session.last_seq}", "cookies": ""}
                for session in sessions
                for _ in range(load.viewers)
            ],
        )
        start = time.monotonic() + AHEAD
        floor.tell(_specs(load, sessions, start, start + seconds))
        people.tell({"do": "collect", "start": start + WARM, "until": start + seconds})
        result = people.hear()
        floor.hear()
        return result

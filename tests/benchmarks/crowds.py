"""Many sockets: what one event costs when many watch, and what a socket costs that only waits."""

from __future__ import annotations

import json
import time
from typing import Any

from sessions_app.models import Session

from .report import Report
from .stage import Helper, Stage, viewers

RATE = 20


def measure(stage: Stage, report: Report, *, sockets: int, events: int) -> None:
    report.part(f"{sockets} sockets")
    one = stage.session()
    many = [
        Session.objects.create(agent=stage.agent, owner=stage.people[0], title="One of many")
        for _ in range(sockets)
    ]
    stage.settled([one])
    with viewers() as people:
        # What the first sockets of a process load and allocate is not what one more costs.
        _connect(stage, people, [stage.socket(one, n) for n in range(40)])
        _say(stage, people, one, events)
        people.ask(do="leave")
    with viewers() as people:
        _connect(stage, people, [stage.socket(one)])
        alone = _say(stage, people, one, events)
        people.ask(do="leave")
    with viewers() as crowd, viewers() as others:
        before = stage.memory()
        _connect(stage, crowd, [stage.socket(one, n) for n in range(sockets)])
        together = stage.memory()
        _connect(stage, others, [stage.socket(s, n) for n, s in enumerate(many)])
        apart = stage.memory()
        counts = _say(stage, crowd, one, events)
        report.below(
            f"{sockets} sockets on one session: memory of an idle socket",
            (together - before) / sockets / 1024, "KiB", 50,
        )  # fmt: skip
        report.below(
            f"{sockets} sockets on {sockets} sessions: memory of an idle socket",
            (apart - together) / sockets / 1024, "KiB", 50,
        )  # fmt: skip
        for what in ("reads", "renders"):
            report.ratio_at_most(
                f"{sockets} sockets on one session: {what} per event, beside one socket's",
                counts[what], what, beside=alone[what], most=1.1,
            )  # fmt: skip
        report.note(
            f"{sockets} sockets on one session: frames per event and socket",
            counts["frames"], "frames",
        )  # fmt: skip
        _spread(stage, report, many, others)


def _connect(stage: Stage, people: Helper, sockets: list[dict[str, str]]) -> None:
    people.ask(do="connect", base=stage.websockets, sockets=sockets)
    time.sleep(1)  # Until the feeds have made their first look.


def _say(stage: Stage, people: Helper, session: Session, events: int) -> dict[str, Any]:
    """Have a session say something; return reads, renders and frames per event and socket."""
    before, start = stage.counted(), time.monotonic() + 0.5
    told = {"mix": "messages", "rate": RATE, "start": start, "most": events}
    session.submit(json.dumps(told), author=stage.people[0])
    end = start + events / RATE + 0.5
    result = people.ask(do="collect", start=start, until=end)
    after = stage.counted()
    stage.settled([session])
    sockets = result["count"] / events
    return {
        "reads": (after["reads"] - before["reads"]) / events,
        "renders": (after["renders"] - before["renders"]) / events,
        "frames": result["frames"] / max(1, sockets) / events,
    }


def _spread(stage: Stage, report: Report, many: list[Session], people: Helper) -> None:
    """Let one in ten of the watched sessions speak: the feeds of the others stay quiet."""
    before, start = stage.counted(), time.monotonic() + len(many) / 150
    speaking, events = many[::10], 4
    told = {"mix": "messages", "rate": 2, "start": start, "most": events}
    for session in speaking:
        session.submit(json.dumps(told), author=stage.people[0])
    result = people.ask(do="collect", start=start, until=start + events / 2 + 0.5)
    after = stage.counted()
    said = len(speaking) * events
    name = f"{len(many)} sockets on {len(many)} sessions"
    report.note(
        f"{name}: reads per event",
        (after["reads"] - before["reads"]) / said, "reads",
    )  # fmt: skip
    report.note(
        f"{name}: frames per event",
        result["frames"] / said, "frames",
    )  # fmt: skip

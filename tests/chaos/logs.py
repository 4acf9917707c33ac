"""The logs of all processes: what may be said while things break, and what may not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from .report import LINES, Findings
from .stage import Member

START = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ([A-Z]+) (.*)$")
IDS = re.compile(r"\b(ses|trn|turn)_\w+|\b[\w.-]+:\d+:[0-9a-f]{6}\b|\d+")

TAKEN_UP = r".* was lost by \S+; \S+ takes it up\."
DATABASE_AWAY = (
    r"The job table does not answer: .*",
    r"(Session \w+|heartbeat|rescue|forget_dead_jobs|\S+:\d+) waits for the database: .*",
    r"\S+ is handed back: the database was away\.",
    r"Service Unavailable: .*",
    r"Looking for news failed, trying again: .*",
    r"A page has to come back for its socket: .*",
)
REDIS_AWAY = (
    r"Redis does not answer; everything comes by timer until it does: .*",
    r"Redis answers again, after \d+ s\.",
)
NOT_HELD = r".* is not held here any more; nothing more is written\."


def entries(text: str) -> Iterator[str]:
    """Yield each log entry with what belongs to it, such as a traceback."""
    entry: list[str] = []
    for line in text.splitlines():
        if START.match(line) and entry:
            yield "\n".join(entry)
            entry = []
        entry.append(line)
    if entry:
        yield "\n".join(entry)


def check_logs(members: Sequence[Member], expected: Sequence[str], findings: Findings) -> None:
    """Every entry is one that the faults explain; entries with a traceback never are."""
    allowed = [re.compile(pattern) for pattern in expected]
    explained: Counter[str] = Counter()
    for member in members:
        for entry in entries(member.log.read_text()):
            found = START.match(entry)
            message = found[2].partition(": ")[2] if found else ""
            matching = [each.pattern for each in allowed if each.fullmatch(message)]
            if found and "\n" not in entry and matching:
                explained[matching[0]] += 1
            else:
                findings.fault(LINES, f"{member.name}: {_short(entry)}")
    findings.fact(f"{explained.total()} log lines that the faults explain")


def _short(entry: str) -> str:
    lines = entry.splitlines()
    return lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"

"""What a scenario found, and the table of it."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

LOST, DUPLICATED, DISORDERED = "lost", "duplicated", "out of order"
TWICE, STUCK, LINES, OTHER = "run twice", "stuck > 15 s", "unexplained lines", "other"
KINDS = (LOST, DUPLICATED, DISORDERED, TWICE, STUCK, LINES, OTHER)

TOLD = 12

BEGIN, END = "<!-- result -->", "<!-- end of the result -->"


class Findings:
    """The faults of one scenario, counted by kind, and the figures that say what it did."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.facts: list[str] = []
        self._lock = threading.Lock()

    def fault(self, kind: str, what: str) -> None:
        with self._lock:
            self.counts[kind] += 1
            told = self.examples.setdefault(kind, [])
            if len(told) < TOLD:
                told.append(what)

    def fact(self, text: str) -> None:
        self.facts.append(text)

    @property
    def ok(self) -> bool:
        return not self.counts

    def told(self) -> str:
        """Every fault, or the first of many."""
        lines = []
        for kind, told in self.examples.items():
            lines += [f"  {kind}: {what}" for what in told]
            if more := self.counts[kind] - len(told):
                lines.append(f"  {kind}: and {more} more")
        return "\n".join(lines)


def table(findings: list[Findings]) -> str:
    """One row per scenario, and below it what each has done, as Markdown."""
    heads = ["scenario", *KINDS]
    rows = [heads, ["---", *["--:"] * len(KINDS)]]
    rows += [[found.name, *(str(found.counts[kind]) for kind in KINDS)] for found in findings]
    told = [f"* **{found.name}**: {'; '.join(found.facts)}." for found in findings]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", *told])


def write(text: str, page: Path) -> None:
    """Put the result of a run between the marks of a page."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{page} has no place for a result"
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")

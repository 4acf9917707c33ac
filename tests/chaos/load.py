"""Twenty sessions that run without a pause, each watched by a reader: what faults are made in."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from random import Random

from .checks import check_readers, check_stream, check_work, told, wait_for_the_end
from .monitor import Monitor
from .people import Author, Decider, Doing, Page
from .readers import Reader, Readers, Rows
from .report import Findings
from .stage import Stage

DRAIN_SECONDS = 90.0
CATCH_UP_SECONDS = 20.0


class Load:
    """Alice's sessions, bob's decisions, the readers and the monitor."""

    def __init__(self, stage: Stage, findings: Findings, seed: str, sessions: int) -> None:
        self.stage, self.findings, self.seed = stage, findings, seed
        self.enough, self.over = threading.Event(), threading.Event()
        self.monitor = Monitor(stage, findings, self.over)
        alice, bob = Page(stage, self.random("alice")), Page(stage, self.random("bob"))
        alice.sign_in("alice")
        bob.sign_in("bob")
        self.decider = Decider(bob, findings, self.over)
        self.authors = [
            Author(
                number,
                Page(stage, self.random(f"author {number}"), like=alice),
                findings,
                self.enough,
                self.monitor.is_busy,
            )
            for number in range(1, sessions + 1)
        ]
        for author in self.authors:
            author.page.enhanced = True
        self.readers = Readers()

    def random(self, what: str) -> Random:
        return Random(f"{self.seed}/{what}")

    def start(self) -> None:
        agent = str(self.stage.one("SELECT id FROM sessions_app_agent"))
        self.monitor.start()
        self.decider.start()
        for author in self.authors:
            author.open(agent)
        self.readers.start([self._reader(author) for author in self.authors])
        for author in self.authors:
            author.start()

    def _reader(self, author: Author) -> Reader:
        name = f"reader {author.number}"
        return Reader(
            name, self.stage, author.session, author.page.cookies(),
            self.random(name), Rows(name, self.findings),
        )  # fmt: skip

    def _again(self, reader: Reader, rows: Rows) -> Reader:
        return Reader(
            rows.name, self.stage, reader.session, reader.cookies, self.random(rows.name), rows
        )

    def finish(self) -> None:
        """Submit no more, wait until all is done, and check all of it."""
        self.enough.set()
        _join(self.authors)
        wait_for_the_end(self.stage, DRAIN_SECONDS)
        self.over.set()
        _join([self.decider, self.monitor])
        lasts = dict(self.stage.rows("SELECT id, last_seq FROM sessions_app_session"))
        for reader in self.readers.readers:
            reader.target = lasts[reader.session]
        self.readers.finish(CATCH_UP_SECONDS)
        self.readers.close()
        self._check()

    def _check(self) -> None:
        check_stream(self.stage, self.findings)
        check_work(self.stage, self.authors, self.findings)
        check_readers(self.readers.readers, self.stage, self.findings, self._again)
        self.monitor.tell()
        repeats = sum(author.page.repeats for author in self.authors) + self.decider.page.repeats
        codes = sum((reader.codes for reader in self.readers.readers), Counter())
        events = self.stage.one("SELECT count(*) FROM sessions_app_event")
        self.findings.fact(f"{events} events")
        self.findings.fact(f"{repeats} requests repeated")
        closed = told(Counter({f"with {code}": count for code, count in codes.items()})) or "none"
        self.findings.fact(f"sockets closed by the other side: {closed}")
        self.findings.fact(
            f"{self.decider.approved} steps approved, {self.decider.rejected} not run again"
        )


def _join(doings: list[Doing] | list[Author]) -> None:
    for doing in doings:
        doing.join(DRAIN_SECONDS)
        if doing.is_alive():
            print(f"{doing.name} does not come to an end", file=sys.stderr)

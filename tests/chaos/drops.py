"""Sockets cut off at random moments, while readers follow a session that goes on fast."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from random import Random

from tests.installation import ROOT

from .checks import NUMBERS
from .logs import check_logs
from .people import Page
from .readers import Reader, Readers, Rows
from .report import DISORDERED, DUPLICATED, LOST, OTHER, Findings
from .stage import Stage

READERS = 20
RATE = 400.0
LENGTH = 120
CATCH_UP_SECONDS = 20.0
WRITTEN_SECONDS = 600.0
TEXT = re.compile(r"<p>(number \d+ at [^<]*)</p>")
STORED = """
SELECT seq, data->>'text' FROM sessions_app_event
 WHERE session_id = %s AND type = 'message.created' ORDER BY seq
"""


class Writing:
    """The process with the writers, and the session that they write to."""

    def __init__(
        self, stage: Stage, *, events: int, rate: float, length: int = LENGTH, seed: str
    ) -> None:
        arguments = [str(events), str(rate), str(length), seed]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.writing", *arguments],
            cwd=ROOT,
            env=stage.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.session = self.process.stdout.readline().strip()
        assert self.session, "the writers do not start"

    def begin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    @property
    def goes_on(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class Texts(Rows):
    """Keeps what the rows say, not how they look."""

    def _put(self, seq: int, html: str) -> None:
        super()._put(seq, html)
        found = TEXT.search(html)
        self.rows[seq] = found[1] if found else ""


class Dropper:
    """Cuts sockets off on the loop of the readers, as a network does: nobody says goodbye."""

    def __init__(self, readers: Readers, random: Random) -> None:
        self.readers, self.random = readers, random
        self.dropped = 0

    def drop(self) -> None:
        self.readers.loop.call_soon_threadsafe(self._drop)

    def _drop(self) -> None:
        plugs = [reader.connected for reader in self.readers.readers]
        whole = [plug for plug in plugs if plug is not None and plug.fraction is None]
        if not whole:
            return
        plug = self.random.choice(whole)
        self.dropped += 1
        plug.fraction = self.random.random()
        # Half of them in the middle of what comes next.
        if self.random.random() < 0.5:
            plug.pull()


def drops(stage: Stage, findings: Findings, seed: int, *, rounds: int, events: int) -> None:
    random = Random(f"{seed}/drops")
    page = Page(stage, random)
    page.sign_in("alice")
    writing = Writing(stage, events=events, rate=RATE, seed=f"{seed}/drops")
    readers = Readers()
    dropper = Dropper(readers, random)
    try:
        readers.start([_reader(n, stage, page, writing, seed, findings) for n in range(READERS)])
        writing.begin()
        began = time.monotonic()
        _drop_while(writing, dropper, rounds, events / RATE / rounds, random)
        if writing.process.wait(WRITTEN_SECONDS) != 0:
            findings.fault(OTHER, "the writers failed")
        wrote = time.monotonic() - began
        [last] = stage.rows("SELECT last_seq FROM sessions_app_session")[0]
        for reader in readers.readers:
            reader.target = last
        readers.finish(CATCH_UP_SECONDS)
        read = time.monotonic() - began
    finally:
        writing.end()
        readers.close()
    _check(stage, writing, readers, events, findings)
    findings.fact(
        f"{READERS} readers of one session with {events} messages, written in "
        f"{wrote:.0f} s and read by all in {read:.0f} s"
    )
    cuts = sum(reader.cuts for reader in readers.readers)
    findings.fact(f"{dropper.dropped} sockets cut off, {cuts} of them inside a frame")
    findings.fact(f"{sum(r.connections for r in readers.readers)} connections")
    stage.stop(findings)
    check_logs(stage.members, [], findings)


def _reader(
    number: int, stage: Stage, page: Page, writing: Writing, seed: int, findings: Findings
) -> Reader:
    name = f"reader {number + 1}"
    random = Random(f"{seed}/drops/{name}")
    return Reader(name, stage, writing.session, page.cookies(), random, Texts(name, findings))


def _drop_while(
    writing: Writing, dropper: Dropper, rounds: int, pace: float, random: Random
) -> None:
    """Cut off so many sockets, and end no sooner than the writers."""
    while dropper.dropped < rounds or writing.goes_on:
        time.sleep(random.expovariate(1 / pace))
        dropper.drop()


def _check(
    stage: Stage, writing: Writing, readers: Readers, events: int, findings: Findings
) -> None:
    stored = dict(stage.rows(STORED, writing.session))
    if len(stored) != events or len(set(stored.values())) != events:
        findings.fault(LOST, f"{len(stored)} messages are stored, not {events}")
    for session, last, count, first, highest in stage.rows(NUMBERS):
        if (count, first, highest) != (last, 1, last):
            findings.fault(LOST, f"{session} has {count} events, {first} to {highest}")
    for reader in readers.readers:
        rows = reader.assembled.rows
        seen = {seq: text for seq, text in rows.items() if text}
        if list(seen) != sorted(seen):
            findings.fault(DISORDERED, f"{reader.name} has its rows in another order")
        for seq in stored.keys() - seen.keys():
            findings.fault(LOST, f"{reader.name} has not {seq}")
        for seq in seen.keys() - stored.keys():
            findings.fault(DUPLICATED, f"{reader.name} has {seq}, which is not stored")
        for seq in seen.keys() & stored.keys():
            if seen[seq] != stored[seq]:
                findings.fault(LOST, f"{reader.name} has another text in {seq}: {seen[seq][:80]}")

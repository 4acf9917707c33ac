"""Looks twice a second for work that nobody does, and remembers how long that lasted."""

from __future__ import annotations

import threading
import time
from collections import Counter

from .people import Doing
from .report import STUCK, Findings
from .stage import Stage

SAMPLE_SECONDS = 0.5
MOST_SECONDS = 15.0

Key = tuple[str, int]
"""A turn and an attempt at it."""

UNFINISHED = """
SELECT turn.id, turn.session_id, turn.attempt, turn.holder, turn.state,
       CASE turn.state
       WHEN 'RUNNING' THEN turn.lease_until IS NULL OR turn.lease_until < clock_timestamp()
       WHEN 'QUEUED' THEN NOT EXISTS (
            SELECT FROM sessions_app_turn other
             WHERE other.session_id = turn.session_id AND other.id <> turn.id
               AND (other.state IN ('RUNNING', 'WAITING_FOR_INPUT', 'WAITING_FOR_PERMISSION')
                    OR other.state = 'QUEUED'
                       AND (other.position, other.number) < (turn.position, turn.number)))
       ELSE false END
  FROM sessions_app_turn turn
 WHERE turn.state NOT IN ('COMPLETED', 'FAILED', 'CANCELLED')
"""


class Waits:
    """How long each of several things lasted, as far as samples tell."""

    def __init__(self) -> None:
        self.whole: dict[Key, float] = {}
        self.attended: dict[Key, float] = {}
        """The part of it in which somebody was there to end it."""
        self._going: set[Key] = set()
        self._sampled = 0.0

    def sample(self, going: dict[Key, float], now: float, *, attended: bool = True) -> None:
        """Take note of what goes on now, each with when it began as far as that is known."""
        for key, began in going.items():
            more = now - (self._sampled if key in self._going else began)
            self.whole[key] = self.whole.get(key, 0.0) + more
            self.attended[key] = self.attended.get(key, 0.0) + (more if attended else 0.0)
        # What is over has ended at some time since the last sample: all of it is counted.
        for key in self._going - going.keys():
            self.whole[key] += now - self._sampled
            self.attended[key] += now - self._sampled if attended else 0.0
        self._going, self._sampled = set(going), now


class Monitor(Doing):
    def __init__(self, stage: Stage, findings: Findings, over: threading.Event) -> None:
        super().__init__("the monitor", findings, over)
        self.stage = stage
        self.unheld = Waits()
        self.orphaned = Waits()
        self._busy: Counter[str] = Counter()

    def do(self) -> None:
        rows = self.stage.rows(UNFINISHED)
        now = time.monotonic()
        self._busy = Counter(row[1] for row in rows)
        self.unheld.sample({(row[0], row[2]): now for row in rows if row[5]}, now)
        # From the death of whoever held it, which nobody can know for as long as the lease runs.
        # Times when no worker was there to take anything up are on nobody's account.
        attended = any(worker.lives and worker.is_ready for worker in self.stage.workers)
        dead = dict(self.stage.dead)
        held_by = {(row[0], row[2]): _pid(row[3]) for row in rows if row[4] == "RUNNING"}
        orphaned = {key: dead[pid] for key, pid in held_by.items() if pid in dead}
        self.orphaned.sample(orphaned, now, attended=attended)
        self.over.wait(SAMPLE_SECONDS)

    def is_busy(self, session: str, turns: int) -> bool:
        return self._busy[session] >= turns

    def tell(self) -> None:
        """Report the longest waits, and those that were too long."""
        for what, waits in (
            ("nobody held it", self.unheld.whole),
            ("its worker had died and another was there", self.orphaned.attended),
        ):
            for (turn, attempt), seconds in waits.items():
                if seconds > MOST_SECONDS:
                    text = f"{turn}, attempt {attempt}: {what} for {seconds:.1f} s"
                    self.findings.fault(STUCK, text)
        self.findings.fact(
            f"a turn was unheld for at most {_longest(self.unheld.whole)}; after the death of its "
            f"worker it was taken up after at most {_longest(self.orphaned.whole)}, of which "
            f"{_longest(self.orphaned.attended)} with another worker there"
        )


def _longest(waits: dict[Key, float]) -> str:
    return f"{max(waits.values(), default=0.0):.1f} s"


def _pid(holder: str) -> int:
    """The process in `host:pid:token`; 0 for nobody."""
    return int(holder.split(":")[1]) if holder.count(":") == 2 else 0

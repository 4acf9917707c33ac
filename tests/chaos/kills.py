"""SIGKILL of a random process at a random moment, again and again."""

from __future__ import annotations

import time
from collections import Counter
from random import Random

from .load import Load
from .logs import TAKEN_UP, check_logs
from .report import OTHER, Findings
from .stage import Stage

EXPECTED = [TAKEN_UP]


def kills(
    stage: Stage, findings: Findings, seed: int, *, rounds: int, sessions: int, pace: float
) -> None:
    random = Random(f"{seed}/kills")
    load = Load(stage, findings, f"{seed}/kills", sessions)
    load.start()
    killed: Counter[str] = Counter()
    for number in range(1, rounds + 1):
        time.sleep(random.uniform(0.5, pace))
        member = random.choice(stage.members)
        try:
            member.kill()
        except AssertionError as error:
            findings.fault(OTHER, str(error))
        killed[member.name] += 1
        time.sleep(random.uniform(0.0, 1.0))
        member.start()
        if number % 20 == 0:
            print(f"  {number} kills", flush=True)
    stage.wait_until_ready(*stage.members)
    findings.fact(f"{rounds} kills ({', '.join(f'{n} of {m}' for m, n in sorted(killed.items()))})")
    findings.fact(f"{sessions} sessions")
    load.finish()
    stage.stop(findings)
    check_logs(stage.members, EXPECTED, findings)

"""Redis and PostgreSQL restarted under load; every process of the product has to live on."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random

import redis

from .load import Load
from .logs import DATABASE_AWAY, NOT_HELD, REDIS_AWAY, TAKEN_UP, check_logs
from .report import OTHER, Findings
from .stage import Stage, pids

BACK_SECONDS = 30.0
DONE_SINCE = """
SELECT count(*) FROM sessions_app_event
 WHERE type = 'tool_call.completed' AND data->>'status' = 'succeeded' AND created_at > %s
"""

EXPECTED = [TAKEN_UP, NOT_HELD, *DATABASE_AWAY, *REDIS_AWAY]


class Restarts:
    """The ways in which something is restarted, and what has to be back after it."""

    def __init__(self, stage: Stage, random: Random) -> None:
        self.stage, self.random = stage, random
        self.ways: dict[str, Callable[[], Callable[[], bool]]] = {
            "Redis killed and started empty": self.redis,
            "PostgreSQL restarted (fast)": lambda: self.database("fast"),
            "PostgreSQL restarted (immediate)": lambda: self.database("immediate"),
        }

    def redis(self) -> Callable[[], bool]:
        before = self._channels()
        self.stage.redis.kill()
        time.sleep(self.random.uniform(0.0, 3.0))
        self.stage.redis.start()
        # Sessions are watched as before, so their hints have to be asked for as before.
        return lambda: self._channels() >= before

    def _channels(self) -> int:
        try:
            with redis.Redis(port=self.stage.redis.port) as asked:
                return len(asked.pubsub_channels())
        except redis.RedisError:
            return -1

    def database(self, mode: str) -> Callable[[], bool]:
        self.stage.restart_database(mode)
        now = self.stage.one("SELECT clock_timestamp()")
        return lambda: bool(self.stage.one(DONE_SINCE, now))


def restarts(
    stage: Stage, findings: Findings, seed: int, *, rounds: int, sessions: int, pace: float
) -> None:
    random = Random(f"{seed}/restarts")
    load = Load(stage, findings, f"{seed}/restarts", sessions)
    lives = pids(stage.members)
    load.start()
    ways = Restarts(stage, random)
    took: dict[str, list[float]] = {name: [] for name in ways.ways}
    order = [name for name in ways.ways for _ in range(rounds)]
    random.shuffle(order)
    for name in order:
        time.sleep(random.uniform(pace / 2, pace))
        print(f"  {name}", flush=True)
        is_back = ways.ways[name]()
        took[name].append(_until(is_back, name, findings))
    time.sleep(pace)
    for member in stage.members:
        if not member.lives:
            findings.fault(OTHER, f"{member.name} has ended by itself")
    assert pids(stage.members) == lives
    for name, seconds in took.items():
        findings.fact(f"{name} {len(seconds)} times, back after at most {max(seconds):.1f} s")
    findings.fact(f"{sessions} sessions")
    load.finish()
    stage.stop(findings)
    check_logs(stage.members, EXPECTED, findings)


def _until(is_back: Callable[[], bool], name: str, findings: Findings) -> float:
    began = time.monotonic()
    while not is_back():
        if time.monotonic() > began + BACK_SECONDS:
            findings.fault(OTHER, f"{name}: not back after {BACK_SECONDS:.0f} s")
            break
        time.sleep(0.05)
    return time.monotonic() - began

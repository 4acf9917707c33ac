"""`python -m tests.chaos.writing`: writers in a process of their own, over the product's own door.

Prints the id of a fresh session first and records when told to by a line on standard input.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from random import Random

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup()

from django.contrib.auth.models import User  # noqa: E402
from django.db import transaction  # noqa: E402

from sessions_app import live  # noqa: E402
from sessions_app.events import MessageCreated  # noqa: E402
from sessions_app.models import Agent, Session  # noqa: E402
from sessions_app.threads import in_thread  # noqa: E402

WRITERS = 6
MOST_AT_ONCE = 20


def open_session() -> Session:
    with transaction.atomic():
        session, _ = Session.objects.open(
            agent=Agent.objects.get(), owner=User.objects.get(username="alice"), title="Written"
        )
    return session


def record(session: Session, texts: list[str]) -> None:
    with transaction.atomic():
        session.record(*(MessageCreated(role="assistant", text=text) for text in texts))


class Numbers:
    """Gives out what is to be written, and no faster than so many events per second."""

    def __init__(self, events: int, rate: float) -> None:
        self.events, self.rate, self.given = events, rate, 0
        self.began = time.monotonic()

    def take(self, count: int) -> range:
        first = self.given + 1
        self.given = min(self.given + count, self.events)
        return range(first, self.given + 1)

    async def wait(self) -> None:
        await asyncio.sleep(max(0.0, self.began + self.given / self.rate - time.monotonic()))


async def write(session: Session, numbers: Numbers, length: int, random: Random) -> None:
    while taken := numbers.take(random.randint(1, MOST_AT_ONCE)):
        await numbers.wait()
        await in_thread(record, session, [text_of(number, length, random) for number in taken])


def text_of(number: int, length: int, random: Random) -> str:
    """A text that no other has, with the time at which it was made and some words more."""
    filler = "word " * (random.randint(0, 2 * length) // 5)
    return f"number {number} at {time.time():.4f} {filler}".strip()


async def main(events: int, rate: float, length: int, seed: str) -> None:
    live.attach(asyncio.get_running_loop())
    session = await in_thread(open_session)
    print(session.pk, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    numbers = Numbers(events, rate)
    writers = (
        write(session, numbers, length, Random(f"{seed}/writer {n}")) for n in range(WRITERS)
    )
    await asyncio.gather(*writers)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))

"""What every worker sees to now and then for apps that the engine does not know."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Chore(NamedTuple):
    """Done in a thread, by all workers at the same time: it has to bear that."""

    do: Callable[[], object]
    seconds: float
    """From the end of one time to the beginning of the next."""


_chores: dict[str, Chore] = {}


def register(name: str, do: Callable[[], object], *, seconds: float) -> None:
    """Have something done by every worker every so many seconds."""
    _chores[name] = Chore(do, seconds)


def registered() -> dict[str, Chore]:
    return dict(_chores)

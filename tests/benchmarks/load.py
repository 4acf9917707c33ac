"""What a load says: the same events for the product and for the floor, some 200 bytes each.

Each carries its number and the moment it was emitted, before it is stored, by the clock that all
processes of a machine share.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

MARK = re.compile(r"@(\d+) (\d+\.\d+)@")
WORDS = "the quick brown fox jumps over the lazy dog and runs along the river to the old mill "


@dataclass(frozen=True)
class Spec:
    """What one session says, from when to when (by the monotonic clock), and how fast."""

    mix: str = "work"
    """`work`: a message, four calls with their results and a progress; `messages`: messages."""
    rate: float = 0
    """Events per second; 0 is as fast as it is let."""
    start: float = 0
    until: float = 0
    most: int = 10**9


def said(spec: Spec, number: int) -> tuple[str, dict[str, Any]]:
    """Return the type and the data of an event that is emitted now."""
    mark = f"@{number} {time.monotonic():.6f}@"
    place = number % 10 if spec.mix == "work" else 0
    if place == 0:
        return "message.created", {"role": "assistant", "text": f"{mark} {WORDS}{WORDS[:50]}"}
    if place == 9:
        return "progress.updated", {"label": f"{mark} {WORDS}{WORDS[:70]}", "fraction": 0.5}
    call = f"{number // 10}-{(place + 1) // 2}"
    if place % 2:
        return "tool_call.started", {
            "call_id": call,
            "kind": "file",
            "tool": "read_file",
            "title": f"Read {mark}",
            "arguments": {"path": "src/tools/quick/brown/fox.py", "from": number, "lines": 200},
        }
    output = {"head": f"{mark} {WORDS[:60]}", "size": 90}
    return "tool_call.completed", {
        "call_id": call,
        "status": "succeeded",
        "duration_ms": 12,
        "output": output,
    }


async def emitted(spec: Spec) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Yield events at the wanted rate; what is late is said at once, so the rate is kept."""
    await asyncio.sleep(max(0.0, spec.start - time.monotonic()))
    for number in range(1, spec.most + 1):
        if spec.rate:
            due = spec.start + number / spec.rate
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
        if spec.until and time.monotonic() >= spec.until:
            return
        yield said(spec, number)

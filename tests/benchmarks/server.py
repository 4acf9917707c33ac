"""The product as it is served, with one runner more: it says what a load tells it to.

Reads and renders are counted from outside, and told when a line comes on the standard input.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import django
from django.core.management import call_command

from sessions_app import events
from sessions_app.runners import registry
from sessions_app.runners.base import Action, Capabilities, TurnContext

from . import load

counted: Counter[str] = Counter()


class LoadRunner:
    """Its instruction is JSON: what to say, whether to ask a person first, how long to go on."""

    kind = "load"
    label = "Load"
    capabilities = Capabilities(resumes=True, cancels=True)

    def check(self, instruction: str) -> list[Any]:
        return []

    async def run(self, turn: TurnContext) -> AsyncIterator[events.Payload]:
        told = json.loads(turn.instruction)
        if told.pop("ask", False):
            await turn.permit("load", ACTION, title="true", ask=True)
        goes_on = told.pop("goes_on", 0)
        async for type, data in load.emitted(load.Spec(**told)):
            yield events.PAYLOADS[type](**data)
        await asyncio.sleep(goes_on)


ACTION = Action(kind="shell", tool="bash", source="true\n", timeout=5, confined=True, network=False)


def count(where: Any, name: str, what: Callable[..., str]) -> None:
    """Count the calls of a function, under the name that `what` gives a call."""
    original = getattr(where, name)

    def counting(*args: Any, **kwargs: Any) -> Any:
        counted[what(*args, **kwargs)] += 1
        return original(*args, **kwargs)

    setattr(where, name, counting)


def tell() -> None:
    for _ in sys.stdin:
        print(json.dumps(counted), flush=True)


def main() -> None:
    django.setup()
    from sessions_app import feeds, timeline

    count(timeline, "drawing", lambda *_: "renders")
    count(feeds.Feed, "_read", lambda *_: "reads")
    registry.register(LoadRunner())
    threading.Thread(target=tell, daemon=True).start()
    call_command("serve")


if __name__ == "__main__":
    main()

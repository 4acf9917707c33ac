"""What is checked before an instruction becomes a turn."""

from __future__ import annotations

from .events import storable
from .models import Agent
from .runners import registry
from .runners.base import Problem


def written(text: str) -> str:
    """What a person wrote, with the line ends it was written with: forms send CR LF.

    NUL, which cannot be stored, becomes its visible sign, as it does in events.
    """
    return str(storable(text.replace("\r\n", "\n")))


def problems(agent: Agent, instruction: str) -> list[Problem]:
    """Ask the agent's runner what is wrong with an instruction; an empty list lets it pass."""
    try:
        runner = registry.get(agent.runner)
    except KeyError as error:
        return [Problem(1, f"{agent.name} cannot work. {error.args[0]}")]
    return runner.check(instruction)

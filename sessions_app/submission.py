"""What is checked before an instruction becomes a turn."""

from __future__ import annotations

from .models import Agent
from .runners import registry
from .runners.base import Problem


def problems(agent: Agent, instruction: str) -> list[Problem]:
    """Ask the agent's runner what is wrong with an instruction; an empty list lets it pass."""
    return registry.get(agent.runner).check(instruction)

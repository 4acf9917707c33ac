"""Pure functions from an action and an agent's rules to a ruling: allow, ask or deny."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sessions_app.runners.base import Action

# What makes a shell do more than run one program with literal words.
# The carriage return is a blank to shlex, and part of a word to the shell.
_SYNTAX = set("\n\r;&|<>()$`\\*?[]{}~#!")


@dataclass(frozen=True)
class Ruling:
    """What the gate says, and the rule that made it say so."""

    verdict: Literal["allow", "ask", "deny"]
    rule: str


@dataclass(frozen=True)
class Rules:
    """An agent's gate, in its first form."""

    allow_confined: bool
    allowed_commands: Sequence[str]


def rule_on(action: Action, rules: Rules, *, ask: bool) -> Ruling:
    """Rule on an action. `ask` can only tighten the result. Raises TypeError for broken rules."""
    if not isinstance(rules.allowed_commands, list | tuple):
        # A text would be read letter by letter.
        raise TypeError("the allowed commands are not a list")
    if ask:
        return Ruling("ask", "this step asks for approval")
    if rules.allow_confined and action.confined and not action.network:
        return Ruling("allow", "confined without network")
    if (words := literal_words(action)) is not None:
        for allowed in rules.allowed_commands:
            if isinstance(allowed, str) and words == _split(allowed):
                return Ruling("allow", f"“{allowed}” is an allowed command")
    if action.confined:
        return Ruling("ask", "this agent asks before every step")
    return Ruling("ask", "the step is not confined")


def literal_words(action: Action) -> list[str] | None:
    """Return the words of a step that runs one program with literal arguments, else None.

    Only such a step can be compared with an allowed command: `ls; rm -rf x` is not `ls`.
    """
    if action.tool not in {"sh", "bash"}:
        return None
    # Only what is blank to the shell: other white space is part of a word there.
    return _split(action.source.strip(" \t\n"))


def _split(command: str) -> list[str] | None:
    if _SYNTAX & set(command):
        return None
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    # `NAME=value program` sets a variable first, such as PATH.
    if not words or "=" in words[0]:
        return None
    return words

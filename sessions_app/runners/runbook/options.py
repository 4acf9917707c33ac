"""The options of a block: `key=value` words behind the language, read by the rules of shlex."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

MAX_TIMEOUT = 86_400
MAX_LENGTH = 2_000

Options = Mapping[str, Callable[[str], object]]
"""The options a kind of block takes, each with what reads its value or raises ValueError."""


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,39}", value):
        raise ValueError("`name` is a letter and up to 39 more letters, digits, `-` or `_`.")
    return value


def _timeout(value: str) -> float:
    if not re.fullmatch(r"[0-9]*\.?[0-9]+", value) or not 0 < float(value) <= MAX_TIMEOUT:
        raise ValueError(
            f"`timeout` is a number of seconds above 0 and at most {MAX_TIMEOUT}, "
            f"not `{_shown(value)}`."
        )
    return float(value)


def _gate(value: str) -> bool:
    if value == "allow":
        raise ValueError(
            "`gate=allow` is refused: a block may tighten its gate, never loosen it. "
            "The only value is `gate=ask`."
        )
    if value != "ask":
        raise ValueError(f"`gate` can only be `ask`, not `{_shown(value)}`.")
    return True


def _retry(value: str) -> bool:
    if value != "safe":
        raise ValueError(
            f"`retry` can only be `safe`, not `{_shown(value)}`: it says that the step may be run "
            "again by itself after the server stopped in the middle of it."
        )
    return True


def _flow(key: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in ("stop", "continue"):
            raise ValueError(f"`{key}` is `stop` or `continue`, not `{_shown(value)}`.")
        return value

    return read


def _words(key: str, longest: int) -> Callable[[str], str]:
    def read(value: str) -> str:
        if not value.strip():
            raise ValueError(f"`{key}` is empty.")
        if len(value) > longest:
            raise ValueError(f"`{key}` has {len(value)} characters; at most {longest} are allowed.")
        return value.strip()

    return read


STEP: Options = {
    "name": _name,
    "timeout": _timeout,
    "gate": _gate,
    "on-reject": _flow("on-reject"),
    "on-failure": _flow("on-failure"),
    "retry": _retry,
    "why": _words("why", 500),
}
DELEGATION: Options = {
    "agent": _words("agent", 120),
    "name": _name,
    "on-failure": _flow("on-failure"),
}
DIAGRAM: Options = {"name": _name, "title": _words("title", 200)}


def read(text: str, known: Options) -> tuple[dict[str, Any], list[str]]:
    """Read the words behind a block's language: the good values by key, and what is wrong."""
    if len(text) > MAX_LENGTH:
        return {}, [f"The options have {len(text)} characters; at most {MAX_LENGTH} are allowed."]
    try:
        words = shlex.split(text)
    except ValueError:
        return {}, ["A quote in the options is never closed."]
    values: dict[str, Any] = {}
    wrong: list[str] = []
    seen: set[str] = set()
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in known:
            wrong.append(_unknown(key, bool(equals), known))
        elif key in seen:
            wrong.append(f"The option `{key}` is given twice.")
        else:
            try:
                values[key] = known[key](value)
            except ValueError as error:
                wrong.append(str(error))
        seen.add(key)
    return values, wrong


def _unknown(key: str, has_value: bool, known: Options) -> str:
    if key in known and not has_value:
        return f"The option `{key}` has no value: write `{key}=…`."
    names = ", ".join(f"`{name}`" for name in known)
    return f"Unknown option `{_shown(key)}`. This block takes {names}."


def _shown(text: str) -> str:
    """Keep somebody's text from breaking the Markdown and the length of a message."""
    text = text.replace("`", "'")
    return text if len(text) <= 40 else text[:39] + "…"

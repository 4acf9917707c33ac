"""The grammar of runbooks: Markdown in, a frozen model and all its problems out.

Only fences at the left edge of the document are blocks. Whatever looks like a block but would
not be one, because it lies in a list or was swallowed by a fence that is never closed, is a
problem: a step that is silently not run is worse than a runbook that is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from sessions_app.environments.base import Interpreter
from sessions_app.events import ToolKind
from sessions_app.runners.base import Problem

from . import options
from .commands import only_git

MAX_CHARACTERS: Final = 100_000
MAX_PROBLEMS: Final = 100
MAX_YAML_DEPTH: Final = 100
INTERPRETERS: Final[dict[str, Interpreter]] = {name: name for name in get_args(Interpreter)}
RESERVED: Final = frozenset({"choice", "form", "status", "doc", "nav", "table"})
LANGUAGES: Final = RESERVED | {*INTERPRETERS, "mermaid", "delegate"}
OPTIONS: Final = {"mermaid": options.DIAGRAM, "delegate": options.DELEGATION}

Flow = Literal["stop", "continue"]

_BACKTICK: Final = (
    "as there is another backtick on the line. Fence it with ~~~ to use backticks in its options."
)

_markdown = MarkdownIt("commonmark").disable("inline")
_newline = re.compile(r"\r\n?|\n")  # markdown-it's own lines, so that its numbers fit ours
_opening = re.compile(r" {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)")


@dataclass(frozen=True)
class Item:
    """One thing a runbook does, with the lines (from 1, both included) it was written on."""

    line: int
    last: int
    number: int = 0
    """Its place among all items, from 1."""

    @property
    def ref(self) -> str:
        return f"step-{self.number}"


@dataclass(frozen=True, kw_only=True)
class Prose(Item):
    text: str


@dataclass(frozen=True, kw_only=True)
class Diagram(Item):
    source: str
    name: str = ""
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Delegation(Item):
    """Work for another agent: `source` is the instruction, word for word."""

    agent: str
    source: str
    name: str = ""
    on_failure: Flow = "stop"


@dataclass(frozen=True, kw_only=True)
class Step(Item):
    tool: Interpreter
    kind: ToolKind
    source: str
    name: str = ""
    timeout: float | None = None
    gate: bool = False
    """Whether the block asks for a person, whatever the agent's gate says."""
    on_reject: Flow = "stop"
    on_failure: Flow = "stop"
    retry: bool = False
    """Whether it may be run again without asking when the server stopped in the middle of it."""
    why: str = ""

    @property
    def title(self) -> str:
        """Its name, or the first line it runs."""
        return self.name or clip(self.source.strip().partition("\n")[0], 120)


@dataclass(frozen=True)
class Runbook:
    items: tuple[Item, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def has_blocks(self) -> bool:
        return any(not isinstance(item, Prose) for item in self.items)


def parse(instruction: str) -> Runbook:
    """Read a runbook whole. It has either problems, in line order, or items that may be run."""
    size = len(instruction)
    if size > MAX_CHARACTERS:
        text = f"The runbook has {size:,} characters; at most {MAX_CHARACTERS:,} are allowed."
        return Runbook((), (Problem(1, text),))
    if not instruction.strip():
        return Runbook((), (Problem(1, "Write something first: there is nothing to run."),))
    return _Reader(instruction).read()


def clip(text: str, longest: int) -> str:
    """Shorten a text to one line of at most so many characters."""
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


class _Reader:
    """Walks the tokens of one instruction; `cursor` is the first line not yet in an item."""

    def __init__(self, instruction: str) -> None:
        self.instruction = instruction
        self.lines = _newline.split(instruction)
        self.cursor = 0
        self.items: list[Item] = []
        self.problems: list[Problem] = []
        self.named: dict[str, int] = {}

    def read(self) -> Runbook:
        for token in _markdown.parse(self.instruction):
            if token.type == "fence":
                self._fence(token)
            elif token.level == 0 and token.type in ("paragraph_open", "heading_open"):
                self._lost_fences(token, _BACKTICK)
            elif token.level == 0 and token.type == "html_block":
                self._html(token)
        self._prose(len(self.lines))
        if self.problems:
            return Runbook((), _first(self.problems))
        numbered = (replace(item, number=n) for n, item in enumerate(self.items, 1))
        return Runbook(tuple(numbered))

    def _problem(self, line: int, message: str) -> None:
        self.problems.append(Problem(line, message))

    def _prose(self, end: int) -> None:
        """Make what lies between the cursor and a line one item, without its blank edges."""
        start = self.cursor
        while start < end and not self.lines[start].strip():
            start += 1
        while end > start and not self.lines[end - 1].strip():
            end -= 1
        if start < end:
            text = "\n".join(self.lines[start:end])
            self.items.append(Prose(line=start + 1, last=end, text=text))

    # -- fences --------------------------------------------------------------------------------

    def _fence(self, token: Token) -> None:
        start, end = _span(token)
        language, words = _info(token)
        if token.level:
            if language in LANGUAGES:
                self._problem(
                    start + 1,
                    f"Move this `{language}` block out of the list or quote: only blocks "
                    "that start at the left edge are run.",
                )
            return
        if not self._closed(token):
            fence = clip(token.markup, 20)
            self._problem(
                start + 1, f"This block is never closed: add {fence} on a line of its own."
            )
        else:
            self._swallowed(token, language)
        if language in LANGUAGES:
            self._prose(start)
            self._block(token, language, words, start + 1, end)
            self.cursor = end

    def _closed(self, token: Token) -> bool:
        # The token does not tell; only a closing fence can be the last line of a closed block.
        start, end = _span(token)
        closing = rf" {{0,3}}{token.markup[0]}{{{len(token.markup)},}}[ \t]*"
        return end - start > 1 and re.fullmatch(closing, self.lines[end - 1]) is not None

    def _swallowed(self, token: Token, language: str) -> None:
        """Refuse a block that opens inside another one, whose own end was forgotten."""
        start, end = _span(token)
        for number in range(start + 1, end - 1):
            if not (found := _opening.match(self.lines[number])):
                continue
            inner = found[2].lower()
            if found[1].startswith(token.markup) and inner and {language, inner} & LANGUAGES:
                self._problem(
                    number + 1,
                    f"A block opens here, but the one of line {start + 1} is still open. Close "
                    f"that one first, or give it a longer fence than {clip(token.markup, 20)}.",
                )
                return

    def _html(self, token: Token) -> None:
        text = token.content.lstrip()
        if text.startswith("<!--") and "-->" not in text:
            line = _span(token)[0] + 1
            self._lost_fences(token, f"as the comment of line {line} is never closed: add -->.")
        elif not re.match(r"<(!|\?|pre\b|script\b|style\b|textarea\b)", text, re.IGNORECASE):
            self._lost_fences(token, "as it is part of the HTML above: leave a blank line first.")

    def _lost_fences(self, token: Token, why: str) -> None:
        """Refuse lines that look like the start of a block, but are part of something else."""
        for number in range(*_span(token)):
            found = _opening.match(self.lines[number])
            if found and found[2].lower() in LANGUAGES:
                self._problem(number + 1, f"This does not start a block, {why}")

    # -- blocks --------------------------------------------------------------------------------

    def _block(self, token: Token, language: str, words: str, line: int, last: int) -> None:
        if language in RESERVED:
            self._problem(line, f"`{language}` blocks are not available yet.")
            self._yaml(token, line, last)
            return
        values = self._options(words, language, line)
        if not token.content.strip():
            self._problem(line, f"This `{language}` block is empty.")
        if language == "mermaid":
            self.items.append(Diagram(line=line, last=last, source=token.content, **values))
            return
        if language == "delegate":
            if "agent" not in values:
                self._problem(line, 'Say who gets this work: `agent="…"`.')
                return
            self.items.append(Delegation(line=line, last=last, source=token.content, **values))
            return
        tool = INTERPRETERS[language]
        kind: ToolKind = "git" if tool != "python" and only_git(token.content) else "shell"
        step = Step(line=line, last=last, tool=tool, kind=kind, source=token.content, **values)
        self.items.append(step)

    def _options(self, words: str, language: str, line: int) -> dict[str, Any]:
        values, wrong = options.read(words, OPTIONS.get(language, options.STEP))
        for message in wrong:
            self._problem(line, message)
        if name := values.get("name"):
            first = self.named.setdefault(name, line)
            if first != line:
                self._problem(line, f"The name `{name}` is used twice, first at line {first}.")
        return {key.replace("-", "_"): value for key, value in values.items()}

    def _yaml(self, token: Token, line: int, last: int) -> None:
        try:
            depth = 0
            # UTF-8 with no half surrogate pair, which the C loader cannot take.
            text = token.content.encode(errors="replace")
            for event in yaml.parse(text, Loader=_yaml_loader):
                depth += isinstance(event, yaml.CollectionStartEvent)
                depth -= isinstance(event, yaml.CollectionEndEvent)
                if depth > MAX_YAML_DEPTH:  # the parser's time grows with its square
                    self._problem(line, f"The YAML is nested deeper than {MAX_YAML_DEPTH} levels.")
                    return
        except yaml.MarkedYAMLError as error:
            below = error.problem_mark.line + 1 if error.problem_mark else 0
            self._problem(min(line + below, last), f"Broken YAML: {error.problem or error}.")
        except yaml.YAMLError as error:
            self._problem(line, f"Broken YAML: {getattr(error, 'reason', error)}.")


_yaml_loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _first(problems: list[Problem]) -> tuple[Problem, ...]:
    """Put problems in line order; of very many, the first and how many more there are."""
    problems = sorted(problems, key=lambda problem: problem.line)
    if len(problems) <= MAX_PROBLEMS:
        return tuple(problems)
    rest = Problem(
        problems[MAX_PROBLEMS].line, f"There are {len(problems) - MAX_PROBLEMS:,} more problems."
    )
    return (*problems[:MAX_PROBLEMS], rest)


def _span(token: Token) -> tuple[int, int]:
    """Return a block token's first line and the line behind its last, both from 0."""
    assert token.map is not None  # markdown-it maps every block
    return token.map[0], token.map[1]


def _info(token: Token) -> tuple[str, str]:
    """Split an info string into the language, in lower case as renderers take it, and the rest."""
    language, *rest = token.info.split(maxsplit=1) or [""]
    return language.lower(), "".join(rest)

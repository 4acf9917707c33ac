"""What a runner is: the adapter that drives one kind of agent and yields normalised payloads.

A runner is pure. It knows no models and no Django: it reads its turn and acts through the
`TurnContext` it is given. The same turn may be run again by another process after a pause or a
crash; `history` then holds what was recorded, and the runner goes on from there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from sessions_app.environments.base import Environment, Interpreter
from sessions_app.events import CallStatus, Line, Output, Payload, Text, ToolKind


class TurnFailure(Exception):
    """The turn ends as failed: `code` for programs, the message for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Parked(Exception):
    """The turn waits for a person and its slot is free. Runners let it pass through them."""


@dataclass(frozen=True)
class Problem:
    """Why an instruction is refused, and the line (from 1) that is the cause."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"Line {self.line}: {self.message}"


class Action(BaseModel):
    """One thing an agent wants to do, exactly as it would be done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ToolKind
    tool: Interpreter
    source: Text
    timeout: float = Field(gt=0)
    confined: bool
    network: bool
    directory: Line = "the session's working directory"

    def canonical(self) -> dict[str, JsonValue]:
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hex."""
        text = json.dumps(
            self.canonical(), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Grant:
    """Leave to do one action; `approval_id` when a person gave it."""

    key: str
    digest: str
    approval_id: str | None = None


@dataclass(frozen=True)
class Refusal:
    """The action may not run, who said so, and why."""

    by: str
    reason: str


@dataclass(frozen=True)
class Performed:
    """What became of an action."""

    status: CallStatus
    exit_code: int | None
    duration_ms: int
    output: Output
    error: str = ""


@dataclass(frozen=True)
class Capabilities:
    drafts: bool = False
    """Shows text before it is a fact."""
    resumes: bool = False
    """Can go on in another process from `history`."""
    cancels: bool = False
    """Stops within two seconds when asked."""
    environment: bool = False
    """Works in an execution environment."""


class TurnContext(Protocol):
    """One turn, as its runner sees it."""

    instruction: str
    number: int
    settings: Mapping[str, JsonValue]
    history: Sequence[Payload]
    """What this turn has recorded so far, oldest first."""

    async def environment(self) -> Environment:
        """The session's environment, started when first asked for."""

    async def permit(
        self, key: str, action: Action, *, title: str, why: str = "", ask: bool = False
    ) -> Grant | Refusal:
        """Ask the gate. `key` names the question within the turn, so asking again is harmless.

        `ask` tightens the gate: a person decides even where the gate would allow. Raises Parked
        when a person has to decide first; the turn is then run again after the decision.
        """

    async def perform(self, call_id: str, grant: Grant, action: Action) -> Performed:
        """Do a granted action. Refused when the action is not the one that the grant is for.

        Everything yielded before is stored first. Live output is shown as the draft of `call_id`.
        """

    async def delegate(self, key: str, agent: str, instruction: str) -> str:
        """Give work to another agent, by name or id, and return the id of the session it is in.

        `key` names it within the turn: asking again returns the same session. Nobody waits for
        it; how it ended is told in this session. Raises TurnFailure with the code
        `delegation_refused` when the turn's author may not, or when there are limits to it.
        """

    async def draft(self, ref: str, text: str) -> None:
        """Show text that is not yet a fact. May be dropped."""


class Runner(Protocol):
    kind: str
    label: str
    capabilities: Capabilities

    def check(self, instruction: str) -> list[Problem]:
        """Say what is wrong with an instruction, before any of it runs."""

    def run(self, turn: TurnContext) -> AsyncIterator[Payload]:
        """Work the turn, yielding payloads. Returning completes it; TurnFailure fails it."""

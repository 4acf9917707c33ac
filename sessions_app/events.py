"""The payloads of the event stream: one frozen pydantic class per event type.

An event is an immutable, numbered fact in a session's stream. This module says what each fact
holds; who writes it and how it is numbered is `Session.record`. It imports nothing of ours, so
runners, models and clients can all speak these words.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

HEAD_BYTES = 8 * 1024
TAIL_BYTES = 8 * 1024

ToolKind = Literal["shell", "git", "repository", "file", "network", "browser", "platform", "other"]
CallStatus = Literal["succeeded", "failed", "timed_out", "cancelled", "interrupted", "refused"]
ArtifactKind = Literal["change_request", "diff", "summary", "log_bundle", "file"]
Resolution = Literal["approved", "rejected", "expired", "cancelled", "superseded"]


def storable(value: Any) -> Any:
    """PostgreSQL's jsonb cannot hold NUL, and UTF-8 cannot hold half a surrogate pair."""
    if isinstance(value, str):
        return value.replace("\x00", "\N{SYMBOL FOR NULL}").encode(errors="replace").decode()
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable(item) for item in value]
    return value


Text = Annotated[str, BeforeValidator(storable)]
Line = Annotated[str, BeforeValidator(storable), Field(max_length=500)]
Ref = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,80}$")]
Json = Annotated[dict[str, JsonValue], BeforeValidator(storable)]


class Payload(BaseModel):
    """What one event says. Frozen; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: ClassVar[str]

    def item(self, turn: str) -> str:
        """Name the thing on the timeline that this event makes or changes; empty for a row alone.

        Events of one item share the name, so a page can fold them into one row.
        """
        return ""


# -- messages and work -------------------------------------------------------------------------


class MessageCreated(Payload):
    type = "message.created"
    role: Literal["user", "assistant", "system"]
    text: Text
    author: Line = ""
    ref: Ref | None = None
    """The runner's own name for the message, by which a resumed runner knows it was said."""

    def item(self, turn: str) -> str:
        # A turn's instruction can be edited while it is queued; the row shows the latest.
        return f"instruction:{turn}" if self.role == "user" and turn else ""


class ToolCallStarted(Payload):
    type = "tool_call.started"
    call_id: Ref
    kind: ToolKind
    tool: Line
    title: Line
    arguments: Json = Field(default_factory=dict)
    approval_id: str | None = None

    def item(self, turn: str) -> str:
        return f"call:{turn}:{self.call_id}"


class Output(BaseModel):
    """What a call printed: all of it in `head`, or a head, a tail and a link to the whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    head: Text = ""
    tail: Text = ""
    size: int = Field(0, ge=0, description="bytes printed")
    binary: bool = False
    artifact_id: str | None = None
    note: Line = ""


class ToolCallCompleted(Payload):
    type = "tool_call.completed"
    call_id: Ref
    status: CallStatus
    exit_code: int | None = None
    duration_ms: int = Field(0, ge=0)
    output: Output = Output()
    error: Line = ""

    def item(self, turn: str) -> str:
        return f"call:{turn}:{self.call_id}"


class ProgressUpdated(Payload):
    """How far the turn has come; drawn as the bar of the turn's row."""

    type = "progress.updated"
    label: Line
    fraction: float | None = Field(None, ge=0, le=1)

    def item(self, turn: str) -> str:
        return f"turn:{turn}" if turn else ""


class UsageRecorded(Payload):
    """What a model's provider counted for a part of the turn."""

    type = "usage.recorded"
    input_tokens: int = Field(0, ge=0)
    output_tokens: int = Field(0, ge=0)
    cost: Decimal = Field(Decimal(0), ge=0, max_digits=14, decimal_places=6, description="in USD")
    model: Line = ""


class HandoffSummaryCreated(Payload):
    """A session that this one gave work to has come to rest; said in the one that gave it."""

    type = "handoff_summary.created"
    session_id: str
    agent: Line
    title: Line
    turn: int = Field(ge=1, description="the number of the turn over there that ended last")
    outcome: Literal["completed", "failed", "cancelled"]
    summary: Text = Field("", max_length=5000)
    """The last words of the agent, or why it failed, or who stopped it; cut when long."""
    artifacts: tuple[Line, ...] = Field((), max_length=20)
    """The names of what was made; of many, the latest."""
    artifact_count: int = Field(0, ge=0)

    def item(self, turn: str) -> str:
        return f"child:{self.session_id}"


# -- widgets -----------------------------------------------------------------------------------


class WidgetCreated(Payload):
    type = "widget.created"
    widget_id: Ref
    widget: Line
    version: int = Field(1, ge=1)
    title: Line = ""
    body: Json = Field(default_factory=dict)

    def item(self, turn: str) -> str:
        # An approval's widget is a view on the request: one card, not two.
        if self.widget == "approval":
            return f"approval:{self.body.get('approval_id')}"
        return f"widget:{turn}:{self.widget_id}"


class WidgetUpdated(Payload):
    type = "widget.updated"
    widget_id: Ref
    body: Json

    def item(self, turn: str) -> str:
        return f"widget:{turn}:{self.widget_id}"


class WidgetAnswered(Payload):
    type = "widget.answered"
    widget_id: Ref
    answer: Json
    by: Line

    def item(self, turn: str) -> str:
        return f"widget:{turn}:{self.widget_id}"


# -- approvals ---------------------------------------------------------------------------------


class ApprovalRequestCreated(Payload):
    type = "approval_request.created"
    approval_id: str
    title: Line
    why: Text = ""
    rule: Line
    """The rule that made the gate ask, in words a person understands."""
    action: Json
    digest: str
    deciders: Line
    expires_at: AwareDatetime | None = None

    def item(self, turn: str) -> str:
        return f"approval:{self.approval_id}"


class ApprovalRequestResolved(Payload):
    type = "approval_request.resolved"
    approval_id: str
    outcome: Resolution
    by: Line = ""
    reason: Text = ""

    def item(self, turn: str) -> str:
        return f"approval:{self.approval_id}"


# -- execution environments and artifacts ------------------------------------------------------


class _EnvironmentEvent(Payload):
    environment_id: str
    provider: Line
    confined: bool
    network: bool
    detail: Line = ""
    duration_ms: int = Field(0, ge=0)


class EnvironmentStarted(_EnvironmentEvent):
    type = "execution_environment.started"


class EnvironmentResumed(_EnvironmentEvent):
    type = "execution_environment.resumed"


class EnvironmentStopped(_EnvironmentEvent):
    type = "execution_environment.stopped"


class EnvironmentDeleted(_EnvironmentEvent):
    type = "execution_environment.deleted"


class EnvironmentFailed(_EnvironmentEvent):
    type = "execution_environment.failed"


class ArtifactCreated(Payload):
    type = "artifact.created"
    artifact_id: str
    kind: ArtifactKind
    name: Line
    media_type: Line
    size: int = Field(ge=0)
    sha256: str
    summary: Line = ""


# -- turns -------------------------------------------------------------------------------------


class _TurnEvent(Payload):
    def item(self, turn: str) -> str:
        return f"turn:{turn}"


class TurnQueued(_TurnEvent):
    type = "turn.queued"
    number: int = Field(ge=1)
    by: Line
    retry_of: int | None = Field(None, ge=1, description="the number of the turn it repeats")


class TurnEdited(Payload):
    """A queued turn's instruction was changed before any of it ran."""

    type = "turn.edited"
    text: Text
    by: Line

    def item(self, turn: str) -> str:
        return f"instruction:{turn}"


class TurnStarted(_TurnEvent):
    type = "turn.started"
    attempt: int = Field(ge=1)
    reason: Literal["started", "resumed", "rescued"] = "started"


class TurnCompleted(_TurnEvent):
    type = "turn.completed"
    duration_ms: int = Field(ge=0)


class TurnFailed(_TurnEvent):
    type = "turn.failed"
    code: Line
    message: Text
    duration_ms: int = Field(0, ge=0)


class TurnCancelled(_TurnEvent):
    type = "turn.cancelled"
    by: Line
    reason: Text = ""


class TurnRetried(_TurnEvent):
    """A turn that had ended badly was submitted again."""

    type = "turn.retried"
    number: int = Field(ge=1, description="the number of the new turn")


# -- sessions ----------------------------------------------------------------------------------


class SessionCreated(Payload):
    type = "session.created"
    agent: Line
    title: Line
    by: Line
    parent: str | None = Field(None, description="the session that delegated this work")


class SessionForked(Payload):
    """The first event of a fork: what stands before it is another session's."""

    type = "session.forked"
    agent: Line
    title: Line
    by: Line
    session_id: str = Field(description="the session it was forked from")
    turn: int = Field(ge=1, description="the number of the last turn it goes on from")
    last_seq: int = Field(ge=1, description="that session's last seq which belongs to it")
    files: bool = Field(False, description="whether the files of its environment were copied")


class SessionDelegated(Payload):
    """A turn, or a person, gave work to another agent, in a session of its own."""

    type = "session.delegated"
    session_id: str
    agent: Line
    title: Line
    by: Line = ""
    ref: Ref | None = None
    """The runner's own name for it, by which a resumed runner knows that it was given."""

    def item(self, turn: str) -> str:
        # What comes back stands in the same row.
        return f"child:{self.session_id}"


class _SessionState(Payload):
    by: Line = ""
    reason: Text = ""


class SessionActivated(_SessionState):
    type = "session.activated"


class SessionWaitingForInput(_SessionState):
    type = "session.waiting_for_input"


class SessionWaitingForPermission(_SessionState):
    type = "session.waiting_for_permission"


class SessionCompleted(_SessionState):
    type = "session.completed"


class SessionFailed(_SessionState):
    type = "session.failed"


class SessionCancelled(_SessionState):
    type = "session.cancelled"


class SessionArchived(_SessionState):
    type = "session.archived"


class SessionUnarchived(_SessionState):
    type = "session.unarchived"


PAYLOADS: dict[str, type[Payload]] = {
    payload.type: payload
    for payload in (
        MessageCreated,
        ToolCallStarted,
        ToolCallCompleted,
        ProgressUpdated,
        UsageRecorded,
        HandoffSummaryCreated,
        WidgetCreated,
        WidgetUpdated,
        WidgetAnswered,
        ApprovalRequestCreated,
        ApprovalRequestResolved,
        EnvironmentStarted,
        EnvironmentResumed,
        EnvironmentStopped,
        EnvironmentDeleted,
        EnvironmentFailed,
        ArtifactCreated,
        TurnQueued,
        TurnEdited,
        TurnStarted,
        TurnCompleted,
        TurnFailed,
        TurnCancelled,
        TurnRetried,
        SessionCreated,
        SessionForked,
        SessionDelegated,
        SessionActivated,
        SessionWaitingForInput,
        SessionWaitingForPermission,
        SessionCompleted,
        SessionFailed,
        SessionCancelled,
        SessionArchived,
        SessionUnarchived,
    )
}


def load(type: str, data: dict[str, Any]) -> Payload:
    """Turn a stored event back into its payload.

    Raises KeyError for an unknown type and pydantic.ValidationError for data that does not fit.
    """
    return PAYLOADS[type].model_validate(data)

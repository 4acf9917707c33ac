"""Works a runbook: says its prose, shows its diagrams and performs its steps, in order.

Every item has a reference (`step-1`, `step-2`, …) that its payloads carry. What the turn's history
holds is not done again, so the same turn can be taken up by another process at any point. A step
that was interrupted is run a second time only if it says `retry=safe`, or a person says so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing

from pydantic import JsonValue

from sessions_app.events import (
    MessageCreated,
    Payload,
    ProgressUpdated,
    SessionDelegated,
    ToolCallCompleted,
    ToolCallStarted,
    WidgetCreated,
)
from sessions_app.runners.base import (
    Action,
    Capabilities,
    Performed,
    Problem,
    Refusal,
    TurnContext,
    TurnFailure,
)

from .grammar import Delegation, Diagram, Prose, Runbook, Step, clip, parse
from .help import HELP
from .options import MAX_TIMEOUT


class RunbookRunner:
    """Runs Markdown runbooks. The setting `timeout` is a step's time limit, in seconds."""

    kind = "runbook"
    label = "Runbook"
    capabilities = Capabilities(drafts=True, resumes=True, cancels=True, environment=True)

    TIMEOUT = 600.0

    def check(self, instruction: str) -> list[Problem]:
        return list(parse(instruction).problems)

    async def run(self, turn: TurnContext) -> AsyncIterator[Payload]:
        runbook = parse(turn.instruction)
        if runbook.problems:
            raise TurnFailure("bad_runbook", "\n".join(map(str, runbook.problems)))
        past = Past(turn.history)
        if not runbook.has_blocks:
            if "help" not in past:
                yield MessageCreated(role="assistant", text=HELP, ref="help")
            return
        timeout = self._timeout(turn.settings)
        prose = ""
        for item in runbook.items:
            latest = past.get(item.ref)
            if isinstance(item, Prose):
                prose = item.text
                if latest is None:
                    yield MessageCreated(role="assistant", text=item.text, ref=item.ref)
            elif isinstance(item, Diagram):
                if latest is None:
                    yield _widget(item)
            elif isinstance(item, Delegation):
                if latest is None and (refused := await _delegated(turn, item)):
                    yield refused
            elif isinstance(item, Step):
                reason, prose = _reason(prose), ""
                if not _is_done(latest):
                    if (progress := _progress(runbook, item)) and progress != past.progress:
                        yield progress
                    working = _work(turn, item, past, timeout, reason)
                    async with aclosing(working) as payloads:
                        async for latest in payloads:
                            yield latest
                if failure := _failure(item, latest, timeout):
                    raise failure
                if isinstance(latest, ToolCallCompleted) and latest.status == "cancelled":
                    return

    def _timeout(self, settings: Mapping[str, JsonValue]) -> float:
        value = settings.get("timeout", self.TIMEOUT)
        if isinstance(value, bool) or not isinstance(value, int | float):
            value = 0
        if not 0 < value <= MAX_TIMEOUT:
            raise TurnFailure(
                "bad_settings",
                f"The agent's setting `timeout` has to be a number of seconds above 0 and at most "
                f"{MAX_TIMEOUT}.",
            )
        return float(value)


class Past:
    """What the turn has recorded so far, by the item of the runbook that it is about."""

    def __init__(self, history: Iterable[Payload]) -> None:
        self.progress: ProgressUpdated | None = None
        self._latest: dict[str, Payload] = {}
        self._runs: Counter[str] = Counter()
        for payload in history:
            match payload:
                case MessageCreated(ref=str(ref)):
                    self._latest[_base(ref)] = payload
                case SessionDelegated(ref=str(ref)):
                    self._latest[ref] = payload
                case WidgetCreated(widget_id=ref):
                    self._latest[ref] = payload
                case ToolCallStarted(call_id=ref):
                    self._latest[_base(ref)] = payload
                    self._runs[_base(ref)] += 1
                case ToolCallCompleted(call_id=ref):
                    self._latest[_base(ref)] = payload
                case ProgressUpdated():
                    self.progress = payload

    def __contains__(self, ref: str) -> bool:
        return ref in self._latest

    def get(self, ref: str) -> Payload | None:
        return self._latest.get(ref)

    def next_call(self, ref: str) -> str:
        """Name the next run of a step: `step-3`, and after a crash `step-3.2`."""
        return f"{ref}.{self._runs[ref] + 1}" if self._runs[ref] else ref


def _base(ref: str) -> str:
    return ref.partition(".")[0]


def _is_done(latest: Payload | None) -> bool:
    if isinstance(latest, ToolCallCompleted):
        return latest.status != "interrupted"
    return isinstance(latest, MessageCreated)


async def _work(
    turn: TurnContext, step: Step, past: Past, timeout: float, reason: str
) -> AsyncGenerator[Payload, None]:
    """Work one step to its end: the last payload is its completion or its refusal."""
    latest = past.get(step.ref)
    if isinstance(latest, ToolCallStarted):
        # Its process died with its worker, and nobody knows how far it had come.
        yield ToolCallCompleted(
            call_id=latest.call_id,
            status="interrupted",
            error="The server stopped while this step ran.",
        )
    again, call_id = latest is not None, past.next_call(step.ref)
    environment = await turn.environment()
    action = Action(
        kind=step.kind,
        tool=step.tool,
        source=step.source,
        timeout=step.timeout or timeout,
        confined=environment.confined,
        network=environment.network,
    )
    answer = await turn.permit(
        call_id,
        action,
        title=f"{step.title} (again)" if again else step.title,
        why=_interrupted(step.why or reason) if again else step.why or reason,
        ask=step.gate or (again and not step.retry),
    )
    if isinstance(answer, Refusal):
        yield MessageCreated(role="system", text=_refused(step, answer, again), ref=call_id)
        return
    arguments: dict[str, JsonValue] = {
        "source": action.source,
        "timeout": action.timeout,
        "name": step.name,
    }
    yield ToolCallStarted(
        call_id=call_id,
        kind=action.kind,
        tool=action.tool,
        title=step.title,
        arguments=arguments,
        approval_id=answer.approval_id,
    )
    yield _completed(call_id, await turn.perform(call_id, answer, action))


def _progress(runbook: Runbook, step: Step) -> ProgressUpdated | None:
    """Say which of several steps comes now; a single one needs no bar."""
    steps = [item for item in runbook.items if isinstance(item, Step)]
    if len(steps) < 2:
        return None
    done = steps.index(step)
    label = clip(f"Step {done + 1} of {len(steps)}: {step.title}", 200)
    return ProgressUpdated(label=label, fraction=round(done / len(steps), 4))


async def _delegated(turn: TurnContext, item: Delegation) -> Payload | None:
    """Give the work away; return what to say when that was refused and the runbook goes on."""
    try:
        await turn.delegate(item.ref, item.agent, item.source)
    except TurnFailure as refusal:
        if item.on_failure == "stop":
            raise
        label = clip(item.name or item.agent, 60).replace("`", "'")
        text = f"`{label}` was not delegated: {refusal}"
        return MessageCreated(role="system", text=text, ref=item.ref)
    return None


def _widget(item: Diagram) -> WidgetCreated:
    return WidgetCreated(
        widget_id=item.ref,
        widget="diagram",
        version=1,
        title=item.title or item.name,
        body={"source": item.source},
    )


def _completed(call_id: str, performed: Performed) -> ToolCallCompleted:
    return ToolCallCompleted(
        call_id=call_id,
        status=performed.status,
        exit_code=performed.exit_code,
        duration_ms=performed.duration_ms,
        output=performed.output,
        error=clip(performed.error, 500),
    )


def _failure(step: Step, latest: Payload | None, timeout: float) -> TurnFailure | None:
    """Say how the turn fails because of the way a step ended, if it does."""
    if isinstance(latest, MessageCreated) and latest.ref != step.ref:
        # It stays interrupted: a person did not let it be run again.
        if step.on_failure == "stop":
            reason = latest.text.removeprefix(_not_run(step, again=True))
            return TurnFailure("step_failed", f"{_stopped(step)}, and not run again: {reason}")
        return None
    if isinstance(latest, MessageCreated) and step.on_reject == "stop":
        reason = latest.text.removeprefix(_not_run(step))
        return TurnFailure("rejected", f"Stopped at step {_label(step)}: {reason}")
    if not isinstance(latest, ToolCallCompleted):
        return None
    if latest.status == "refused":
        return TurnFailure("refused", latest.error or f"Step {_label(step)} was refused.")
    if latest.status in ("failed", "timed_out", "interrupted") and step.on_failure == "stop":
        return TurnFailure("step_failed", _failed(step, latest, timeout))
    return None


# -- the words ---------------------------------------------------------------------------------


def _label(step: Step) -> str:
    return f"`{clip(step.title, 60).replace('`', chr(39))}`"


def _not_run(step: Step, *, again: bool = False) -> str:
    return f"Step {_label(step)} was not run{' again' if again else ''}: "


def _refused(step: Step, refusal: Refusal, again: bool) -> str:
    text = f"{_not_run(step, again=again)}rejected by {refusal.by}"
    if reason := refusal.reason.strip():
        text += f": {reason}"
    return text if text.endswith((".", "!", "?")) else text + "."


def _failed(step: Step, call: ToolCallCompleted, timeout: float) -> str:
    label = _label(step)
    if call.status == "timed_out":
        return f"Step {label} reached its time limit of {step.timeout or timeout:g} seconds."
    if call.status == "interrupted":
        return f"{_stopped(step)}."
    if call.exit_code is not None:
        return f"Step {label} failed with exit code {call.exit_code}."
    return f"Step {label} failed: {call.error}" if call.error else f"Step {label} failed."


def _stopped(step: Step) -> str:
    return f"Step {_label(step)} was running when the server stopped"


def _interrupted(why: str) -> str:
    known = "The server stopped while this step ran, and nobody knows how far it had come."
    return f"{known} {why}".rstrip()


def _reason(prose: str) -> str:
    """Take the last paragraph right before a step as the reason for it; a heading is none."""
    paragraph = re.split(r"\n[ \t]*\n", prose)[-1]
    return "" if paragraph.lstrip().startswith("#") else clip(paragraph, 300)

"""Works a runbook: says its prose, shows its diagrams and performs its steps, in order.

Every item has a reference (`step-1`, `step-2`, …) that its payloads carry. What the turn's history
holds is not done again, so the same turn can be taken up by another process at any point.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing

from pydantic import JsonValue

from sessions_app.events import (
    MessageCreated,
    Payload,
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

from .grammar import Diagram, Prose, Step, clip, parse
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
        past = _past(turn.history)
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
            elif isinstance(item, Step):
                reason, prose = _reason(prose), ""
                if not isinstance(latest, ToolCallCompleted | MessageCreated):
                    async with aclosing(_work(turn, item, latest, timeout, reason)) as payloads:
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


async def _work(
    turn: TurnContext, step: Step, latest: Payload | None, timeout: float, reason: str
) -> AsyncGenerator[Payload, None]:
    """Work one step to its end: the last payload is its completion or its refusal."""
    if isinstance(latest, ToolCallStarted):
        # Its process died with its worker, and nobody knows how far it had come.
        yield ToolCallCompleted(
            call_id=step.ref,
            status="interrupted",
            error="The server stopped while this step ran.",
        )
        return
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
        step.ref, action, title=step.title, why=step.why or reason, ask=step.gate
    )
    if isinstance(answer, Refusal):
        yield MessageCreated(role="system", text=_refused(step, answer), ref=step.ref)
        return
    arguments: dict[str, JsonValue] = {
        "source": action.source,
        "timeout": action.timeout,
        "name": step.name,
    }
    yield ToolCallStarted(
        call_id=step.ref,
        kind=action.kind,
        tool=action.tool,
        title=step.title,
        arguments=arguments,
        approval_id=answer.approval_id,
    )
    yield _completed(step, await turn.perform(step.ref, answer, action))


def _past(history: Iterable[Payload]) -> dict[str, Payload]:
    """Find the latest payload of each item of the runbook, by its reference."""
    past: dict[str, Payload] = {}
    for payload in history:
        match payload:
            case MessageCreated(ref=str(ref)):
                past[ref] = payload
            case WidgetCreated(widget_id=ref):
                past[ref] = payload
            case ToolCallStarted(call_id=ref) | ToolCallCompleted(call_id=ref):
                past[ref] = payload
    return past


def _widget(item: Diagram) -> WidgetCreated:
    return WidgetCreated(
        widget_id=item.ref,
        widget="diagram",
        version=1,
        title=item.title or item.name,
        body={"source": item.source},
    )


def _completed(step: Step, performed: Performed) -> ToolCallCompleted:
    return ToolCallCompleted(
        call_id=step.ref,
        status=performed.status,
        exit_code=performed.exit_code,
        duration_ms=performed.duration_ms,
        output=performed.output,
        error=clip(performed.error, 500),
    )


def _failure(step: Step, latest: Payload | None, timeout: float) -> TurnFailure | None:
    """Say how the turn fails because of the way a step ended, if it does."""
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


def _not_run(step: Step) -> str:
    return f"Step {_label(step)} was not run: "


def _refused(step: Step, refusal: Refusal) -> str:
    text = f"{_not_run(step)}rejected by {refusal.by}"
    if reason := refusal.reason.strip():
        text += f": {reason}"
    return text if text.endswith((".", "!", "?")) else text + "."


def _failed(step: Step, call: ToolCallCompleted, timeout: float) -> str:
    label = _label(step)
    if call.status == "timed_out":
        return f"Step {label} reached its time limit of {step.timeout or timeout:g} seconds."
    if call.status == "interrupted":
        return f"Step {label} was running when the server stopped. It is not run a second time."
    if call.exit_code is not None:
        return f"Step {label} failed with exit code {call.exit_code}."
    return f"Step {label} failed: {call.error}" if call.error else f"Step {label} failed."


def _reason(prose: str) -> str:
    """Take the last paragraph right before a step as the reason for it; a heading is none."""
    paragraph = re.split(r"\n[ \t]*\n", prose)[-1]
    return "" if paragraph.lstrip().startswith("#") else clip(paragraph, 300)

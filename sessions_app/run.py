"""One attempt at one turn: what the runner sees, and how what it says becomes facts."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO, ParamSpec, TypeVar

from pydantic import JsonValue

from . import diffs, events, gates, live
from .environments import registry as environments
from .environments.base import Command, Environment, EnvironmentUnavailable
from .events import (
    MessageCreated,
    Payload,
    ToolCallCompleted,
    ToolCallStarted,
    UsageRecorded,
)
from .held import HeldTurn
from .models import Fenced, NotPossible, Turn
from .models.artifact import store
from .models.event import append_async
from .models.states import TurnState
from .models.turn import CancelPending
from .output import MOST_BYTES, Capture
from .runners import registry as runners
from .runners.base import Action, Grant, Parked, Performed, Refusal, TurnFailure
from .threads import AWAY, in_file_thread, in_thread, pool, why

if TYPE_CHECKING:
    from .engine import Worker

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)

# How many payloads may wait to be stored before their runner has to. Few, since what a runner says
# beyond what can be stored only lengthens the way of everything it says.
BACKLOG = 10
TAIL_SECONDS = 0.1
TAIL_AGAIN = 10
CANCEL_SECONDS = 4.0
MOST_FILES = 500
AGAIN_SECONDS = 0.2

# What a runner may say. All else is said by the transition that makes it true.
AUTHORED = {
    "message.created",
    "tool_call.started",
    "tool_call.completed",
    "widget.created",
    "widget.updated",
    "progress.updated",
    "usage.recorded",
}

STATUS_OF = {"timed_out": "timed_out", "cancelled": "cancelled"}


class TurnRun:
    """Drives the turn's runner and implements `TurnContext` for it."""

    def __init__(self, turn: Turn, worker: Worker) -> None:
        self.turn = turn
        self.worker = worker
        self._held = HeldTurn(turn, worker.holder)
        self.instruction = turn.instruction
        self.number = turn.number
        self.settings: Mapping[str, JsonValue] = turn.session.agent.runner_settings
        self.history: Sequence[Payload] = ()
        self._agent_name = turn.session.agent.name
        self.cancelled = asyncio.Event()
        self.ended = asyncio.Event()
        self._stopped = asyncio.Event()
        self.renewed = time.monotonic()
        self.lost = False
        self.finishing = False
        self._handing_back = False
        self._unsure = False
        """Whether the database went away in an append: nobody knows if that was stored."""
        self._interrupted = False
        self._performing = False
        self._driving: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._pending: list[Payload] = []
        self._environment: Environment | None = None
        self._published: dict[str, tuple[int, int]] = {}
        self._granted: set[Grant] = set()
        self._refused: Exception | None = None

    # -- from claim to end -------------------------------------------------------------------

    async def work(self) -> None:
        """Run the turn until it ends, parks, is handed back or is lost."""
        self._driving = asyncio.create_task(self._drive())
        if self.cancelled.is_set():
            self._driving.cancel()
        try:
            await self._until_driven(self._driving)
            await self._end(self._driving)
        except asyncio.CancelledError:
            # Whoever waited is gone. What runs must not go on where nobody renews its lease.
            self.lose()
            await asyncio.wait({self._driving}, timeout=CANCEL_SECONDS)
            raise
        except Fenced:
            logger.info("%s is not held here any more; nothing more is written.", self.turn.fence)
        except AWAY as error:
            # The lease has run out meanwhile.
            logger.warning("%s waits for the database: %s", self.turn.fence, why(error))
        except Exception:
            # The lease runs out and the turn is taken up from what is recorded.
            logger.exception("%s could not be brought to an end.", self.turn.fence)
        finally:
            self.ended.set()

    async def _until_driven(self, driving: asyncio.Task[None]) -> None:
        """Wait for the runner, but not for ever for one that ignores that it is to stop."""
        stopped = asyncio.create_task(self._stopped.wait())
        await asyncio.wait({driving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        await asyncio.wait({driving}, timeout=2 * CANCEL_SECONDS)
        if not driving.done():
            logger.error("The runner of %s does not let itself be stopped.", self.turn.fence)

    async def _drive(self) -> None:
        runner = runners.get(self.turn.session.agent.runner)
        if self.turn.attempt > 1 and not runner.capabilities.resumes:
            raise TurnFailure(
                "lost_worker",
                "The worker that ran this turn is gone, or let go of it to stop or to wait for a "
                f"decision, and {runner.label} cannot go on from the middle. Retry it to start "
                "from the beginning.",
            )
        if self.turn.attempt > 1:
            self.history = await self._insist(self._load_history)
        stream = runner.run(self)
        async with contextlib.aclosing(stream):  # type: ignore[type-var]
            async for payload in stream:
                await self._take(payload)
                # Not between a call's start and its work: that would count as interrupted. And who
                # could not go on elsewhere has the whole grace to come to an end here.
                between = runner.capabilities.resumes and not isinstance(payload, ToolCallStarted)
                if self.worker.stopping.is_set() and between:
                    self._handing_back = True
                    return

    async def _end(self, driving: asyncio.Task[None]) -> None:
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await self.flush()
        error: BaseException | None = self._refused
        if error is None and driving.done():
            # Cancelled by nobody here, it let a cancellation of its own through: it is broken.
            error = asyncio.CancelledError() if driving.cancelled() else driving.exception()
        if self._unsure or isinstance(error, AWAY):
            logger.warning("%s is handed back: the database was away.", self.turn.fence)
            await self._hand_back()
            return
        if self.lost or isinstance(error, Parked):
            return
        if self.cancelled.is_set() or isinstance(error, CancelPending):
            await self._finish(TurnState.CANCELLED)
        elif isinstance(error, Fenced):
            raise error
        elif self._handing_back:
            await self._hand_back()
        elif isinstance(error, TurnFailure):
            await self._finish(TurnState.FAILED, error.code, str(error))
        elif error is not None:
            logger.error("The runner of %s failed.", self.turn.fence, exc_info=error)
            message = (
                f"The runner failed: {type(error).__name__}. The server's log has the details."
            )
            await self._finish(TurnState.FAILED, "runner_error", message)
        else:
            await self._finish(TurnState.COMPLETED)

    async def _hand_back(self) -> None:
        """Let another worker go on at once, from what is recorded."""
        self.finishing = True
        await self._insist(self._held.release)

    async def _insist(self, doing: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what may be done twice, again while the database is away, as long as the lease runs.

        After a lost connection nobody knows whether something was committed; a transition that was
        is refused the second time as not ours any more.
        """
        while True:
            try:
                return await in_thread(doing, *args, **kwargs)
            except AWAY:
                if self.renewed + self.worker.lease.total_seconds() < time.monotonic():
                    raise
            await asyncio.sleep(AGAIN_SECONDS)

    def cancel(self) -> None:
        """Stop the turn: a running command is ended, all else is cut off."""
        if self.cancelled.is_set() or self.finishing:
            return
        self.cancelled.set()
        self._stopped.set()
        if self._driving is None:
            return
        if self._performing:
            # The command's end is still told; this is for a runner that does not come back.
            asyncio.get_running_loop().call_later(CANCEL_SECONDS, self._driving.cancel)
        else:
            self._driving.cancel()

    def lose(self) -> None:
        """Stop at once and write nothing more: the turn is somebody else's now."""
        self.lost = True
        self._stopped.set()
        if self._driving is not None:
            self._driving.cancel()

    def interrupt(self) -> None:
        """Stop at once and hand the turn back: this process is stopping."""
        if not (self.finishing or self._interrupted) and self._driving is not None:
            # Once: a second cancel would cut off the first one's cleaning up.
            self._handing_back = self._interrupted = True
            self._stopped.set()
            self._driving.cancel()

    # -- events: one append at a time, what arrives meanwhile rides in the next ---------------

    async def _take(self, payload: Payload) -> None:
        if self.lost or self._refused:
            return  # Said while it was being stopped: something before it is missing.
        person = isinstance(payload, MessageCreated) and payload.role == "user"
        if payload.type not in AUTHORED or person:
            raise TypeError(f"A runner may not author {payload.type}.")
        if isinstance(payload, MessageCreated) and payload.role == "assistant":
            payload = payload.model_copy(update={"author": payload.author or self._agent_name})
        if isinstance(payload, UsageRecorded):
            await self.flush()
            await in_thread(self._held.usage, payload)
            return
        self._pending.append(payload)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        if len(self._pending) >= BACKLOG:
            await self.flush()

    async def _write(self) -> None:
        while self._pending:
            batch, self._pending = self._pending, []
            try:
                async with (await pool()).connection() as conn:
                    await append_async(
                        conn,
                        self.turn.session_id,
                        batch,
                        turn_id=self.turn.pk,
                        fence=self.turn.fence,
                    )
            except (Fenced, OSError, *AWAY) as error:
                # After a lost connection nobody knows whether it was committed. Let go: whoever
                # takes the turn up reads what is recorded and goes on from there.
                self._unsure = not isinstance(error, Fenced)
                self._pending = []
                self.lose()
                raise
            except Exception as error:
                # Refused for what it says, and so it would be in every other attempt.
                self._pending = []
                self._refused = error
                if self._driving is not None:
                    self._driving.cancel()
                raise
            await live.hint_session(self.turn.session_id)

    async def flush(self) -> None:
        """Wait until everything taken so far is stored. Raises what kept it from being so."""
        while self._writing is not None:
            writing = self._writing
            # Shielded: whoever waits may be cancelled, what was taken is stored all the same.
            await asyncio.shield(writing)
            if self._writing is writing:
                self._writing = None

    def _load_history(self) -> list[Payload]:
        return [event.payload for event in self.turn.events.order_by("seq")]

    # -- what runners ask for ----------------------------------------------------------------

    async def draft(self, ref: str, text: str) -> None:
        await live.draft(self.turn.session_id, self.turn.pk, ref, text)

    async def permit(
        self, key: str, action: Action, *, title: str, why: str = "", ask: bool = False
    ) -> Grant | Refusal:
        await self.flush()
        answer = await self._insist(self._held.review, gates.Question(key, action, title, why, ask))
        if answer is None:
            raise Parked
        if isinstance(answer, Grant):
            self._granted.add(answer)
        return answer

    async def delegate(self, key: str, agent: str, instruction: str) -> str:
        await self.flush()
        try:
            return await in_thread(self._held.delegate, key, agent, instruction)
        except NotPossible as error:
            raise TurnFailure("delegation_refused", str(error)) from error

    async def environment(self) -> Environment:
        if self._environment is None:
            await self.flush()
            provider = environments.get("local")
            start = time.monotonic()
            try:
                used = await self._insist(self._held.environment_used)
                environment = await provider.open(self.turn.session_id, used=used)
            except EnvironmentUnavailable as error:
                await in_thread(self._held.environment_failed, provider.kind, str(error))
                raise TurnFailure("environment_unavailable", str(error)) from error
            duration = int((time.monotonic() - start) * 1000)
            await self._insist(self._held.environment_opened, provider.kind, environment, duration)
            await environment.mark(f"turn-{self.number}")
            self._environment = environment
        return self._environment

    async def perform(self, call_id: str, grant: Grant, action: Action) -> Performed:
        environment = await self.environment()
        await self.flush()
        refusal: Refusal | None
        if grant not in self._granted:
            # A runner can make up a grant; it cannot make up that the gate gave it.
            refusal = Refusal("the gate", "This was not granted.")
        elif (action.confined, action.network) != (environment.confined, environment.network):
            refusal = Refusal("the gate", "The environment is not the one shown.")
        else:
            refusal = await in_thread(self._held.redeem, grant, action.digest())
        if refusal is not None:
            return Performed("refused", None, 0, events.Output(), refusal.reason)
        capture = Capture()
        showing = asyncio.create_task(self._show_tail(call_id, capture))
        start, counted = time.monotonic(), False
        self._performing = True
        try:
            ended = await environment.run(
                Command(action.tool, action.source, action.timeout), capture.feed, self.cancelled
            )
            showing.cancel()
            counted = True
            # Counted twice at worst; the result of a step is worth more than the exact time.
            await self._insist(self._held.computed, ended.duration_ms)
            whole = capture.whole
            artifact_id = None
            if whole is not None:
                name = f"turn-{self.number}-{call_id}.log"
                artifact_id = await self._publish("log_bundle", name, whole)
            await self._publish_produced(environment)
            return Performed(
                status=STATUS_OF.get(  # type: ignore[arg-type]
                    ended.reason, "succeeded" if ended.exit_code == 0 else "failed"
                ),
                exit_code=ended.exit_code,
                duration_ms=ended.duration_ms,
                output=capture.output(artifact_id),
            )
        except asyncio.CancelledError:
            spent = int((time.monotonic() - start) * 1000)
            if self._interrupted:
                # What was seen on the screen is kept; the next worker tells what follows from it.
                await self._take(_interrupted(call_id, spent, capture.output()))
            if not (counted or self.lost):
                await in_thread(self._held.computed, spent)
            raise
        finally:
            self._performing = False
            showing.cancel()
            capture.close()

    async def _show_tail(self, call_id: str, capture: Capture) -> None:
        shown, waited = 0, 0
        while True:
            # Now and then again unchanged: for pages that were opened since, or whose row was late.
            if capture.size != shown or (capture.size and waited >= TAIL_AGAIN):
                shown, waited = capture.size, 0
                await self.draft(call_id, capture.tail())
            await asyncio.sleep(TAIL_SECONDS)
            waited += 1

    async def _publish_produced(self, environment: Environment) -> None:
        """Make artifacts of the files that are new or changed under `artifacts/`.

        What is beyond a step's limits is left where it lies, and the story says so.
        """
        fresh, volume = 0, 0
        left: list[str] = []
        for file in await asyncio.to_thread(lambda: list(environment.produced())):
            try:
                content = environment.open_produced(file)
            except OSError as error:
                logger.info("%s under artifacts/ was left out: %s", file.name, error)
                continue
            with content:
                state = _fingerprint(content)
                if self._published.get(file.name) == state:
                    continue
                if fresh >= MOST_FILES or volume + state[1] > MOST_BYTES:
                    left.append(file.name)
                    continue
                fresh, volume = fresh + 1, volume + state[1]
                await self._publish("file", file.name, content)
                self._published[file.name] = state
        if left:
            named = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
            text = (
                f"Not kept as artifacts: {named}. One step may leave {MOST_FILES} files and "
                f"{MOST_BYTES // 1024**3} GiB; the files are still in the working directory."
            )
            await self._take(MessageCreated(role="system", text=text))

    async def _publish(self, kind: str, name: str, content: BinaryIO, summary: str = "") -> str:
        sha256, size = await in_file_thread(store, content)
        return await self._insist(self._held.artifact, kind, name, sha256, size, summary)

    # -- ends --------------------------------------------------------------------------------

    async def _finish(self, state: TurnState, code: str = "", message: str = "") -> None:
        if self._environment is not None:
            await self._publish_changes(self._environment)
        self.finishing = True
        await self._insist(self._held.finish, state, code, message)

    async def _publish_changes(self, environment: Environment) -> None:
        diff = await environment.changes(f"turn-{self.number}")
        if diff:
            name = f"turn-{self.number}.diff"
            summary = await asyncio.to_thread(diffs.summary_of, diff)
            await self._publish("diff", name, io.BytesIO(diff), summary)


def _interrupted(call_id: str, duration_ms: int, output: events.Output) -> ToolCallCompleted:
    return ToolCallCompleted(
        call_id=call_id,
        status="interrupted",
        duration_ms=duration_ms,
        output=output,
        error="The server stopped while this step ran.",
    )


def _fingerprint(content: BinaryIO) -> tuple[int, int]:
    """What tells a changed file from the one published before, without reading it."""
    status = os.fstat(content.fileno())
    return status.st_mtime_ns, status.st_size

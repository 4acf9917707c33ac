"""How a runbook is worked: what it asks, runs and says, and how it is taken up again."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessions_app.events import (
    CallStatus,
    MessageCreated,
    Output,
    Payload,
    ProgressUpdated,
    ToolCallCompleted,
    ToolCallStarted,
    WidgetCreated,
)
from sessions_app.runners.base import (
    Action,
    Grant,
    Parked,
    Performed,
    Refusal,
    TurnContext,
    TurnFailure,
)
from sessions_app.runners.runbook import RunbookRunner
from sessions_app.runners.runbook.examples import examples
from sessions_app.runners.runbook.grammar import parse
from sessions_app.runners.runbook.help import HELP

from .left_out import left_out

OK = Output(head="ok\n", size=3)


def performed(
    status: CallStatus = "succeeded",
    exit_code: int | None = 0,
    output: Output = OK,
    error: str = "",
) -> Performed:
    return Performed(status, exit_code, 12, output, error)


@dataclass
class FakeTurn:
    """A turn whose answers and results are scripted by call, and which keeps what was asked."""

    instruction: str
    history: Sequence[Payload] = ()
    refuse: dict[str, Refusal] = field(default_factory=dict)
    results: dict[str, Performed] = field(default_factory=dict)
    park: frozenset[str] = frozenset()
    approvals: dict[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    directory: Path | None = None
    number: int = 1
    asked: list[dict[str, Any]] = field(default_factory=list)
    done: list[tuple[str, Action]] = field(default_factory=list)

    async def environment(self) -> Any:
        return SimpleNamespace(confined=True, network=False)

    async def permit(
        self, key: str, action: Action, *, title: str, why: str = "", ask: bool = False
    ) -> Grant | Refusal:
        self.asked.append({"key": key, "action": action, "title": title, "why": why, "ask": ask})
        if key in self.park:
            raise Parked
        return self.refuse.get(key) or Grant(key, action.digest(), self.approvals.get(key))

    async def perform(self, call_id: str, grant: Grant, action: Action) -> Performed:
        assert (grant.key, grant.digest) == (call_id, action.digest())
        self.done.append((call_id, action))
        if self.directory is not None:
            return self._really(action)
        return self.results.get(call_id, performed())

    def _really(self, action: Action) -> Performed:
        ended = subprocess.run(
            [{"python": "python3"}.get(action.tool, action.tool), "-c", action.source],
            cwd=self.directory,
            env={"PATH": os.environ["PATH"], "HOME": str(self.directory)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=action.timeout,
            check=False,
        )
        output = Output(head=ended.stdout.decode(), size=len(ended.stdout))
        status: CallStatus = "failed" if ended.returncode else "succeeded"
        return performed(status, ended.returncode, output=output)

    async def draft(self, ref: str, text: str) -> None:
        raise AssertionError("The live output of a step is the context's to show.")


@dataclass
class Run:
    payloads: list[Payload] = field(default_factory=list)
    ended: BaseException | None = None

    @property
    def failure(self) -> tuple[str, str]:
        assert isinstance(self.ended, TurnFailure)
        return self.ended.code, str(self.ended)

    @property
    def stories(self) -> list[str]:
        """One word or two for each payload but progress."""
        return [_story(each) for each in self.payloads if not isinstance(each, ProgressUpdated)]

    @property
    def progress(self) -> list[tuple[str, float | None]]:
        told = [each for each in self.payloads if isinstance(each, ProgressUpdated)]
        return [(each.label, each.fraction) for each in told]


def _story(payload: Payload) -> str:
    match payload:
        case MessageCreated():
            return f"{payload.role} {payload.ref}"
        case WidgetCreated():
            return f"{payload.widget} {payload.widget_id}"
        case ToolCallStarted():
            return f"started {payload.call_id}"
        case ToolCallCompleted():
            return f"{payload.status} {payload.call_id}"
    raise AssertionError(payload)


async def run(turn: FakeTurn) -> Run:
    seen = Run()
    context: TurnContext = turn
    try:
        async for payload in RunbookRunner().run(context):
            seen.payloads.append(payload)
    except (TurnFailure, Parked) as error:
        seen.ended = error
    return seen


RUNBOOK = """\
# Ship it

Look first.

```sh name=look timeout=5
ls
```

```mermaid title="The plan"
flowchart LR
  A --> B
```

Now it gets serious:
this changes what people see.

```bash name=ship gate=ask on-reject=continue on-failure=continue
./ship
```

```python
print(1)
```

Done.
"""
GIT = "```sh\ngit tag v1\n```"


# -- what it does ------------------------------------------------------------------------------


async def test_it_works_a_runbook_from_top_to_bottom() -> None:
    turn = FakeTurn(RUNBOOK, approvals={"step-5": "approval-1"})

    seen = await run(turn)

    assert seen.ended is None
    assert seen.payloads == [
        MessageCreated(role="assistant", text="# Ship it\n\nLook first.", ref="step-1"),
        ProgressUpdated(label="Step 1 of 3: look", fraction=0),
        ToolCallStarted(
            call_id="step-2",
            kind="shell",
            tool="sh",
            title="look",
            arguments={"source": "ls\n", "timeout": 5.0, "name": "look"},
        ),
        ToolCallCompleted(
            call_id="step-2",
            status="succeeded",
            exit_code=0,
            duration_ms=12,
            output=OK,
        ),
        WidgetCreated(
            widget_id="step-3",
            widget="diagram",
            title="The plan",
            body={"source": "flowchart LR\n  A --> B\n"},
        ),
        MessageCreated(
            role="assistant",
            text="Now it gets serious:\nthis changes what people see.",
            ref="step-4",
        ),
        ProgressUpdated(label="Step 2 of 3: ship", fraction=0.3333),
        ToolCallStarted(
            call_id="step-5",
            kind="shell",
            tool="bash",
            title="ship",
            arguments={"source": "./ship\n", "timeout": 600.0, "name": "ship"},
            approval_id="approval-1",
        ),
        ToolCallCompleted(
            call_id="step-5",
            status="succeeded",
            exit_code=0,
            duration_ms=12,
            output=OK,
        ),
        ProgressUpdated(label="Step 3 of 3: print(1)", fraction=0.6667),
        ToolCallStarted(
            call_id="step-6",
            kind="shell",
            tool="python",
            title="print(1)",
            arguments={"source": "print(1)\n", "timeout": 600.0, "name": ""},
        ),
        ToolCallCompleted(
            call_id="step-6",
            status="succeeded",
            exit_code=0,
            duration_ms=12,
            output=OK,
        ),
        MessageCreated(role="assistant", text="Done.", ref="step-7"),
    ]


async def test_it_asks_for_exactly_what_it_then_does() -> None:
    turn = FakeTurn(RUNBOOK)

    await run(turn)

    assert [(each["key"], each["action"]) for each in turn.asked] == turn.done
    assert turn.asked[1] == {
        "key": "step-5",
        "action": Action(
            kind="shell", tool="bash", source="./ship\n", timeout=600, confined=True, network=False
        ),
        "title": "ship",
        "why": "Now it gets serious: this changes what people see.",
        "ask": True,
    }
    assert [each["ask"] for each in turn.asked] == [False, True, False]


async def test_the_reason_is_the_one_of_the_block_or_the_last_paragraph_before_it() -> None:
    long = "word " * 100
    turn = FakeTurn(
        f"# T\n\nOne.\n \nTwo\nlines.\n\n```sh\na\n```\n```sh why='Mine.'\nb\n```\n\n{long}\n"
        "```sh\nc\n```"
    )

    await run(turn)

    reasons = [each["why"] for each in turn.asked]
    assert reasons[:2] == ["Two lines.", "Mine."]
    assert len(reasons[2]) <= 300
    assert reasons[2].endswith("word…")


async def test_a_step_that_only_runs_git_is_asked_for_and_shown_as_git() -> None:
    turn = FakeTurn(GIT)

    seen = await run(turn)

    assert turn.asked[0]["action"].kind == "git"
    started = seen.payloads[0]
    assert isinstance(started, ToolCallStarted)
    assert (started.kind, started.tool, started.title) == ("git", "sh", "git tag v1")


async def test_an_instruction_without_a_block_is_answered_with_help() -> None:
    turn = FakeTurn("Please deploy.\n\n```json\n{}\n```")

    seen = await run(turn)

    assert seen.payloads == [MessageCreated(role="assistant", text=HELP, ref="help")]
    assert (await run(FakeTurn(turn.instruction, history=seen.payloads))).payloads == []


async def test_a_diagram_alone_is_a_runbook() -> None:
    assert (await run(FakeTurn("```mermaid\npie\n```"))).stories == ["diagram step-1"]


async def test_nothing_is_run_of_a_runbook_that_has_a_problem() -> None:
    seen = await run(FakeTurn("Hello\n\n```sh\nls\n```\n\n```sh gate=deny\nls\n```"))

    assert seen.payloads == []
    assert seen.failure == ("bad_runbook", "Line 7: `gate` can only be `ask`, not `deny`.")


async def test_the_setting_timeout_holds_for_blocks_without_their_own() -> None:
    turn = FakeTurn(RUNBOOK, settings={"timeout": 30})

    await run(turn)

    assert [action.timeout for _, action in turn.done] == [5, 30, 30]


@pytest.mark.parametrize("value", [0, -1, 1e9, True, "60", None, float("nan")])
async def test_a_wrong_setting_fails_the_turn_before_anything_is_done(value: object) -> None:
    seen = await run(FakeTurn(RUNBOOK, settings={"timeout": value}))

    assert seen.payloads == []
    assert seen.failure[0] == "bad_settings"


async def test_texts_too_long_for_an_event_are_cut() -> None:
    turn = FakeTurn(
        "```sh on-failure=continue\n" + "x" * 5000 + "\n```",
        results={"step-1": performed("failed", None, error="e" * 5000)},
    )

    seen = await run(turn)

    assert seen.stories == ["started step-1", "failed step-1"]


# -- when a step does not go well --------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (performed("failed", 2), "Step `look` failed with exit code 2."),
        (performed("failed", None, error="No sh."), "Step `look` failed: No sh."),
        (performed("failed", None), "Step `look` failed."),
        (performed("timed_out", None), "Step `look` reached its time limit of 5 seconds."),
        (performed("interrupted", None), "Step `look` was running when the server stopped."),
    ],
)
async def test_a_failed_step_stops_the_runbook(result: Performed, message: str) -> None:
    seen = await run(FakeTurn(RUNBOOK, results={"step-2": result}))

    assert seen.stories == ["assistant step-1", "started step-2", f"{result.status} step-2"]
    assert seen.failure == ("step_failed", message)


@pytest.mark.parametrize("status", ["failed", "timed_out", "interrupted"])
async def test_a_failed_step_that_says_so_lets_the_runbook_go_on(status: CallStatus) -> None:
    seen = await run(FakeTurn(RUNBOOK, results={"step-5": performed(status, 1)}))

    assert seen.ended is None
    assert seen.stories[-4:] == [
        f"{status} step-5",
        "started step-6",
        "succeeded step-6",
        "assistant step-7",
    ]


async def test_a_refused_action_fails_the_turn_whatever_the_block_says() -> None:
    refused = performed("refused", None, error="This is not the action that was approved.")

    seen = await run(FakeTurn(RUNBOOK, results={"step-5": refused}))

    assert seen.stories[-1] == "refused step-5"
    assert seen.failure == ("refused", "This is not the action that was approved.")


async def test_a_cancelled_step_is_the_last_thing_that_happens() -> None:
    seen = await run(FakeTurn(RUNBOOK, results={"step-5": performed("cancelled", None)}))

    assert seen.ended is None
    assert seen.stories[-1] == "cancelled step-5"


# -- people ------------------------------------------------------------------------------------


async def test_a_rejected_step_is_not_run_and_stops_the_runbook() -> None:
    turn = FakeTurn(RUNBOOK, refuse={"step-2": Refusal("bob", "Not on a Friday.")})

    seen = await run(turn)

    assert turn.done == []
    assert seen.payloads[2:] == [
        MessageCreated(
            role="system",
            text="Step `look` was not run: rejected by bob: Not on a Friday.",
            ref="step-2",
        )
    ]
    assert seen.failure == (
        "rejected",
        "Stopped at step `look`: rejected by bob: Not on a Friday.",
    )


async def test_a_rejected_step_that_says_so_lets_the_runbook_go_on() -> None:
    turn = FakeTurn(RUNBOOK, refuse={"step-5": Refusal("bob", "")})

    seen = await run(turn)

    assert seen.ended is None
    assert (
        MessageCreated(
            role="system", text="Step `ship` was not run: rejected by bob.", ref="step-5"
        )
        in seen.payloads
    )
    assert [call_id for call_id, _ in turn.done] == ["step-2", "step-6"]


async def test_a_step_without_a_name_is_called_by_its_first_line() -> None:
    turn = FakeTurn("```sh\necho `id`\n```", refuse={"step-1": Refusal("bob", "why?")})

    seen = await run(turn)

    assert seen.failure == ("rejected", "Stopped at step `echo 'id'`: rejected by bob: why?")


async def test_it_parks_before_anything_is_said_about_the_step() -> None:
    seen = await run(FakeTurn(RUNBOOK, park=frozenset({"step-5"})))

    assert isinstance(seen.ended, Parked)
    assert seen.stories == [
        "assistant step-1",
        "started step-2",
        "succeeded step-2",
        "diagram step-3",
        "assistant step-4",
    ]


async def test_a_parked_turn_goes_on_after_the_decision_and_does_nothing_twice() -> None:
    parked = await run(FakeTurn(RUNBOOK, park=frozenset({"step-5"})))
    turn = FakeTurn(RUNBOOK, history=parked.payloads, approvals={"step-5": "approval-1"})

    seen = await run(turn)

    assert [each["key"] for each in turn.asked] == ["step-5", "step-6"]
    assert (
        parked.payloads + seen.payloads
        == (await run(FakeTurn(RUNBOOK, approvals={"step-5": "approval-1"}))).payloads
    )


# -- taken up again ----------------------------------------------------------------------------

_results = st.sampled_from(
    [
        performed(),
        performed("failed", 3),
        performed("timed_out", None),
        performed("cancelled", None),
        performed("refused", None, error="Not the same."),
        Refusal("bob", "no"),
    ]
)


@settings(deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys(("step-2", "step-5", "step-6"), _results)))
async def test_any_prefix_of_the_history_is_continued_with_exactly_the_rest(
    script: dict[str, Performed | Refusal],
) -> None:
    def turn(history: Sequence[Payload]) -> FakeTurn:
        return FakeTurn(
            RUNBOOK,
            history=history,
            refuse={ref: each for ref, each in script.items() if isinstance(each, Refusal)},
            results={ref: each for ref, each in script.items() if isinstance(each, Performed)},
        )

    whole = await run(turn([]))
    for length in range(len(whole.payloads) + 1):
        history = whole.payloads[:length]
        if history and isinstance(history[-1], ToolCallStarted):
            continue  # what ran when its worker died is told below
        again = turn(history)

        rest = await run(again)

        assert history + rest.payloads == whole.payloads
        assert repr(rest.ended) == repr(whole.ended)
        finished = {e.call_id for e in history if isinstance(e, ToolCallCompleted)}
        assert not finished & {call_id for call_id, _ in again.done}


async def test_history_of_other_parts_of_the_turn_does_not_confuse_it() -> None:
    history = [
        MessageCreated(role="user", text="Do it.", author="alice"),
        WidgetCreated(widget_id="step-5", widget="approval", body={"approval_id": "approval-1"}),
    ]

    seen = await run(FakeTurn(RUNBOOK, history=history))

    assert seen.payloads == (await run(FakeTurn(RUNBOOK))).payloads


# -- interrupted -------------------------------------------------------------------------------

LONG = "Why not.\n\n```sh name=long {options}\nmake\n```\n\n```sh\nls\n```\n"


def cut_off(instruction: str, *more: Payload) -> list[Payload]:
    """What is recorded of a runbook whose worker died in its first step."""
    call = ToolCallStarted(call_id="step-2", kind="shell", tool="sh", title="long")
    first = ProgressUpdated(label="Step 1 of 2: long", fraction=0)
    return [MessageCreated(role="assistant", text="Why not.", ref="step-1"), first, call, *more]


def told(call_id: str = "step-2") -> ToolCallCompleted:
    return ToolCallCompleted(
        call_id=call_id, status="interrupted", error="The server stopped while this step ran."
    )


async def test_a_step_that_ran_when_its_worker_died_is_told_and_asks_before_it_is_run_again() -> (
    None
):
    instruction = LONG.format(options="")
    turn = FakeTurn(instruction, history=cut_off(instruction), park=frozenset({"step-2.2"}))

    seen = await run(turn)

    assert isinstance(seen.ended, Parked)
    assert seen.payloads == [told()]
    assert turn.done == []
    [asked] = turn.asked
    assert (asked["key"], asked["title"], asked["ask"]) == ("step-2.2", "long (again)", True)
    assert asked["why"] == (
        "The server stopped while this step ran, and nobody knows how far it had come. Why not."
    )


async def test_approved_it_is_run_again_under_a_name_of_its_own() -> None:
    instruction = LONG.format(options="")
    history = cut_off(instruction, told())
    turn = FakeTurn(instruction, history=history, approvals={"step-2.2": "approval-1"})

    seen = await run(turn)

    assert seen.ended is None
    assert seen.stories == [
        "started step-2.2",
        "succeeded step-2.2",
        "started step-3",
        "succeeded step-3",
    ]
    started = seen.payloads[0]
    assert isinstance(started, ToolCallStarted)
    assert (started.title, started.approval_id) == ("long", "approval-1")
    again = FakeTurn(instruction, history=history + seen.payloads)
    assert ((await run(again)).payloads, again.asked) == ([], []), "what is done stays done"


async def test_a_step_that_is_safe_to_retry_is_run_again_without_asking() -> None:
    instruction = LONG.format(options="retry=safe")
    turn = FakeTurn(instruction, history=cut_off(instruction))

    seen = await run(turn)

    assert seen.ended is None
    assert seen.stories[:3] == ["interrupted step-2", "started step-2.2", "succeeded step-2.2"]
    assert turn.asked[0]["ask"] is False


async def test_a_gated_step_asks_for_every_run_even_if_it_is_safe_to_retry() -> None:
    instruction = LONG.format(options="retry=safe gate=ask")
    turn = FakeTurn(instruction, history=cut_off(instruction))

    await run(turn)

    assert (turn.asked[0]["key"], turn.asked[0]["ask"]) == ("step-2.2", True)


async def test_each_interruption_is_told_once_and_each_run_has_a_name() -> None:
    instruction = LONG.format(options="retry=safe")
    history = cut_off(instruction)
    for number in (2, 3):
        seen = await run(FakeTurn(instruction, history=history))
        before = "step-2" if number == 2 else "step-2.2"
        assert seen.stories[:2] == [f"interrupted {before}", f"started step-2.{number}"]
        history += seen.payloads[:2]


async def test_what_nobody_lets_run_again_counts_as_failed() -> None:
    instruction = LONG.format(options="on-reject=continue")
    turn = FakeTurn(
        instruction,
        history=cut_off(instruction, told()),
        refuse={"step-2.2": Refusal("bob", "It mails.")},
    )

    seen = await run(turn)

    assert turn.done == []
    assert seen.payloads == [
        MessageCreated(
            role="system",
            text="Step `long` was not run again: rejected by bob: It mails.",
            ref="step-2.2",
        )
    ]
    assert seen.failure == (
        "step_failed",
        "Step `long` was running when the server stopped, and not run again: "
        "rejected by bob: It mails.",
    )
    after = await run(FakeTurn(instruction, history=[*turn.history, *seen.payloads]))
    assert (after.payloads, after.failure) == ([], seen.failure)


async def test_an_interrupted_step_that_may_fail_and_is_rejected_lets_the_runbook_go_on() -> None:
    instruction = LONG.format(options="on-failure=continue")
    turn = FakeTurn(
        instruction,
        history=cut_off(instruction),
        refuse={"step-2.2": Refusal("bob", "No.")},
    )

    seen = await run(turn)

    assert seen.ended is None
    assert seen.stories == [
        "interrupted step-2",
        "system step-2.2",
        "started step-3",
        "succeeded step-3",
    ]


async def test_a_step_that_fails_when_it_is_run_again_has_failed() -> None:
    instruction = LONG.format(options="retry=safe")
    turn = FakeTurn(
        instruction,
        history=cut_off(instruction),
        results={"step-2.2": performed("failed", 2)},
    )

    assert (await run(turn)).failure == ("step_failed", "Step `long` failed with exit code 2.")


# -- progress ----------------------------------------------------------------------------------


async def test_of_several_steps_it_says_which_one_comes_now() -> None:
    assert (await run(FakeTurn(RUNBOOK))).progress == [
        ("Step 1 of 3: look", 0.0),
        ("Step 2 of 3: ship", 0.3333),
        ("Step 3 of 3: print(1)", 0.6667),
    ]


async def test_a_single_step_needs_no_bar() -> None:
    assert (await run(FakeTurn(GIT))).progress == []


async def test_a_step_that_was_announced_before_the_turn_was_taken_up_is_not_announced_again() -> (
    None
):
    parked = await run(FakeTurn(RUNBOOK, park=frozenset({"step-5"})))
    assert [label for label, _ in parked.progress] == ["Step 1 of 3: look", "Step 2 of 3: ship"]

    seen = await run(FakeTurn(RUNBOOK, history=parked.payloads))

    assert [label for label, _ in seen.progress] == ["Step 3 of 3: print(1)"]


async def test_a_step_that_was_rejected_is_not_asked_for_again() -> None:
    refuse = {"step-5": Refusal("bob", "no")}
    first = await run(FakeTurn(RUNBOOK, refuse=refuse, park=frozenset({"step-6"})))
    turn = FakeTurn(RUNBOOK, history=first.payloads)

    seen = await run(turn)

    assert [call_id for call_id, _ in turn.done] == ["step-6"]
    assert seen.stories == ["started step-6", "succeeded step-6", "assistant step-7"]


# -- the examples ------------------------------------------------------------------------------


def test_every_example_has_a_title_and_a_summary_and_no_problem() -> None:
    assert [example.title for example in examples()] == [
        "Cut a release",
        "Read a slow query log",
        "Try the guard rails",
    ]
    for example in examples():
        assert parse(example.source).problems == ()
        assert 20 < len(example.summary) < 120
        assert not example.summary.startswith(("#", "`"))


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.slug)
async def test_every_example_runs_twice_in_the_same_directory(example: Any, tmp_path: Path) -> None:
    if example.slug == "cut-a-release" and shutil.which("git") is None:
        left_out("git is not installed: an example was left out.")
    for _ in range(2):
        seen = await run(FakeTurn(example.source, directory=tmp_path))

        assert seen.ended is None
        titles = {e.call_id: e.title for e in seen.payloads if isinstance(e, ToolCallStarted)}
        for call in seen.payloads:
            # There may be a network where the tests run, or none.
            if isinstance(call, ToolCallCompleted) and titles[call.call_id] != "network":
                assert call.status == "succeeded", call.output.head
        assert any((tmp_path / "artifacts").iterdir())


async def test_the_first_example_tags_a_release_each_time(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        left_out("git is not installed: an example was left out.")
    for _ in range(2):
        await run(FakeTurn(examples()[0].source, directory=tmp_path))

    tags = sorted(
        each.name for each in (tmp_path / "greeting" / ".git" / "refs" / "tags").iterdir()
    )
    assert tags == ["v1.1.0", "v1.2.0"]
    notes = (tmp_path / "artifacts" / "release-notes.txt").read_text()
    assert notes == "greeting v1.2.0\n\n* Raise the version\n"


async def test_the_guard_rails_go_on_when_their_gated_step_is_rejected(tmp_path: Path) -> None:
    source = examples()[2].source
    ask = next(item.ref for item in parse(source).items if getattr(item, "name", "") == "ask")
    turn = FakeTurn(source, directory=tmp_path, refuse={ask: Refusal("bob", "Just trying.")})

    seen = await run(turn)

    assert seen.ended is None
    assert f"system {ask}" in seen.stories
    assert seen.stories[-1].startswith("succeeded")
    assert not (tmp_path / "artifacts").exists()

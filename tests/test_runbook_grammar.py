"""What a runbook may say, and what is said about one that may not be run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessions_app.environments.base import Interpreter
from sessions_app.runners.base import Problem
from sessions_app.runners.runbook import RunbookRunner
from sessions_app.runners.runbook.commands import only_git
from sessions_app.runners.runbook.grammar import (
    LANGUAGES,
    MAX_CHARACTERS,
    MAX_PROBLEMS,
    Delegation,
    Diagram,
    Item,
    Prose,
    Runbook,
    Step,
    parse,
)
from sessions_app.runners.runbook.help import HELP

DOCS = Path(__file__).parent.parent / "docs" / "runbooks.md"


def check(instruction: str) -> list[str]:
    return [str(problem) for problem in RunbookRunner().check(instruction)]


def items(instruction: str) -> tuple[Item, ...]:
    runbook = parse(instruction)
    assert runbook.problems == ()
    return runbook.items


def step(info: str, source: str = "ls", fence: str = "```") -> Step:
    (item,) = items(f"{fence}{info}\n{source}\n{fence}")
    assert isinstance(item, Step)
    return item


# -- prose -------------------------------------------------------------------------------------


def test_prose_and_blocks_become_items_in_their_order() -> None:
    found = items("# Title\n\nFirst.\n\n```sh\nls\n```\n\nThen.\n\n~~~python\nprint()\n~~~\n")

    assert [(type(item), item.ref, item.line, item.last) for item in found] == [
        (Prose, "step-1", 1, 3),
        (Step, "step-2", 5, 7),
        (Prose, "step-3", 9, 9),
        (Step, "step-4", 11, 13),
    ]


def test_prose_stays_exactly_what_was_written() -> None:
    prose = (
        "    indented code\n\n"
        "1. a list\n   * with *another*  \n\n     > and a quote\n\n"
        '```json\n{"a": 1}\n```\n\n'
        "<b>html</b> &amp; [a link][1]\n\n[1]: https://example.com"
    )

    assert items(f"\n \n{prose}\n\t\n\n```sh\nls\n```") == (
        Prose(line=3, last=16, number=1, text=prose),
        Step(line=19, last=21, number=2, tool="sh", kind="shell", source="ls\n"),
    )


def test_a_fence_of_another_language_or_of_none_is_text() -> None:
    text = "```yaml\na: [\n```\n\n```\nplain\n```\n\n```shell\nls\n```"

    assert items(text) == (Prose(line=1, last=11, number=1, text=text),)


def test_a_fence_shown_inside_a_longer_fence_is_text() -> None:
    text = "````markdown\n```sh\nls\n```\n````"

    assert items(text) == (Prose(line=1, last=5, number=1, text=text),)


def test_an_indented_fence_and_a_commented_one_are_text() -> None:
    text = "So:\n\n    ```sh\n    ls\n    ```\n\n<!--\n```sh\nls\n```\n-->"

    assert items(text) == (Prose(line=1, last=11, number=1, text=text),)


@pytest.mark.parametrize("newline", ["\r\n", "\r"])
def test_other_line_endings_read_like_line_feeds(newline: str) -> None:
    text = "A\n\nB\n\n```sh name=x\nls\n\tpwd\n```\n\n> C\n"

    assert items(text.replace("\n", newline)) == items(text)


# -- blocks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ["sh", "bash", "python"])
def test_a_block_of_each_interpreter_becomes_a_step(tool: Interpreter) -> None:
    assert step(tool, "\n  a\n\tb  \n") == Step(
        line=1, last=6, number=1, tool=tool, kind="shell", source="\n  a\n\tb  \n\n"
    )


def test_a_language_is_read_without_regard_to_case() -> None:
    assert step("Bash").tool == "bash"


def test_a_block_may_be_fenced_with_tildes_and_longer_fences() -> None:
    assert step("sh", "```\nx", fence="~~~").source == "```\nx\n"
    assert step("sh", "```\nx", fence="`````").source == "```\nx\n"


def test_a_block_has_all_its_options() -> None:
    found = step(
        "sh name=deploy timeout=2.5 gate=ask on-reject=continue on-failure=continue retry=safe"
        ' why="It changes what people see."'
    )

    assert found == Step(
        line=1,
        last=3,
        number=1,
        tool="sh",
        kind="shell",
        source="ls\n",
        name="deploy",
        timeout=2.5,
        gate=True,
        on_reject="continue",
        on_failure="continue",
        retry=True,
        why="It changes what people see.",
    )


def test_options_are_quoted_by_the_rules_of_a_shell() -> None:
    assert step("""sh 'why=It is "fine".' na'me'=x""").why == 'It is "fine".'
    assert step('sh   why="say \\"yes\\""\t').why == 'say "yes"'


def test_work_for_another_agent_is_taken_word_for_word() -> None:
    inner = "# Do it\n\n```sh name=one\nls\n```\n"
    [found] = parse(f'````delegate agent="The reviewer" name=r\n{inner}````').items
    assert found == Delegation(
        line=1, last=7, number=1, agent="The reviewer", source=inner, name="r"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```delegate\nDo it.\n```", 'Line 1: Say who gets this work: `agent="…"`.'),
        ("```delegate agent=A\n\n```", "Line 1: This `delegate` block is empty."),
        (
            "```delegate agent=A gate=ask\nDo it.\n```",
            "Line 1: Unknown option `gate`. This block takes `agent`, `name`, `on-failure`.",
        ),
        (
            "```delegate agent=A\n```sh\nls\n```\n```",
            "Line 2: A block opens here, but the one of line 1 is still open. Close that one "
            "first, or give it a longer fence than ```.",
        ),
    ],
)
def test_work_for_another_agent_is_checked_too(text: str, problem: str) -> None:
    assert problem in [str(found) for found in parse(text).problems]


@pytest.mark.parametrize("timeout", ["1", "0.5", ".5", "86400", "86400.0", "007"])
def test_a_timeout_is_a_number_of_seconds(timeout: str) -> None:
    assert step(f"sh timeout={timeout}").timeout == float(timeout)


def test_a_step_without_a_name_is_titled_by_its_first_line() -> None:
    assert step("sh name=x").title == "x"
    assert step("sh", "\n  ls   -la \npwd").title == "ls -la"
    assert len(step("sh", "x" * 10_000).title) == 120


def test_a_mermaid_block_becomes_a_diagram() -> None:
    assert items('```mermaid name=flow title="The flow"\nflowchart LR\n  A --> B\n```') == (
        Diagram(
            line=1,
            last=4,
            number=1,
            source="flowchart LR\n  A --> B\n",
            name="flow",
            title="The flow",
        ),
    )


# -- git ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "git status",
        "  git add . && git commit -m 'A; B | C' || git stash; git log\n\n",
        "# Tag it\ngit tag v1\n\n  # and push it\ngit push --tags",
        'git -C greeting commit --message "two\n# lines"',
        "'git' log --format='%h (%an) <%ae>'",
    ],
)
def test_a_block_that_only_runs_git_is_shown_as_git(source: str) -> None:
    assert step("sh", source).kind == "git"
    assert step("bash", source).kind == "git"


@pytest.mark.parametrize(
    "source",
    [
        "ls",
        "git status; ls",
        "git status\nls",
        "git status &&\nls",
        "cd x && git status",
        "git log | head",
        "git log > log",
        "git apply < patch",
        "git fetch &",
        "git tag $(date)",
        "git tag `date`",
        "git tag $TAG",
        "(git status)",
        "GIT_DIR=x git status",
        "git log a#b; ls",
        "git log 'a\n#'#b; ls",
        "git log a\\\n#b; ls",
        "';' ; git status",
        "git() { ls; }",
        "if git status; then ls; fi",
        "git commit -m 'open",
        "./git status",
        "gitk",
        "# nothing but a comment",
        "git log " + "a" * 10_000,
    ],
)
def test_everything_else_is_shown_as_shell(source: str) -> None:
    assert not only_git(source)
    assert step("sh", source).kind == "shell"


def test_python_is_never_shown_as_git() -> None:
    assert step("python", "git").kind == "shell"


# -- problems ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", " ", "\r\n\t\n", "\N{NO-BREAK SPACE}"])
def test_it_refuses_an_empty_runbook(text: str) -> None:
    assert check(text) == ["Line 1: Write something first: there is nothing to run."]


def test_it_refuses_a_runbook_that_is_too_long_and_says_by_how_much() -> None:
    assert check("a" * MAX_CHARACTERS) == []
    assert check("```sh\n" * 200_000) == [
        "Line 1: The runbook has 1,200,000 characters; at most 100,000 are allowed."
    ]


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (
            "gate=allow",
            "`gate=allow` is refused: a block may tighten its gate, never loosen it. "
            "The only value is `gate=ask`.",
        ),
        ("gate=deny", "`gate` can only be `ask`, not `deny`."),
        (
            "retry=always",
            "`retry` can only be `safe`, not `always`: it says that the step may be run again by "
            "itself after the server stopped in the middle of it.",
        ),
        ("gate=", "`gate` can only be `ask`, not ``."),
        ("on-reject=skip", "`on-reject` is `stop` or `continue`, not `skip`."),
        ("on-failure=STOP", "`on-failure` is `stop` or `continue`, not `STOP`."),
        ("why=''", "`why` is empty."),
        ("why=" + "x" * 501, "`why` has 501 characters; at most 500 are allowed."),
        ("name=1st", "`name` is a letter and up to 39 more letters, digits, `-` or `_`."),
        ("name=" + "n" * 41, "`name` is a letter and up to 39 more letters, digits, `-` or `_`."),
        ("name=é", "`name` is a letter and up to 39 more letters, digits, `-` or `_`."),
        ("timeout=1 timeout=2", "The option `timeout` is given twice."),
        ("timeout", "The option `timeout` has no value: write `timeout=…`."),
        ('why="open', "A quote in the options is never closed."),
        ("x" * 2_001, "The options have 2001 characters; at most 2000 are allowed."),
        (
            "retries=3",
            "Unknown option `retries`. This block takes `name`, `timeout`, `gate`, `on-reject`, "
            "`on-failure`, `retry`, `why`.",
        ),
        (
            "title=x",
            "Unknown option `title`. This block takes `name`, `timeout`, `gate`, `on-reject`, "
            "`on-failure`, `retry`, `why`.",
        ),
    ],
)
def test_it_refuses_a_wrong_option_and_says_where(info: str, message: str) -> None:
    assert check(f"One\n\n```sh {info}\nls\n```") == [f"Line 3: {message}"]


@pytest.mark.parametrize("value", ["0", "-1", "1e3", "nan", "1m", "86401", "9" * 400, "0.0", "٣"])
def test_it_refuses_a_timeout_out_of_bounds(value: str) -> None:
    (problem,) = check(f"```sh timeout={value}\nls\n```")
    assert problem.startswith(
        "Line 1: `timeout` is a number of seconds above 0 and at most 86400, not `"
    )
    assert len(problem) < 130


def test_a_diagram_takes_a_name_and_a_title_only() -> None:
    assert check("```mermaid timeout=3\npie\n```") == [
        "Line 1: Unknown option `timeout`. This block takes `name`, `title`."
    ]


def test_it_refuses_a_name_used_twice_and_says_where() -> None:
    text = "```sh name=a\nls\n```\n```python name=b\n1\n```\n```mermaid name=a\npie\n```"

    assert check(text) == ["Line 7: The name `a` is used twice, first at line 1."]


@pytest.mark.parametrize("language", ["sh", "bash", "python", "mermaid"])
def test_it_refuses_an_empty_block(language: str) -> None:
    assert check(f"```{language}\n \n```") == [f"Line 1: This `{language}` block is empty."]


@pytest.mark.parametrize("fence", ["```", "~~~", "`````"])
@pytest.mark.parametrize("language", ["sh", "json", ""])
@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n    ```", "\n```x"])
def test_it_refuses_a_block_that_is_never_closed(fence: str, language: str, end: str) -> None:
    assert check(f"One\n{fence}{language}\nls{end}") == [
        f"Line 2: This block is never closed: add {fence} on a line of its own."
    ]


def test_a_fence_is_closed_by_a_longer_one_and_by_one_that_is_indented_a_little() -> None:
    assert check("```sh\nls\n`````  ") == []
    assert check("   ```sh\n   ls\n  ```\t") == []


def test_it_refuses_a_block_that_opens_inside_another() -> None:
    """The prose between the two would be run as commands, had the first its end forgotten."""
    assert check("```sh\nls\n\nNow the other:\n\n```python\nprint()\n```") == [
        "Line 6: A block opens here, but the one of line 1 is still open. Close that one first, "
        "or give it a longer fence than ```."
    ]


def test_it_refuses_a_step_that_would_be_swallowed_by_text() -> None:
    assert check("```json\n{}\n\n```sh\nls\n```") == [
        "Line 4: A block opens here, but the one of line 1 is still open. Close that one first, "
        "or give it a longer fence than ```."
    ]
    assert check("```text\n```json\n{}\n```") == []


@pytest.mark.parametrize("before", ["1. One\n\n   ", "> ", "* a\n  * b\n    "])
@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_it_refuses_a_block_in_a_list_or_a_quote(before: str, language: str) -> None:
    indent = before.splitlines()[-1]
    (problem,) = RunbookRunner().check(f"{before}```{language}\n{indent}ls\n{indent}```")

    assert problem.line == before.count("\n") + 1
    assert problem.message == (
        f"Move this `{language}` block out of the list or quote: only blocks that start at the "
        "left edge are run."
    )


def test_another_language_may_lie_in_a_list() -> None:
    assert check("* See:\n  ```json\n  {}\n  ```") == []


def test_it_refuses_what_only_looks_like_a_block() -> None:
    assert check('```sh why="runs `ls`"\nls') == [
        "Line 1: This does not start a block, as there is another backtick on the line. Fence it "
        "with ~~~ to use backticks in its options."
    ]
    assert check("<details>\n```sh\nls\n```\n</details>") == [
        "Line 2: This does not start a block, as it is part of the HTML above: leave a blank line "
        "first."
    ]
    assert check("<!-- not yet\n\n```sh\nls\n```") == [
        "Line 3: This does not start a block, as the comment of line 1 is never closed: add -->."
    ]
    assert step('sh why="runs `ls`"', fence="~~~").why == "runs `ls`"
    assert check("<details>\n\n```sh\nls\n```\n\n</details>") == []


@pytest.mark.parametrize("language", ["choice", "form", "status", "doc", "nav", "table"])
def test_it_refuses_a_reserved_block_as_not_available_yet(language: str) -> None:
    assert check(f"One\n\n```{language} name=x\na: 1\n```") == [
        f"Line 3: `{language}` blocks are not available yet."
    ]


def test_it_reports_broken_yaml_at_its_own_line() -> None:
    reserved, broken = RunbookRunner().check("One\n\n```form\na: 1\nb: c: d\n```")

    assert str(reserved) == "Line 3: `form` blocks are not available yet."
    assert broken.line == 5
    assert broken.message.startswith("Broken YAML: mapping values are not allowed")


@pytest.mark.parametrize("yaml", ["\x07", "a: \x00", "[" * 50_000, "&a " * 20_000, "\ud800: ["])
def test_strange_yaml_is_no_more_than_a_problem(yaml: str) -> None:
    problems = RunbookRunner().check(f"```form\n{yaml}\n```")

    assert problems[0] == Problem(1, "`form` blocks are not available yet.")


def test_it_tells_all_problems_at_once_in_line_order() -> None:
    text = "\n".join(
        [
            "```sh name=a gate=allow retries=1",
            "```",
            "* ```bash",
            "  ls",
            "  ```",
            "",
            "```nav",
            "a: [",
            "```",
            "```sh name=a",
            "ls",
        ]
    )

    assert [line.partition(":")[0] for line in check(text)] == [
        "Line 1",
        "Line 1",
        "Line 1",
        "Line 3",
        "Line 7",
        "Line 9",
        "Line 10",
        "Line 10",
    ]


def test_it_counts_the_rest_of_very_many_problems() -> None:
    problems = check("```sh\n```\n" * 1_000)

    assert len(problems) == MAX_PROBLEMS + 1
    assert problems[-1] == "Line 201: There are 900 more problems."


# -- any text ----------------------------------------------------------------------------------

_parts = st.sampled_from(
    [
        *("```", "~~~", "````", "sh", "bash", "python", "mermaid", "form", "json", "\n", "\n\n"),
        *(
            "\r\n",
            "\r",
            " ",
            "   ",
            "    ",
            "\t",
            "- ",
            "1. ",
            "> ",
            "text",
            "`",
            "# ",
            "a: [",
            "'",
        ),
        *(" name=a", " name=b", " timeout=1", ' why="x y"', "=", "\\", "\x00", "\x0b", "\u2028"),
        *("<div>", "<!--", "-->", "[a]: b", "---", "git status", ";", "é", "\ud800"),
        *("```sh\nls\n```\n", "~~~python name=c\n1\n~~~\n", "\n```mermaid\npie\n```\n"),
    ]
)
_any_text = st.one_of(
    st.lists(_parts, max_size=40).map("".join),
    st.text(st.characters(exclude_categories=()), max_size=200),
)


def covered_lines(runbook: Runbook) -> list[int]:
    return [line for item in runbook.items for line in range(item.line, item.last + 1)]


@settings(deadline=None)
@given(_any_text)
def test_any_text_gives_a_list_of_problems_in_line_order(text: str) -> None:
    problems = RunbookRunner().check(text)

    count = len(re.split(r"\r\n?|\n", text))
    lines = [problem.line for problem in problems]
    assert lines == sorted(lines)
    assert all(1 <= line <= count for line in lines)


@settings(deadline=None)
@given(_any_text)
def test_a_runbook_without_problems_holds_every_line_exactly_once(text: str) -> None:
    runbook = parse(text)
    if runbook.problems:
        assert runbook.items == ()
        return
    lines = re.split(r"\r\n?|\n", text)
    covered = covered_lines(runbook)
    assert covered == sorted(set(covered))
    missing = set(range(1, len(lines) + 1)) - set(covered)
    assert all(not lines[line - 1].strip() for line in missing)
    for item in runbook.items:
        if isinstance(item, Prose):
            assert item.text.split("\n") == lines[item.line - 1 : item.last]


# -- what is said about it ---------------------------------------------------------------------


def _shown_runbooks(text: str) -> list[str]:
    return re.findall(r"^````markdown\n(.*?)^````$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", [HELP, DOCS.read_text(encoding="utf-8")], ids=["help", "docs"])
def test_the_runbooks_in_the_help_and_the_documentation_can_be_run(text: str) -> None:
    shown = _shown_runbooks(text)
    assert shown
    for runbook in shown:
        assert check(runbook) == []
        assert parse(runbook).has_blocks


def test_the_documentation_names_every_option_and_language() -> None:
    text = DOCS.read_text(encoding="utf-8")
    words = {"name", "timeout", "gate", "on-reject", "on-failure", "retry", "why"}
    words |= {"title", *LANGUAGES}
    assert {word for word in words if f"`{word}" not in text} == set()

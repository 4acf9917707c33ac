"""The faults in small: `make chaos` works when it is wanted, and sees what it should see."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from .chaos.logs import TAKEN_UP, check_logs
from .chaos.monitor import Waits
from .chaos.readers import Rows, rows_in
from .chaos.report import DISORDERED, DUPLICATED, KINDS, LOST, Findings, table, write
from .chaos.runbooks import SAFE, compose
from .installation import ROOT

SMALL = ["--quick", "--only", "kills", "--rounds", "6", "--sessions", "4"]


def row(seq: int, text: str = "", *, replaced: bool = False) -> str:
    swap = 'hx-swap-oob="true"' if replaced else ""
    return f'<li id="event-{seq}" {swap}>{text}</li>'


def frame(first: int, last: int, *rows: str) -> str:
    return f'<!--{first} {last}--><ol id="timeline">{"".join(rows)}</ol><p>beside it</p>'


@pytest.fixture
def findings() -> Findings:
    return Findings("tried")


@pytest.fixture
def rows(findings: Findings) -> Rows:
    made = Rows("a reader", findings)
    assert made.apply(frame(1, 3, row(1), row(3)))
    assert findings.ok
    return made


def test_processes_killed_at_random_lose_nothing():
    ours = [name for name in os.environ if name.startswith("SIGNALBOX_")]
    environment = {name: text for name, text in os.environ.items() if name not in ours}
    ended = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *SMALL],
        cwd=ROOT,
        env={**environment, "SIGNALBOX_POSTGRES_FAST": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    zeros = " | ".join(["kills", *["0"] * len(KINDS)])
    assert f"| {zeros} |\n" in ended.stdout
    assert "* **kills**: 6 kills" in ended.stdout


def test_the_page_about_reliability_has_a_place_for_a_result(tmp_path, findings):
    findings.fact("nothing was done")
    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs" / "reliability.md").read_text())
    write(table([findings]), page)
    write(table([findings]), page)
    assert page.read_text().count("* **tried**: nothing was done.") == 1
    assert page.read_text().startswith("# Reliability")


def test_a_reader_sees_that_a_frame_is_missing(rows, findings):
    assert not rows.apply(frame(5, 6, row(5)))
    assert findings.counts == {LOST: 1}
    assert rows.last == 3


def test_a_reader_sees_a_frame_that_came_before(rows, findings):
    assert rows.apply(frame(1, 3, row(1), row(3)))
    assert findings.counts == {DUPLICATED: 1}


def test_a_reader_sees_rows_that_come_twice_late_or_in_place_of_nothing(rows, findings):
    assert rows.apply(frame(4, 6, row(3), row(2), row(9, replaced=True)))
    assert findings.counts == {DUPLICATED: 1, DISORDERED: 1, LOST: 1}


def test_a_row_may_hold_a_list_of_its_own():
    nested = row(1, "<ul><li>a</li><li>b</li></ul>")
    assert list(rows_in(frame(1, 2, nested, row(2)))) == [(1, nested), (2, row(2))]


def test_a_log_entry_is_explained_only_if_it_is_whole_and_without_a_traceback(tmp_path, findings):
    taken = "turn_1 was lost by host:12:abcdef; host:13:abcdef takes it up."
    first = "2026-01-01 00:00:00,000 WARNING sessions_app.models.turn"
    calm, loud = Path(tmp_path, "calm"), Path(tmp_path, "loud")
    calm.write_text(f"{first}: {taken}\n{first} [ses_1]: {taken}\n")
    loud.write_text(f"{first}: {taken}\nTraceback (most recent call last):\nKeyError\n{first}: x\n")

    class Member:
        def __init__(self, log: Path) -> None:
            self.name, self.log = log.name, log

    check_logs([Member(calm)], [TAKEN_UP], findings)
    assert findings.ok
    check_logs([Member(loud)], [TAKEN_UP], findings)
    assert findings.counts == {"unexplained lines": 2}


def test_a_wait_lasts_from_when_it_is_known_to_have_begun_until_it_is_over():
    waits = Waits()
    waits.sample({("turn", 1): 8.0}, 10.0)
    waits.sample({("turn", 1): 9.0}, 12.0, attended=False)
    assert waits.whole == {("turn", 1): 4.0}
    waits.sample({("turn", 2): 13.5}, 14.0)
    assert waits.whole == {("turn", 1): 6.0, ("turn", 2): 0.5}
    assert waits.attended == {("turn", 1): 4.0, ("turn", 2): 0.5}
    waits.sample({}, 14.5)
    assert waits.whole == {("turn", 1): 6.0, ("turn", 2): 1.0}


def test_a_runbook_has_a_word_of_its_own_for_every_step_and_is_made_again_by_its_seed():
    made = compose("s1r1", Random("seed"))
    assert made == compose("s1r1", Random("seed"))
    assert made.text != compose("s1r1", Random("another")).text
    for name, word in made.steps.items():
        assert made.text.count(f"echo {word} >>") == 1
        assert (f"echo {word} >> {SAFE}" in made.text) is (name == "safe")

"""The benchmark itself: it measures what it says it measures, and writes what programs read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .benchmarks.report import Report, median

ROOT = Path(__file__).resolve().parent.parent


def test_a_part_of_it_runs_and_writes_its_rows(tmp_path):
    """Slow, but the product's names that it counts by are nowhere else."""
    target = tmp_path / "bench.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", "--quick", "--only", "answers"],
        cwd=ROOT,
        env={**os.environ, "BENCH_JSON": str(target)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(target.read_text())["rows"]
    assert {tuple(row) for row in rows} == {("name", "value", "unit", "ratio", "target", "ok")}
    judged = {row["name"]: row for row in rows if row["target"]}
    assert set(judged) == {
        "submit to the runner's first event: p50",
        "decision to the runner's first event: p50",
    }
    for name, row in judged.items():
        assert 0 < row["value"] < 5000, name
        assert row["ok"] == (row["value"] < 15), name
        assert name in done.stdout


def test_a_row_says_whether_its_target_was_met(tmp_path):
    report = Report()
    report.ratio_at_least("recording", 60, "events/s", beside=100, least=0.5)
    report.ratio_at_most("a page", 250, "ms", beside=100, most=2)
    report.below("an answer", 15, "ms", 15)
    report.note("by the way", 1, "ms")
    report.write(tmp_path / "bench.json")
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [(row["ratio"], row["target"], row["ok"]) for row in rows] == [
        (0.6, "ratio >= 0.5", True),
        (2.5, "ratio <= 2", False),
        (None, "< 15 ms", False),
        (None, None, True),
    ]
    assert "1 of 3 targets met" in report.table()


@pytest.mark.parametrize("values", [[], [float("nan")]], ids=str)
def test_nothing_measured_is_no_figure(values):
    with pytest.raises(SystemExit, match="Nothing was measured"):
        median(values)

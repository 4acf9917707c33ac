"""`python -m tests.benchmarks [--quick | --full]`: measure, show a table, write JSON.

The exit code says whether it could be measured, not whether the targets were met.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .report import Report
from .stage import ROOT, Stage, surroundings

PARTS = ("record", "latency", "answers", "waiting", "pages", "crowds")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--quick", action="store_true", help="everything once and briefly")
    form.add_argument("--full", action="store_true", help="more and longer rounds")
    parser.add_argument("--only", choices=PARTS, action="append", help="one part (repeatable)")
    given = parser.parse_args()
    target = Path(os.environ.get("BENCH_JSON") or ROOT / "var" / "bench.json").absolute()
    report = Report()
    with surroundings() as data:
        import django

        django.setup()
        measure(Stage(data), report, given)
    print(f"\n{report.table()}\n\nWritten to {target}.")
    report.write(target)


def measure(stage: Stage, report: Report, given: argparse.Namespace) -> None:
    # Each imports models, so only once Django is set up.
    from . import answers, crowds, latency, pages, recording

    parts = given.only or PARTS
    rounds, seconds = (1, 1.2) if given.quick else (7, 8.0) if given.full else (3, 5.0)
    try:
        stage.open()
        if "record" in parts:
            recording.measure(stage, report, rounds=max(2, rounds), seconds=seconds / 7)
        if "latency" in parts:
            loads = [load for load in latency.LOADS if load.judged or not given.quick]
            latency.measure(stage, report, loads, rounds=rounds, seconds=seconds)
        if "answers" in parts:
            answers.measure(stage, report, times=8 if given.quick else 40)
        if "waiting" in parts:
            answers.waiting(stage, report)
        if "crowds" in parts:
            if given.quick:
                crowds.measure(stage, report, sockets=100, events=12)
            else:
                crowds.measure(stage, report, sockets=500, events=40)
        if "pages" in parts:
            pages.measure(stage, report, times=10 if given.quick else 40)
    finally:
        stage.close()


if __name__ == "__main__":
    main()

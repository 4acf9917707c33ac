"""`python -m tests.chaos`: break things on purpose, and count what was lost by it."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.installation import ROOT

from .drops import drops
from .kills import kills
from .report import OTHER, Findings, table, write
from .restarts import restarts
from .stage import Stage, stage
from .stalled import stalled

PAGE = ROOT / "docs" / "reliability.md"

Scenario = Callable[[Stage, Findings, argparse.Namespace], None]

SCENARIOS: dict[str, Scenario] = {
    "kills": lambda made, found, asked: kills(
        made, found, asked.seed, rounds=asked.rounds or (6 if asked.quick else 200),
        sessions=asked.sessions or (6 if asked.quick else 20), pace=2.0 if asked.quick else 5.0,
    ),
    "drops": lambda made, found, asked: drops(
        made, found, asked.seed, rounds=asked.rounds or (40 if asked.quick else 1000),
        events=2000 if asked.quick else 50_000,
    ),
    "stalled": lambda made, found, asked: stalled(
        made, found, asked.seed, rounds=asked.rounds or 1, events=1500 if asked.quick else 30_000,
    ),
    "restarts": lambda made, found, asked: restarts(
        made, found, asked.seed, rounds=asked.rounds or (1 if asked.quick else 4),
        sessions=asked.sessions or (6 if asked.quick else 20), pace=2.0 if asked.quick else 8.0,
    ),
}  # fmt: skip
NO_WORKERS = ("drops", "stalled")
ROUNDS = "how many kills, drops, pairs of phases, or restarts of each kind"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", choices=SCENARIOS, action="append")
    parser.add_argument(
        "--rounds",
        type=int,
        help="how many faults (stalled: phases; restarts: of each kind), not the usual number",
    )
    parser.add_argument("--sessions", type=int, help="how many sessions run in kills and restarts")
    parser.add_argument("--quick", action="store_true", help="all of it, small, in two minutes")
    parser.add_argument("--write", action="store_true", help=f"put the result into {PAGE.name}")
    parser.add_argument("--keep", action="store_true", help="keep the directory, to look into")
    return parser.parse_args()


def run(name: str, asked: argparse.Namespace) -> Findings:
    """Run one scenario on an installation of its own."""
    found = Findings(name)
    data = Path(tempfile.mkdtemp(prefix=f"signalbox-chaos-{name}-"))
    data.chmod(0o711)  # As root, the database's own user has to pass.
    began = time.monotonic()
    try:
        with stage(data, workers=0 if name in NO_WORKERS else 2) as made:
            SCENARIOS[name](made, found, asked)
    except Exception as error:
        traceback.print_exc()
        found.fault(OTHER, f"the scenario ended with {type(error).__name__}: {error}")
    finally:
        if asked.keep:
            print(f"  kept: {data}")
        else:
            shutil.rmtree(data, ignore_errors=True)
    found.fact(f"{time.monotonic() - began:.0f} s")
    return found


def main() -> int:
    asked = arguments()
    os.environ["no_proxy"] = "127.0.0.1"
    print(f"seed {asked.seed}; the same choices again: python -m tests.chaos --seed {asked.seed}")
    findings = []
    for name in asked.only or SCENARIOS:
        print(f"{name} ...", flush=True)
        findings.append(found := run(name, asked))
        print(found.told() or "  no fault", flush=True)
    result = f"Seed {asked.seed}:\n\n{table(findings)}"
    print(f"\n{result}")
    if asked.write:
        write(result, PAGE)
    return 0 if all(found.ok for found in findings) else 1


if __name__ == "__main__":
    sys.exit(main())

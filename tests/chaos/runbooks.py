"""What the sessions run: small steps that each leave a word that nobody else writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

WORDS = "words.txt"
SAFE = "safe.txt"
"""Where steps write that may be run again: their words may be there more than once."""


@dataclass
class Runbook:
    """An instruction, with what it must leave behind. `key` is what it is submitted under."""

    key: str
    text: str = ""
    steps: dict[str, str] = field(default_factory=dict)
    """The name of each step, and the word that it writes."""
    artifact: str = ""


def compose(key: str, random: Random) -> Runbook:
    """Make a runbook of about six blocks, in any order."""
    runbook = Runbook(key, artifact=f"{key}.txt")
    produce = f"mkdir -p artifacts; echo {key} > artifacts/{key}.txt"
    blocks = [
        *(_step(runbook, f"plain-{n}", random) for n in range(random.randint(1, 3))),
        _step(runbook, "safe", random, "retry=safe", file=SAFE),
        _step(runbook, "produce", random, then=produce),
        f"```mermaid name=drawn\nflowchart LR\n    before --> {key}\n```",
        f"Some words in between, about {key}.",
    ]  # fmt: skip
    if random.random() < 0.5:
        blocks.append(_step(runbook, "gated", random, 'gate=ask why="Somebody has to agree."'))
    random.shuffle(blocks)
    runbook.text = "\n\n".join([f"# Runbook {key}", *blocks])
    return runbook


def _step(
    runbook: Runbook, name: str, random: Random, options: str = "", *, file: str = WORDS,
    then: str = "true",
) -> str:  # fmt: skip
    word = runbook.steps[name] = f"{runbook.key}.{name}"
    if random.random() < 0.5:
        options += " on-failure=continue"
    before, after = random.uniform(0, 0.6), random.uniform(0, 0.6)
    source = (
        f"sleep {before:.2f}; echo {word} >> {file}; sleep {after:.2f}; {then}; cat {file} | wc -l"
    )
    return f"```sh name={name} {options}\n{source}\n```"

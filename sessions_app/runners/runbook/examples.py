"""The runbooks that come with the product, to try with one click."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

SLUGS = ("cut-a-release", "read-a-slow-query-log", "try-the-guard-rails")


@dataclass(frozen=True)
class Example:
    slug: str
    title: str
    summary: str
    source: str


@cache
def examples() -> tuple[Example, ...]:
    """Read the examples in the order they are shown.

    Each file starts with its title as a `# ` heading and its summary as a paragraph of one line.
    """
    return tuple(_read(slug) for slug in SLUGS)


def _read(slug: str) -> Example:
    source = (Path(__file__).parent / "examples" / f"{slug}.md").read_text(encoding="utf-8")
    title, summary = [line for line in source.splitlines() if line.strip()][:2]
    return Example(slug, title.removeprefix("# "), summary, source)

"""The runners this installation has, by kind."""

from __future__ import annotations

from .base import Runner

_runners: dict[str, Runner] = {}


def register(runner: Runner) -> None:
    """Make a runner known. Registering a kind twice is a mistake and raises ValueError."""
    if runner.kind in _runners:
        raise ValueError(f"A runner of kind {runner.kind!r} is registered already.")
    _runners[runner.kind] = runner


def get(kind: str) -> Runner:
    """Return the runner of a kind. Raises KeyError with the known kinds."""
    try:
        return _runners[kind]
    except KeyError:
        raise KeyError(
            f"No runner of kind {kind!r}. Known: {', '.join(sorted(_runners))}."
        ) from None


def choices() -> list[tuple[str, str]]:
    return sorted((runner.kind, runner.label) for runner in _runners.values())

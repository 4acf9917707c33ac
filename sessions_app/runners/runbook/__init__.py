"""The embedded default: a turn's instruction is a Markdown runbook."""

from .runner import RunbookRunner

__all__ = ["RunbookRunner"]

"""What a unified diff changes, counted."""

from __future__ import annotations

from unidiff import PatchSet
from unidiff.errors import UnidiffParseError


def summary_of(diff: bytes) -> str:
    """Say it in a few words: `+6 −3 · 2 files`."""
    try:
        patch = PatchSet(diff.decode(errors="replace"))
    except UnidiffParseError:
        return ""
    files = len(patch)
    return f"+{patch.added} −{patch.removed} · {files} file{'s' if files != 1 else ''}"

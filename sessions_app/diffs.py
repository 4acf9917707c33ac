"""What a unified diff changes, counted."""

from __future__ import annotations

from unidiff import PatchSet
from unidiff.errors import UnidiffParseError

# Counting takes seconds beyond this.
MOST_COUNTED = 2 * 1024 * 1024


def summary_of(diff: bytes) -> str:
    """Say it in a few words: `+6 −3 · 2 files`; nothing for a diff too large to count."""
    if len(diff) > MOST_COUNTED:
        return ""
    try:
        patch = PatchSet(diff.decode(errors="replace"))
    except UnidiffParseError:
        return ""
    files = len(patch)
    return f"+{patch.added} −{patch.removed} · {files} file{'s' if files != 1 else ''}"

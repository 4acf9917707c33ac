"""Whether the audit chain is whole, and whether the rows that it tells of are what it tells.

Whoever could rewrite the whole chain and its head leaves no trace in the database: a head that was
noted elsewhere, such as in a printed log, is what finds that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .models.audit import NOTHING, AuditEntry, AuditHead

AT_A_TIME = 500

Check = Callable[[Sequence[AuditEntry]], Mapping[int, str]]
"""Compares entries of a kind with the rows that they tell of; says by number what is wrong."""

_checks: dict[str, Check] = {}


@dataclass(frozen=True)
class Broken:
    """The first entry that is not what it was when it was added, and why."""

    number: int
    why: str


def register(kind: str, check: Check) -> None:
    """Have the rows that entries of a kind tell of compared with them."""
    _checks[kind] = check


def first_broken(noted: tuple[int, str] | None = None) -> Broken | None:
    """Return the first broken entry, or None for a whole chain.

    `noted` is a head that was written down before, by number and digest. Entries may be added
    meanwhile: nobody is kept waiting.
    """
    head = AuditHead.objects.first() or AuditHead()
    last, before = 0, NOTHING
    for batch in _batches():
        broken = _rows(batch)
        for entry in batch:
            if why := _why_broken(entry, last, before):
                broken[min(entry.number, last + 1)] = why
                break
            last, before = entry.number, entry.digest
            if noted and noted[0] == last and noted[1] != before:
                broken[last] = "it is not the one whose digest was noted"
                break
            if head.number == last and head.digest != before:
                broken[last] = "the head of the chain has another digest"
                break
        if broken:
            first = min(broken)
            return Broken(first, broken[first])
    end = max(head.number, noted[0] if noted else 0)
    if last < end:
        return Broken(last + 1, f"it is gone: the chain went on to number {end}")
    now = AuditHead.objects.first() or AuditHead()
    if last > now.number:
        return Broken(now.number + 1, "it was not added by Signalbox: the chain ends before it")
    return None


def _batches() -> Iterator[list[AuditEntry]]:
    batch: list[AuditEntry] = []
    for entry in AuditEntry.objects.order_by("number").iterator(chunk_size=AT_A_TIME):
        batch.append(entry)
        if len(batch) == AT_A_TIME:
            yield batch
            batch = []
    if batch:
        yield batch


def _why_broken(entry: AuditEntry, last: int, before: str) -> str:
    if entry.number != last + 1:
        return f"it is gone: number {entry.number} is the next that is there"
    if entry.previous != before:
        return "it does not follow the one before it"
    if entry.digest != entry.computed():
        return "its content is not what its digest was made of"
    return ""


def _rows(batch: list[AuditEntry]) -> dict[int, str]:
    broken: dict[int, str] = {}
    for kind, check in _checks.items():
        if told := [entry for entry in batch if entry.kind == kind]:
            broken |= check(told)
    return broken

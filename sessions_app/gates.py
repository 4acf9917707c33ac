"""The seam between the engine and whoever decides what may run.

The engine asks here before every action and again at its execution. An app registers the gate
that answers. Without one, nothing is allowed: it fails closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .runners.base import Action, Grant, Refusal

if TYPE_CHECKING:
    from .models import Session, Turn


@dataclass(frozen=True)
class Question:
    """What a runner asks. `key` names it within its turn; `ask` demands a person."""

    key: str
    action: Action
    title: str
    why: str = ""
    ask: bool = False


class Gate(Protocol):
    """Each is called inside a transaction that holds the session's row lock."""

    def review(self, session: Session, turn: Turn, question: Question) -> Grant | Refusal | None:
        """Allow, refuse, or return None after asking a person; the same question asks once."""

    def redeem(self, session: Session, turn: Turn, grant: Grant, digest: str) -> Refusal | None:
        """Use a grant up for the action with this digest; say why when it may not run after all."""

    def close(self, session: Session, turn: Turn, by: str, reason: str) -> None:
        """End what a turn still asks: it has ended, so no card may outlive it."""


class ClosedGate:
    """What decides when nobody registered a gate: nothing may run."""

    def review(self, session: Session, turn: Turn, question: Question) -> Grant | Refusal | None:
        return Refusal(by="Signalbox", reason="No gate is registered, so nothing may run.")

    def redeem(self, session: Session, turn: Turn, grant: Grant, digest: str) -> Refusal | None:
        return Refusal(by="Signalbox", reason="No gate is registered, so nothing may run.")

    def close(self, session: Session, turn: Turn, by: str, reason: str) -> None:
        return None


_gate: Gate = ClosedGate()


def register(gate: Gate) -> None:
    """Put a gate in charge."""
    global _gate
    _gate = gate


def gate() -> Gate:
    return _gate

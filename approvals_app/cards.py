"""One card for a request, whether it is read from its row or from the session's events."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sessions_app.timeline import Item

from .models import ApprovalRequest


@dataclass(frozen=True)
class Card:
    """What the card's template shows."""

    id: str
    title: str
    why: str
    rule: str
    deciders: str
    action: dict[str, Any]
    digest: str
    asked_at: datetime
    expires_at: datetime | None
    state: str
    """`pending`, or how it was resolved, in lower case."""
    by: str = ""
    reason: str = ""
    resolved_at: datetime | None = None

    @property
    def pending(self) -> bool:
        return self.state == "pending"

    @property
    def tone(self) -> str:
        return {"approved": "go", "rejected": "stop", "pending": "ask"}.get(self.state, "rest")


def of_request(request: ApprovalRequest) -> Card:
    return Card(
        id=request.pk,
        title=request.title,
        why=request.why,
        rule=request.rule,
        deciders=f"staff and members of {request.session.agent.name}",
        action=request.action,
        digest=request.digest,
        asked_at=request.created_at,
        expires_at=request.expires_at,
        state=request.state.lower(),
        by=request.resolved_by,
        reason=request.reason,
        resolved_at=request.resolved_at,
    )


def of_item(item: Item) -> Card:
    data, resolved = item.data, item.resolved
    said = resolved.data if resolved else {}
    return Card(
        id=data["approval_id"],
        title=data["title"],
        why=data["why"],
        rule=data["rule"],
        deciders=data["deciders"],
        action=data["action"],
        digest=data["digest"],
        asked_at=item.anchor.created_at,
        expires_at=datetime.fromisoformat(expires) if (expires := data.get("expires_at")) else None,
        state=said.get("outcome", "pending"),
        by=said.get("by", ""),
        reason=said.get("reason", ""),
        resolved_at=resolved.created_at if resolved else None,
    )

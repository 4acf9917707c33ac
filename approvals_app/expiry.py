"""Requests that nobody decided in time: they count as rejected, and the turn goes on with that."""

from __future__ import annotations

from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from sessions_app import events
from sessions_app.models import Session

from .models import ApprovalRequest, ApprovalState

EVERY_SECONDS = 5.0
AT_A_TIME = 100
REASON = "nobody decided in time"


def expire_due() -> int:
    """Expire the requests whose time is over; return how many. Deciding them is refused anyway."""
    due = ApprovalRequest.objects.pending().filter(expires_at__lte=Now()).order_by("expires_at")
    found = list(due.values_list("pk", "session_id")[:AT_A_TIME])
    return sum(_expire(approval_id, session_id) for approval_id, session_id in found)


def _expire(approval_id: str, session_id: str) -> bool:
    with transaction.atomic():
        session = Session.objects.lock(session_id)
        due = ApprovalRequest.objects.pending().filter(pk=approval_id, expires_at__lte=Now())
        won = due.update(state=ApprovalState.EXPIRED, resolved_at=timezone.now(), reason=REASON)
        if won != 1:
            return False
        turn = ApprovalRequest.objects.select_related("turn").get(pk=approval_id).turn
        turn.session = session
        session.record(
            events.ApprovalRequestResolved(
                approval_id=approval_id, outcome="expired", by="", reason=REASON
            ),
            turn=turn,
        )
        turn.resume(by="")
        return True

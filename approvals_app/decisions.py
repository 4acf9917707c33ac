"""The one way a decision is made: compare and set, record, continue, in one transaction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from django.db import transaction
from django.utils import timezone

from sessions_app import events
from sessions_app.models import Session

from .models import ApprovalRequest, ApprovalState, Decision

if TYPE_CHECKING:
    from django.contrib.auth.models import User

Verdict = Literal["approve", "reject"]


class NotYours(Exception):
    """This person may not decide this request."""


class Conflict(Exception):
    """The request is not open any more, or is not what was shown; the message says who or why."""


def decide(
    approval_id: str,
    *,
    by: User,
    verdict: Verdict,
    digest: str,
    reason: str = "",
    channel: str = "page",
    address: str = "",
) -> ApprovalRequest:
    """Decide a pending request; of two deciders at once exactly one wins.

    Repeating one's own decision changes nothing and is no error. Raises NotYours, Conflict.
    """
    return _decide(approval_id, by, verdict, digest, reason, channel, address)[0]


@dataclass(frozen=True)
class Item:
    """What became of one of many requests that were decided together."""

    approval_id: str
    outcome: Literal["applied", "skipped", "conflicted"]
    """Skipped is what this person had decided the same way before."""
    why: str = ""
    request: ApprovalRequest | None = None


def decide_many(
    shown: Iterable[tuple[str, str]],
    *,
    by: User,
    verdict: Verdict,
    reason: str = "",
    address: str = "",
) -> list[Item]:
    """Decide exactly the requests that were shown, by id and digest: each by itself, or not at all.

    One that this person may not see is told as one that is not there.
    """
    items = []
    for approval_id, digest in dict(shown).items():
        found = ApprovalRequest.objects.visible_to(by).filter(pk=approval_id).first()
        if found is None:
            items.append(Item(approval_id, "conflicted", "There is no such request."))
            continue
        try:
            request, new = _decide(found.pk, by, verdict, digest, reason, "bulk", address)
        except (NotYours, Conflict) as error:
            items.append(Item(approval_id, "conflicted", str(error), found))
        else:
            items.append(Item(approval_id, "applied" if new else "skipped", "", request))
    return items


def _decide(
    approval_id: str,
    by: User,
    verdict: Verdict,
    digest: str,
    reason: str,
    channel: str,
    address: str,
) -> tuple[ApprovalRequest, bool]:
    """Decide a request; say whether that is new."""
    request = ApprovalRequest.objects.select_related("turn").get(pk=approval_id)
    with transaction.atomic():
        session = Session.objects.select_related("agent").lock(request.session_id)
        # Asked anew under the lock, so that a permission lost meanwhile counts.
        by.refresh_from_db(fields=["is_staff", "is_active"])
        if not session.agent.may_decide(by):
            raise NotYours(f"Only staff and members of {session.agent.name} decide this.")
        resolved = {
            "state": ApprovalState(ApprovalRequest.OUTCOMES[verdict]),
            "resolved_at": timezone.now(),
            "resolved_by": by.get_username(),
            "reason": reason,
        }
        in_time = ApprovalRequest.objects.pending().in_time()
        won = in_time.filter(pk=approval_id, digest=digest).update(**resolved)
        if won != 1:
            request.refresh_from_db()
            return _already(request, by, verdict, digest), False
        for name, value in resolved.items():
            setattr(request, name, value)
        turn = request.turn
        turn.session = session
        session.record(
            events.ApprovalRequestResolved(
                approval_id=request.pk,
                outcome=request.state.lower(),
                by=by.get_username(),
                reason=reason,
            ),
            turn=turn,
        )
        turn.resume(by=by.get_username())
        # Last of all: it locks the head of the chain for everybody.
        Decision.objects.add(
            request=request,
            by=by,
            verdict=verdict,
            reason=reason,
            digest=digest,
            channel=channel,
            address=address,
        )
    return request, True


def _already(request: ApprovalRequest, by: User, verdict: Verdict, digest: str) -> ApprovalRequest:
    """Answer a decision that did not win: the identical repeat is fine, all else a conflict."""
    if request.is_pending and request.digest != digest:
        raise Conflict("The action is not the one that was shown. Reload, and look again.")
    if request.is_late:
        raise Conflict("This request has expired: nobody decided in time.")
    mine = request.decisions.filter(by=by, verdict=verdict).exists()
    if mine:
        return request
    who = f" by {request.resolved_by}" if request.resolved_by else ""
    why = f": {request.reason.rstrip('. ')}" if request.reason else ""
    raise Conflict(f"This request is {request.get_state_display()} already{who}{why}.")

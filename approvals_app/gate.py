"""The gate that the engine asks: rules first, and a person where the rules say so."""

from __future__ import annotations

import logging
from datetime import timedelta

from django.utils import timezone

from sessions_app import events
from sessions_app.gates import Question
from sessions_app.models import Agent, Session, Turn
from sessions_app.runners.base import Grant, Refusal

from .models import ApprovalRequest, ApprovalState
from .policies import Rules, Ruling, rule_on

logger = logging.getLogger(__name__)


class ApprovalGate:
    """See `sessions_app.gates.Gate`: each method runs with the session's row locked."""

    def review(self, session: Session, turn: Turn, question: Question) -> Grant | Refusal | None:
        digest = question.action.digest()
        request = (
            ApprovalRequest.objects.filter(turn=turn, key=question.key)
            .exclude(state=ApprovalState.SUPERSEDED)
            .first()
        )
        if request is not None and request.digest != digest:
            self._supersede(session, turn, request)
            request = None
        if request is not None:
            return self._answer(turn, request)
        ruling = self._rule(session.agent, question)
        if ruling.verdict == "allow":
            return Grant(question.key, digest)
        if ruling.verdict == "deny":
            return Refusal(by="the gate", reason=ruling.rule)
        self._ask(session, turn, question, ruling)
        return None

    def redeem(self, session: Session, turn: Turn, grant: Grant, digest: str) -> Refusal | None:
        if grant.digest != digest:
            return Refusal("the gate", "The action is not the one that was allowed.")
        if grant.approval_id is None:
            return None
        used = ApprovalRequest.objects.filter(
            pk=grant.approval_id,
            turn=turn,
            key=grant.key,
            state=ApprovalState.APPROVED,
            digest=digest,
            used_at=None,
        ).update(used_at=timezone.now())
        if used != 1:
            return Refusal("the gate", "The approval is for another action, or was used before.")
        return None

    def close(self, session: Session, turn: Turn, by: str, reason: str) -> None:
        for request in ApprovalRequest.objects.pending().filter(turn=turn):
            self._resolve(session, turn, request, ApprovalState.CANCELLED, by, reason)

    def _rule(self, agent: Agent, question: Question) -> Ruling:
        try:
            rules = Rules(agent.allow_confined, agent.allowed_commands)
            return rule_on(question.action, rules, ask=question.ask)
        except Exception:
            # Fail closed: what cannot be ruled on is asked.
            logger.exception("The rules of agent %s could not be applied.", agent.pk)
            return Ruling("ask", "the agent's rules could not be read")

    def _ask(self, session: Session, turn: Turn, question: Question, ruling: Ruling) -> None:
        minutes = session.agent.approvals_expire_minutes
        request = ApprovalRequest.objects.create(
            session=session,
            turn=turn,
            key=question.key,
            title=question.title[:500],
            why=question.why,
            rule=ruling.rule,
            action=question.action.canonical(),
            digest=question.action.digest(),
            expires_at=timezone.now() + timedelta(minutes=minutes) if minutes else None,
        )
        session.record(
            events.ApprovalRequestCreated(
                approval_id=request.pk,
                title=request.title,
                why=request.why,
                rule=request.rule,
                action=request.action,
                digest=request.digest,
                deciders=f"staff and members of {session.agent.name}",
                expires_at=request.expires_at,
            ),
            events.WidgetCreated(
                widget_id=request.pk, widget="approval", body={"approval_id": request.pk}
            ),
            turn=turn,
        )
        turn.park(Turn.State.WAITING_FOR_PERMISSION, f"asks to run {request.title}")

    def _answer(self, turn: Turn, request: ApprovalRequest) -> Grant | Refusal | None:
        if request.state == ApprovalState.PENDING:
            # Run again while the question is open: wait on.
            turn.park(Turn.State.WAITING_FOR_PERMISSION, f"asks to run {request.title}")
            return None
        if request.state == ApprovalState.APPROVED:
            return Grant(request.key, request.digest, request.pk)
        return Refusal(request.resolved_by or "Signalbox", request.reason)

    def _supersede(self, session: Session, turn: Turn, request: ApprovalRequest) -> None:
        by, reason = request.resolved_by, "the action changed after this was asked"
        self._resolve(session, turn, request, ApprovalState.SUPERSEDED, by, reason)

    def _resolve(
        self,
        session: Session,
        turn: Turn,
        request: ApprovalRequest,
        state: ApprovalState,
        by: str,
        reason: str,
    ) -> None:
        won = ApprovalRequest.objects.filter(pk=request.pk, state=request.state).update(
            state=state, resolved_at=timezone.now(), resolved_by=by, reason=reason
        )
        if won == 1:
            session.record(
                events.ApprovalRequestResolved(
                    approval_id=request.pk,
                    outcome=state.value.lower(),
                    by=by,
                    reason=reason,
                ),
                turn=turn,
            )

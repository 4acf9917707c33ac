from django.apps import AppConfig


class ApprovalsConfig(AppConfig):
    name = "approvals_app"
    verbose_name = "Approvals"

    def ready(self) -> None:
        from sessions_app import audit, chores, gates

        from . import expiry, ledger
        from .gate import ApprovalGate

        gates.register(ApprovalGate())
        audit.register("decision", ledger.check)
        chores.register("expire_due", expiry.expire_due, seconds=expiry.EVERY_SECONDS)

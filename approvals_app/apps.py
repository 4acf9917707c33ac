from django.apps import AppConfig


class ApprovalsConfig(AppConfig):
    name = "approvals_app"
    verbose_name = "Approvals"

    def ready(self) -> None:
        from sessions_app import audit, gates

        from . import ledger
        from .gate import ApprovalGate

        gates.register(ApprovalGate())
        audit.register("decision", ledger.check)

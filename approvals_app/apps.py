from django.apps import AppConfig


class ApprovalsConfig(AppConfig):
    name = "approvals_app"
    verbose_name = "Approvals"

    def ready(self) -> None:
        from sessions_app import gates

        from .gate import ApprovalGate

        gates.register(ApprovalGate())

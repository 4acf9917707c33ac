from django.urls import path

from . import views

urlpatterns = [
    path("approvals/", views.inbox, name="approvals"),
    path("approvals/decisions/", views.bulk, name="approvals_bulk"),
    path("approvals/decisions.jsonl", views.export, {"kind": "jsonl"}, name="decisions_jsonl"),
    path("approvals/decisions.csv", views.export, {"kind": "csv"}, name="decisions_csv"),
    path("approvals/<str:approval_id>/", views.approval_page, name="approval_page"),
    path("approvals/<str:approval_id>/decision/", views.decision, name="approval_decision"),
]

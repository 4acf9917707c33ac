from django.urls import path

from . import views

urlpatterns = [
    path("approvals/", views.inbox, name="approvals"),
    path("approvals/<str:approval_id>/", views.approval_page, name="approval_page"),
    path("approvals/<str:approval_id>/decision/", views.decision, name="approval_decision"),
]

from django.urls import path

from .views import artifacts, editing, health, keeping, lineage, sessions, turns

urlpatterns = [
    path("healthz", health.healthz, name="healthz"),
    path("readyz", health.readyz, name="readyz"),
    path("metrics", health.show_metrics, name="metrics"),
    path("", sessions.home, name="home"),
    path("rail/", sessions.rail, name="rail"),
    path("sessions/", sessions.session_create, name="session_create"),
    path("sessions/<str:session_id>/", sessions.session_page, name="session_page"),
    path("sessions/<str:session_id>/events/", sessions.older_events, name="older_events"),
    path("sessions/<str:session_id>/holder/", sessions.holder, name="holder"),
    path("sessions/<str:session_id>/raw/", sessions.raw_events, name="raw_events"),
    path("sessions/<str:session_id>/turns/", turns.turn_submit, name="turn_submit"),
    path("sessions/<str:session_id>/diagrams/<int:seq>.svg", artifacts.diagram, name="diagram"),
    path(
        "sessions/<str:session_id>/completion/",
        keeping.session_completion,
        name="session_completion",
    ),
    path(
        "sessions/<str:session_id>/cancellation/",
        keeping.session_cancellation,
        name="session_cancellation",
    ),
    path("sessions/<str:session_id>/archival/", keeping.session_archival, name="session_archival"),
    path(
        "sessions/<str:session_id>/restoration/",
        keeping.session_restoration,
        name="session_restoration",
    ),
    path("sessions/<str:session_id>/inherited/", lineage.inherited_rows, name="inherited_rows"),
    path("sessions/<str:session_id>/lineage/", lineage.session_lineage, name="session_lineage"),
    path("sessions/<str:session_id>/delegations/", lineage.delegation, name="delegation"),
    path("turns/<str:turn_id>/fork/", lineage.turn_fork, name="turn_fork"),
    path("turns/<str:turn_id>/editor/", editing.turn_editor, name="turn_editor"),
    path("turns/<str:turn_id>/instruction/", editing.turn_edit, name="turn_edit"),
    path("turns/<str:turn_id>/retry/", turns.turn_retry, name="turn_retry"),
    path("turns/<str:turn_id>/cancellation/", turns.turn_cancel, name="turn_cancel"),
    path("artifacts/<str:artifact_id>/", artifacts.artifact_page, name="artifact_page"),
    path(
        "artifacts/<str:artifact_id>/content/", artifacts.artifact_content, name="artifact_content"
    ),
]

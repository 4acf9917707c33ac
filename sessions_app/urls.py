from django.urls import path

from .views import artifacts, sessions, turns

urlpatterns = [
    path("", sessions.home, name="home"),
    path("rail/", sessions.rail, name="rail"),
    path("sessions/", sessions.session_create, name="session_create"),
    path("sessions/<str:session_id>/", sessions.session_page, name="session_page"),
    path("sessions/<str:session_id>/events/", sessions.older_events, name="older_events"),
    path("sessions/<str:session_id>/raw/", sessions.raw_events, name="raw_events"),
    path("sessions/<str:session_id>/turns/", turns.turn_submit, name="turn_submit"),
    path("sessions/<str:session_id>/diagrams/<int:seq>.svg", artifacts.diagram, name="diagram"),
    path("turns/<str:turn_id>/cancellation/", turns.turn_cancel, name="turn_cancel"),
    path("artifacts/<str:artifact_id>/", artifacts.artifact_page, name="artifact_page"),
    path(
        "artifacts/<str:artifact_id>/content/", artifacts.artifact_content, name="artifact_content"
    ),
]

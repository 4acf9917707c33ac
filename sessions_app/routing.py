from django.urls import path

from .consumers import RailConsumer, SessionConsumer

websocket_urlpatterns = [
    path("ws/rail/", RailConsumer.as_asgi()),
    path("ws/sessions/<str:session_id>/", SessionConsumer.as_asgi()),
]

from django.contrib import admin
from django.contrib.auth import views as auth
from django.contrib.auth.decorators import login_not_required
from django.urls import include, path
from django.views.generic import RedirectView

from . import sign_in

handler500 = "config.away.server_error"

urlpatterns = [
    path("sign-in/", auth.LoginView.as_view(redirect_authenticated_user=True), name="sign_in"),
    path("sign-in/<str:user>/<str:token>/", sign_in.sign_in_by_link, name="sign_in_link"),
    path("sign-out/", sign_in.SignOut.as_view(), name="sign_out"),
    path("admin/", admin.site.urls),
    # Pages name their icon; the admin's leave browsers to ask here.
    path("favicon.ico", login_not_required(RedirectView.as_view(url="/static/img/signal.svg"))),
    path("", include("approvals_app.urls")),
    path("", include("sessions_app.urls")),
]

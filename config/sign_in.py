"""Signing in: by password, or by a link that works once."""

from __future__ import annotations

import json
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model, login
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.models import User
from django.contrib.auth.tokens import PasswordResetTokenGenerator
from django.contrib.auth.views import LogoutView
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import base36_to_int, int_to_base36
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from sessions_app import live


class LinkTokens(PasswordResetTokenGenerator):
    """A token that signing in uses up: it is made from the time of the last sign-in."""

    key_salt = "config.sign_in.LinkTokens"

    def _make_hash_value(self, user: User, timestamp: int) -> str:
        # To the microsecond, where Django's own drops it: two links in a second are two links.
        return f"{super()._make_hash_value(user, timestamp)}{user.last_login}"


tokens = LinkTokens()


def link_for(user: User, *, host: str, port: int) -> str:
    """Return an address that signs a person in once."""
    where = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104
    where = f"[{where}]" if ":" in where else where
    path = reverse("sign_in_link", args=[int_to_base36(user.pk), tokens.make_token(user)])
    return f"{'https' if settings.HTTPS else 'http'}://{where}:{port}{path}"


class SignOut(LogoutView):
    """Django's, and the sockets of this sign-in are closed as well."""

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        key = request.session.session_key
        answer = super().post(request, *args, **kwargs)
        live.signed_out(key)
        return answer


def remember_address(host: str, port: int) -> None:
    """Note where the server listens, for commands that print addresses."""
    (settings.SIGNALBOX_DATA / "address.json").write_text(json.dumps([host, port]))


def known_address() -> tuple[str, int]:
    """Return where the server was last started, or where it would be."""
    try:
        host, port = json.loads((settings.SIGNALBOX_DATA / "address.json").read_text())
        return str(host), int(port)
    except (OSError, ValueError):
        return settings.HOST, settings.PORT


@login_not_required
@require_GET
@never_cache
def sign_in_by_link(request: HttpRequest, user: str, token: str) -> HttpResponse:
    """Sign in and go to the first screen; a link that was used says so."""
    with transaction.atomic():
        # Locked, so that of two clicks at once one finds the token used up.
        person = _person(user)
        if person is None or not tokens.check_token(person, token):
            return render(request, "registration/link_used.html", status=410)
        login(request, person, backend="django.contrib.auth.backends.ModelBackend")
    return redirect("home")


def _person(encoded: str) -> User | None:
    try:
        pk = base36_to_int(encoded)
    except ValueError:
        return None
    people = get_user_model().objects.select_for_update()
    return people.filter(pk=pk, is_active=True).first()

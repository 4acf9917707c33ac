"""For machines that watch: does it answer, is all there, how much is there to do."""

from __future__ import annotations

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from sessions_app import health, metrics


@login_not_required
@require_safe
@never_cache
def healthz(request: HttpRequest) -> HttpResponse:
    """The process answers. Asks nobody else."""
    return JsonResponse({"ok": True})


@login_not_required
@require_safe
@never_cache
async def readyz(request: HttpRequest) -> HttpResponse:
    """Everything that turns need is there: 200, else 503, with each part named."""
    parts = await health.report()
    ready = all(part["ok"] for part in parts.values())
    answer = JsonResponse({"ready": ready, **parts}, status=200 if ready else 503)
    # Not a line in the log for every time somebody asks; who asks tells the operator.
    answer._has_been_logged = True  # type: ignore[attr-defined]
    return answer


@login_not_required
@require_safe
@never_cache
def show_metrics(request: HttpRequest) -> HttpResponse:
    """Numbers for Prometheus: for staff, and for whoever has the token."""
    if not (metrics.may_read(request.headers.get("Authorization", "")) or request.user.is_staff):
        if request.user.is_authenticated:
            return HttpResponse("The metrics are for staff.\n", status=403)
        refusal = HttpResponse("The metrics need their token.\n", status=401)
        refusal["WWW-Authenticate"] = "Bearer"
        return refusal
    return HttpResponse(metrics.exposition(), content_type=metrics.CONTENT_TYPE)

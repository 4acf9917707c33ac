"""Artifacts and diagrams: what was produced, shown or downloaded so that it stays inert."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import mmdr
from asgiref.sync import sync_to_async
from django.core.files.base import File
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, render
from django.utils.http import content_disposition_header
from django.views.decorators.http import require_GET

from ..models import Artifact, Session

PREVIEW_BYTES = 256 * 1024
CHUNK = 256 * 1024


@require_GET
def artifact_page(request: HttpRequest, artifact_id: str) -> HttpResponse:
    """Show what an artifact holds, as far as it is text, and where to download it."""
    artifact = get_object_or_404(
        Artifact.objects.visible_to(request.user).select_related("session", "turn"), pk=artifact_id
    )
    try:
        with artifact.open() as content:
            raw = content.read(PREVIEW_BYTES)
    except FileNotFoundError:
        raw = None
    context = {
        "artifact": artifact,
        "session": artifact.session,
        "gone": raw is None,
        "binary": raw is not None and b"\x00" in raw,
        "text": (raw or b"").decode(errors="replace"),
        "cut": artifact.size > PREVIEW_BYTES,
    }
    return render(request, "sessions/artifact.html", context)


@require_GET
async def artifact_content(request: HttpRequest, artifact_id: str) -> HttpResponseBase:
    """Download an artifact's bytes. Never shown by the browser, whatever they claim to be."""
    artifact, content = await sync_to_async(_open)(await request.auser(), artifact_id)
    answer = StreamingHttpResponse(_chunks(content), content_type="application/octet-stream")
    name = artifact.name.rpartition("/")[2]
    answer["Content-Disposition"] = content_disposition_header(True, name) or "attachment"
    answer["Content-Length"] = str(artifact.size)
    answer["Content-Security-Policy"] = "default-src 'none'; sandbox"
    return answer


def _open(user: Any, artifact_id: str) -> tuple[Artifact, File[bytes]]:
    artifact = get_object_or_404(Artifact.objects.visible_to(user), pk=artifact_id)
    try:
        return artifact, artifact.open()
    except FileNotFoundError as error:
        raise Http404("The content of this artifact is gone.") from error


async def _chunks(content: File[bytes]) -> AsyncIterator[bytes]:
    try:
        while chunk := await asyncio.to_thread(content.read, CHUNK):
            yield chunk
    finally:
        await asyncio.to_thread(content.close)


@require_GET
def diagram(request: HttpRequest, session_id: str, seq: int) -> HttpResponse:
    """Draw a diagram widget as SVG. Pages show it as an image, where scripts do not run."""
    session = get_object_or_404(Session.objects.visible_to(request.user), pk=session_id)
    event = get_object_or_404(
        session.events, seq=seq, type="widget.created", data__widget="diagram"
    )
    try:
        svg = mmdr.render(event.data["body"]["source"]).svg()
    except Exception as error:  # whatever the renderer makes of a source that people wrote
        return HttpResponse(f"This diagram cannot be drawn: {error}", status=422)
    answer = HttpResponse(svg, content_type="image/svg+xml")
    answer["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
    answer["Cache-Control"] = "private, max-age=86400, immutable"
    return answer

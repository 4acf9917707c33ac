"""Where artifacts' content lies by default: a directory of files named by their digest."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

from django.core.files.base import File
from django.core.files.storage import FileSystemStorage


class ContentStorage(FileSystemStorage):
    """A file is there whole or not at all: it is written aside and renamed.

    A name is a digest, so a second writer of the same name brings the same bytes.
    """

    def get_available_name(self, name: str, max_length: int | None = None) -> str:
        return name

    def _save(self, name: str, content: File[Any]) -> str:
        partial = super()._save(f"{name}.{uuid4().hex}.part", content)  # type: ignore[misc]
        Path(self.path(partial)).replace(self.path(name))
        return name

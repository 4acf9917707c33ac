"""Identifiers: a prefix that says what it names, then a ULID, which sorts by time."""

from __future__ import annotations

from django.db import models
from ulid import ULID


def _new(prefix: str) -> str:
    return f"{prefix}_{str(ULID()).lower()}"


# Plain functions, because migrations have to name a field's default.
def agent_id() -> str:
    return _new("agt")


def session_id() -> str:
    return _new("ses")


def turn_id() -> str:
    return _new("trn")


def environment_id() -> str:
    return _new("env")


def artifact_id() -> str:
    return _new("art")


def approval_id() -> str:
    return _new("apr")


def id_field(default: object) -> models.CharField[str, str]:
    """A primary key of this kind. The C collation makes comparing it as cheap as bytes."""
    return models.CharField(
        max_length=32, primary_key=True, default=default, editable=False, db_collation="C"
    )

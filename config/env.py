"""What the environment says: one place that reads it, with defaults that need no set-up."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent

env = environ.Env()


def data_directory() -> Path:
    """Return SIGNALBOX_DATA (default `var/`), made when missing."""
    path = Path(env.str("SIGNALBOX_DATA", default=str(BASE_DIR / "var"))).expanduser().absolute()
    try:
        _make_parents(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ImproperlyConfigured(
            f"The data directory {path} cannot be made ({error.strerror}). "
            "Set SIGNALBOX_DATA to a directory that this user may write to."
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ImproperlyConfigured(
            f"The data directory {path} cannot be written to. "
            "Set SIGNALBOX_DATA to a directory that this user may write to."
        )
    return path


def _make_parents(path: Path) -> None:
    """Make the directories above the data. As root, the database's user has to pass them."""
    if not path.exists():
        _make_parents(path.parent)
        path.mkdir(exist_ok=True)
        if os.geteuid() == 0:
            path.chmod(0o755)


def port() -> int:
    """Return PORT (default 8000)."""
    given = env.str("PORT", default="8000")
    if not (given.isascii() and given.isdigit() and 0 < int(given) < 65536):
        raise ImproperlyConfigured(f"PORT has to be a number from 1 to 65535, not {given!r}.")
    return int(given)


def secret_key(data: Path) -> str:
    """Return SECRET_KEY, or the one kept in the data directory, made at the first start."""
    if key := env.str("SECRET_KEY", default=""):
        return key
    path = data / "secret_key"
    try:
        # Written aside and linked into place: of two first starts, both read the same key.
        fresh = path.with_name(f".secret_key.{os.getpid()}")
        if not path.exists():
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(50))
            try:
                os.link(fresh, path)
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
        return path.read_text().strip()
    except OSError as error:
        raise ImproperlyConfigured(
            f"The secret key at {path} cannot be read or made ({error.strerror}). "
            "Set SECRET_KEY, or make the data directory writable."
        ) from error


def database(data: Path) -> dict[str, object]:
    """Return Django's settings for the one database: DATABASE_URL, or the embedded PostgreSQL."""
    url = env.str("DATABASE_URL", default="")
    if not url:
        from config import embedded

        try:
            url = embedded.database_url(data)
        except embedded.EmbeddedDatabaseError as error:
            raise ImproperlyConfigured(str(error)) from error
    try:
        config: dict[str, object] = env.db_url_config(url)
    except (KeyError, ValueError) as error:
        raise ImproperlyConfigured(f"DATABASE_URL cannot be understood: {error}") from error
    if config.get("ENGINE") != "django.db.backends.postgresql":
        raise ImproperlyConfigured(
            "DATABASE_URL must name a PostgreSQL database: "
            "postgresql://user:password@host:5432/name. Signalbox runs on PostgreSQL only."
        )
    options: dict[str, object] = dict(config.get("OPTIONS") or {})  # type: ignore[call-overload]
    options.setdefault("connect_timeout", 5)
    # For the one statement that is executed again and again; Django's own are never prepared.
    options["prepare_threshold"] = 5
    options["pool"] = {"min_size": 0, "max_size": env.int("DATABASE_POOL", default=20)}
    return {**config, "OPTIONS": options, "CONN_HEALTH_CHECKS": True}


def redis_host() -> dict[str, Any] | None:
    """Return how to reach REDIS_URL so that a Redis that is gone is noticed in seconds, or None."""
    url = env.str("REDIS_URL", default="")
    if not url:
        return None
    if (scheme := urlsplit(url).scheme) not in ("redis", "rediss", "unix"):
        raise ImproperlyConfigured(
            "REDIS_URL must name a Redis: redis://host:6379/0, rediss://… or unix:///path/socket."
        )
    options: dict[str, Any] = {"address": url, "socket_connect_timeout": 1, "socket_timeout": 2}
    if scheme != "unix":
        # A subscriber only listens: that the other machine is gone, the system has to find out.
        names = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3}
        options["socket_keepalive"] = True
        options["socket_keepalive_options"] = {
            getattr(socket, name): value for name, value in names.items() if hasattr(socket, name)
        }
    return options


def log_format() -> str:
    """Return SIGNALBOX_LOG_FORMAT: `line` for people (default), `json` for programs."""
    given = env.str("SIGNALBOX_LOG_FORMAT", default="line")
    if given not in ("line", "json"):
        raise ImproperlyConfigured(f"SIGNALBOX_LOG_FORMAT has to be line or json, not {given!r}.")
    return given

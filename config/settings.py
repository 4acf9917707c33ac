"""Django settings. Everything a self-hoster may change is read from the environment."""

from __future__ import annotations

from csp.constants import NONE, SELF

from config.env import (
    BASE_DIR,
    data_directory,
    database,
    env,
    log_format,
    port,
    redis_host,
    secret_key,
)

SIGNALBOX_DATA = data_directory()

DEBUG = env.bool("DEBUG", default=False)
SECRET_KEY = secret_key(SIGNALBOX_DATA)
HOST = env.str("HOST", default="127.0.0.1")
PORT = port()
ALLOWED_HOSTS = env.list(
    "ALLOWED_HOSTS",
    default=["localhost", "127.0.0.1", "[::1]", HOST] + ["*"] * (HOST == "0.0.0.0"),  # noqa: S104
)
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])

INSTALLED_APPS = [
    "daphne",
    "config.apps.CompositionConfig",
    "config.apps.AdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_htmx",
    "csp",
    "procrastinate.contrib.django",
    "sessions_app",
    "approvals_app",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "config.unstorable.UnstorableMiddleware",
]

ROOT_URLCONF = "config.urls"
ASGI_APPLICATION = "config.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "builtins": ["sessions_app.templatetags.signalbox"],
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]

# -- state -----------------------------------------------------------------------------------

DATABASES = {"default": database(SIGNALBOX_DATA)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

REDIS = redis_host()
CHANNEL_LAYERS: dict[str, dict[str, object]] = {
    "default": {
        "BACKEND": "sessions_app.hints.HintLayer",
        "CONFIG": {"hosts": [REDIS]},
    }
    if REDIS
    else {
        "BACKEND": "sessions_app.near.InMemoryHintLayer",
        "CONFIG": {"capacity": 1000},
    }
}

STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "artifacts": {
        "BACKEND": "sessions_app.storage.ContentStorage",
        "OPTIONS": {
            "location": SIGNALBOX_DATA / "artifacts",
            "file_permissions_mode": 0o600,
            "directory_permissions_mode": 0o700,
        },
    },
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedStaticFilesStorage"},
}
ENVIRONMENTS_ROOT = SIGNALBOX_DATA / "environments"

STATIC_URL = "static/"
STATICFILES_DIRS = [BASE_DIR / "static"]
STATIC_ROOT = None  # served from where they lie; nothing is collected
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = DEBUG

# -- the engine ------------------------------------------------------------------------------

PROCRASTINATE_AUTODISCOVER_MODULE_NAME = "engine"

SIGNALBOX = {
    "LEASE_SECONDS": env.float("SIGNALBOX_LEASE_SECONDS", default=9.0),
    "HEARTBEAT_SECONDS": env.float("SIGNALBOX_HEARTBEAT_SECONDS", default=3.0),
    "STOP_GRACE_SECONDS": env.float("SIGNALBOX_STOP_GRACE_SECONDS", default=5.0),
    "CONCURRENCY": env.int("SIGNALBOX_CONCURRENCY", default=10),
    # How long a reader waits for a hint before it looks for itself.
    "POLL_SECONDS": env.float("SIGNALBOX_POLL_SECONDS", default=2.0),
    # How long a page may draw nothing of too much that it was sent, before it has to come back.
    "STALLED_SECONDS": env.float("SIGNALBOX_STALLED_SECONDS", default=30.0),
    # How long a worker waits for the notification of a job before it looks for itself.
    "JOB_POLL_SECONDS": env.float("SIGNALBOX_JOB_POLL_SECONDS", default=2.0),
    "CONFINE": env.bool("SIGNALBOX_CONFINE", default=True),
    # Who has it may read /metrics; without one, staff alone may.
    "METRICS_TOKEN": env.str("SIGNALBOX_METRICS_TOKEN", default=""),
}

PROCRASTINATE_WORKER_DEFAULTS = {"fetch_job_polling_interval": SIGNALBOX["JOB_POLL_SECONDS"]}

# -- people ----------------------------------------------------------------------------------

LOGIN_URL = "sign_in"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "sign_in"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True

# -- what browsers may do --------------------------------------------------------------------

HTTPS = env.bool("HTTPS", default=False)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
SESSION_COOKIE_NAME = "signalbox_session"
SESSION_COOKIE_HTTPONLY = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
DATA_UPLOAD_MAX_MEMORY_SIZE = 4 * 1024 * 1024

CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF],
        "font-src": [SELF],
        "connect-src": [SELF],
        "form-action": [SELF],
        "manifest-src": [SELF],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
    }
}

# -- logs ------------------------------------------------------------------------------------

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {
        "about": {"()": "sessions_app.logs.About"},
        "away": {"()": "config.away.InOneLine"},
    },
    "formatters": {
        "line": {
            "()": "sessions_app.logs.LineFormatter",
            "format": "{asctime} {levelname} {name}{about}: {message}",
            "style": "{",
        },
        "json": {"()": "sessions_app.logs.JsonFormatter"},
    },
    "handlers": {
        "console": {
            "class": "logging.StreamHandler",
            "formatter": log_format(),
            "filters": ["about"],
        }
    },
    "root": {"handlers": ["console"], "level": "WARNING"},
    "loggers": {
        # A refused form is the person's business, not the operator's.
        "django.request": {"level": "ERROR", "filters": ["away"]},
        # It warns of connections given up while stopping; others fail where they are used.
        "psycopg.pool": {"level": "ERROR"},
        "sessions_app": {"level": env.str("LOG_LEVEL", default="INFO")},
        "approvals_app": {"level": env.str("LOG_LEVEL", default="INFO")},
        "config": {"level": env.str("LOG_LEVEL", default="INFO")},
    },
}

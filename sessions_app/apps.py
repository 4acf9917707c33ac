from django.apps import AppConfig


class SessionsConfig(AppConfig):
    name = "sessions_app"
    verbose_name = "Sessions"

    def ready(self) -> None:
        from django.conf import settings

        from . import checks  # noqa: F401
        from .environments import registry as environments
        from .environments.local import LocalProvider
        from .runners import registry as runners
        from .runners.runbook import RunbookRunner

        environments.register(
            LocalProvider(
                settings.ENVIRONMENTS_ROOT, confine=None if settings.SIGNALBOX["CONFINE"] else False
            )
        )
        runners.register(RunbookRunner())

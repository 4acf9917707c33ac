"""`manage.py serve`: web and worker in one process, or the web alone."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from sessions_app import checks


class Command(BaseCommand):
    help = "Serve the pages and work the turns, in one process. Prepares the database first."

    def execute(self, *args: Any, **options: Any) -> str | None:
        if options["web_only"]:
            checks.declare_one_of_many()
        return super().execute(*args, **options)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default=settings.HOST)
        parser.add_argument("--port", type=int, default=settings.PORT)
        parser.add_argument(
            "--web-only", action="store_true", help="Leave the turns to `manage.py worker`."
        )

    def handle(self, *args: Any, host: str, port: int, web_only: bool, **options: Any) -> None:
        from config import first_start, serve, sign_in

        try:
            serve.check_address(host, port)
            administrator = first_start.prepare()
        except (serve.AddressInUse, CommandError) as error:
            sys.exit(f"Signalbox cannot start: {error}")

        def listening() -> None:
            link = sign_in.link_for(administrator, host=host, port=port)
            sign_in.remember_address(host, port)
            # One line, at once, also into a file: it is what the person is waiting for.
            print(f"Signalbox is ready: {link}", flush=True)

        concurrency = 0 if web_only else settings.SIGNALBOX["CONCURRENCY"]
        sys.exit(serve.WebProcess(host, port, listening, concurrency=concurrency).run())

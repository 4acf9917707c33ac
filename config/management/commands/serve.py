"""`manage.py serve`: web and worker in one process."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError


class Command(BaseCommand):
    help = "Serve the pages and work the turns, in one process. Prepares the database first."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default=settings.HOST)
        parser.add_argument("--port", type=int, default=settings.PORT)

    def handle(self, *args: Any, host: str, port: int, **options: Any) -> None:
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

        sys.exit(serve.Process(host, port, listening).run())

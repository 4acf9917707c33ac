"""`manage.py worker`: a process that works turns and serves no pages."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from sessions_app import checks


def slots(given: str) -> int:
    """Read a number from 1 on."""
    if not (given.isascii() and given.isdigit() and int(given) > 0):
        raise ArgumentTypeError("it has to be a number from 1 on")
    return int(given)


class Command(BaseCommand):
    help = "Work the turns, without serving pages. Prepares the database first."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--concurrency",
            type=slots,
            default=settings.SIGNALBOX["CONCURRENCY"],
            help="How many turns to run at a time (default: SIGNALBOX_CONCURRENCY).",
        )
        parser.add_argument(
            "--metrics-port", type=int, help="Answer /metrics and /healthz on this port."
        )
        parser.add_argument(
            "--metrics-host", default="127.0.0.1", help="The address for them (this machine's own)."
        )

    def execute(self, *args: Any, **options: Any) -> str | None:
        checks.declare_one_of_many()
        return super().execute(*args, **options)

    def handle(
        self,
        *args: Any,
        concurrency: int,
        metrics_port: int | None,
        metrics_host: str,
        **options: Any,
    ) -> None:
        from config import first_start, watch
        from config.process import Process
        from sessions_app.engine import worker

        def working() -> None:
            # At once, also into a file: whoever started it may be waiting for it.
            print(f"Signalbox works turns: {worker().holder}, {concurrency} at a time", flush=True)

        process = Process(concurrency, working=working)
        try:
            if metrics_port is not None:
                watch.listen(metrics_host, metrics_port, process.loop)
            first_start.prepare()
        except (CommandError, OSError) as error:
            sys.exit(f"Signalbox cannot start: {error}")
        sys.exit(process.run())

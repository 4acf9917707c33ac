"""`manage.py verify_audit`: is what people decided still what they decided?"""

from __future__ import annotations

import re
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from sessions_app import audit
from sessions_app.models import AuditEntry


class Command(BaseCommand):
    help = "Verify the audit chain. Exits with 1 and names the first entry that is broken."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--noted",
            metavar="NUMBER:DIGEST",
            help="a head that this command printed before; the chain has to go on from it",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        noted = _noted(options["noted"]) if options["noted"] else None
        if broken := audit.first_broken(noted):
            raise CommandError(
                f"The audit chain is broken at entry {broken.number}: {broken.why}.", returncode=1
            )
        last = AuditEntry.objects.order_by("-number").first()
        if last is None:
            self.stdout.write("The audit chain is whole: it has no entry yet.")
            return
        self.stdout.write(f"The audit chain is whole. Its head is {last.number}:{last.digest}")
        self.stdout.write("Keep that line elsewhere; `--noted` compares a later chain with it.")


def _noted(given: str) -> tuple[int, str]:
    found = re.fullmatch(r"(\d+):([0-9a-f]{64})", given)
    if found is None:
        raise CommandError(
            "--noted is NUMBER:DIGEST, as this command printed it; the digest has 64 digits.",
            returncode=2,
        )
    return int(found[1]), found[2]

"""`manage.py sign_in_link NAME`: a link that signs a person in once."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError

from config.sign_in import known_address, link_for


class Command(BaseCommand):
    help = "Print an address that signs a person in once."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("username", nargs="?", default="admin")

    def handle(self, *args: Any, username: str, **options: Any) -> None:
        person = get_user_model().objects.filter(username=username, is_active=True).first()
        if person is None:
            raise CommandError(f"There is no active person called {username!r}.")
        host, port = known_address()
        self.stdout.write(link_for(person, host=host, port=port))

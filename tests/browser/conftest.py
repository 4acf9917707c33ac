"""Real Chromium on a real `serve`: each test brings its own people in windows of their own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.installation import ROOT, Installation, installation
from tests.left_out import left_out

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
SWITCHES = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CAST = """
from django.contrib.auth.models import User
from sessions_app.models import Agent
alice, bob, charlie = (User.objects.create_user(n, password=n) for n in ("alice", "bob", "charlie"))
Agent.objects.get().members.set([alice, bob])
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/browser/" in str(item.path):
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.timeout(120))


# By module, not by session: while Playwright is open, no other event loop runs in this thread.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        left_out("Chromium is not installed: the browser tests were left out.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()


@contextmanager
def furnished(data: Path) -> Iterator[Installation]:
    """An installation that runs and knows the cast, each with their name as the password."""
    with installation(data) as made:
        made.start()
        command = [sys.executable, "manage.py", "shell", "--no-imports", "-c", CAST]
        subprocess.run(command, cwd=ROOT, env=made.environment(), check=True)
        yield made


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, django_db_setup: None, django_db_blocker: object
) -> Iterator[Installation]:
    """One installation for a module's tests; its log has to be clean at the end."""
    with furnished(tmp_path_factory.mktemp("installation")) as made:
        yield made
        made.stop()
        assert made.log() == ""


class People:
    """Opens windows for people and remembers what their consoles said."""

    def __init__(self, browser: Browser, place: Installation) -> None:
        self.browser, self.place = browser, place
        self.said: list[str] = []

    def window(self, name: str | None, **options: object) -> Page:
        """A window of its own for a person who has signed in by password."""
        context = self.browser.new_context(base_url=self.place.base, **options)  # type: ignore[arg-type]
        context.set_default_timeout(15_000)
        page = context.new_page()
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.goto("/")
        if name:
            page.get_by_label("Username").fill(name)
            page.get_by_label("Password").fill(name)
            page.get_by_role("button", name="Sign in").click()
            page.wait_for_url(self.place.base)
        return page

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.said.append(message.text)

    def close(self) -> None:
        for context in self.browser.contexts:
            context.close()


@pytest.fixture
def people(chromium: Browser, place: Installation) -> Iterator[People]:
    """Everybody's windows; at the end no console may have complained."""
    made = People(chromium, place)
    yield made
    made.close()
    assert made.said == []


@pytest.fixture
def outspoken(chromium: Browser, place: Installation) -> Iterator[People]:
    """The same, for tests that provoke refusals: a browser reports those in its console."""
    made = People(chromium, place)
    yield made
    made.close()
    assert [line for line in made.said if "Failed to load resource" not in line] == []


def start(page: Page, instruction: str) -> str:
    """Start a session from the first screen and return its address."""
    page.goto("/")
    page.get_by_role("textbox").last.fill(instruction)
    page.get_by_role("button", name="Send", exact=True).click()
    page.wait_for_url("**/sessions/*/")
    page.locator("[data-connected=true]").wait_for(state="attached")
    return page.url


def rows(page: Page) -> list[str]:
    """What the timeline shows, row by row."""
    script = (
        "rows => rows.filter(r => r.id.startsWith('event-')).map(r => r.id + ' ' + r.innerText)"
    )
    return list(page.locator("#timeline > li").evaluate_all(script))


def settled(page: Page, state: str = "Waiting for input") -> None:
    """Wait until the header says that the session has come to rest."""
    page.locator("#session-header").get_by_text(state).wait_for()


Starter = Callable[[Page, str], str]

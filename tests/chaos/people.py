"""Who uses the installation over HTTP: authors who submit, one who decides."""

from __future__ import annotations

import http.client
import threading
import time
import urllib.request
from collections.abc import Callable
from random import Random

from tests.installation import Browser

from .report import OTHER, Findings
from .runbooks import Runbook, compose
from .stage import Stage

AGAIN_SECONDS = 0.1
GIVE_UP_SECONDS = 90.0
AT_A_TIME = 2


class Page(Browser):
    """A browser with htmx, at whichever web process answers."""

    def __init__(self, stage: Stage, random: Random, like: Page | None = None) -> None:
        super().__init__(stage.webs[0].base)
        self.stage, self.random, self.repeats = stage, random, 0
        self.enhanced = False
        for cookie in like.jar if like else ():
            self.jar.set_cookie(cookie)

    def _open(self, request: urllib.request.Request) -> tuple[int, str, str]:
        if self.enhanced:
            request.add_header("HX-Request", "true")
        return super()._open(request)

    def sign_in(self, name: str) -> None:
        self.insist(lambda: self.get("/"))
        status, address, body = self.insist(
            lambda: self.post("/sign-in/", username=name, password=name)
        )
        assert status == 200, body
        assert "sign-in" not in address, body
        self.enhanced = True

    def insist(self, ask: Callable[[], tuple[int, str, str]]) -> tuple[int, str, str]:
        """Ask one web process, and the other one when it dies; the very same question."""
        deadline = time.monotonic() + GIVE_UP_SECONDS
        webs = self.random.sample(self.stage.webs, len(self.stage.webs))
        while True:
            self.base = webs[0].base
            webs.reverse()
            try:
                answer = ask()
                if answer[0] < 500:
                    return answer
                error: object = f"{answer[0]}: {answer[2][:200]}"
            except (OSError, http.client.HTTPException) as broken:
                error = broken
            self.repeats += 1
            if time.monotonic() > deadline:
                raise TimeoutError(f"Nobody answers: {error}")
            time.sleep(AGAIN_SECONDS)


class Doing(threading.Thread):
    """Somebody who goes on doing something until the end; a mistake of theirs is a finding."""

    def __init__(self, name: str, findings: Findings, over: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self.findings, self.over = findings, over

    def run(self) -> None:
        try:
            while not self.over.is_set():
                self.do()
        except Exception as error:
            self.findings.fault(OTHER, f"{self.name} gave up: {type(error).__name__}: {error}")

    def do(self) -> None:
        raise NotImplementedError


class Author(Doing):
    """Keeps one session busy: runs it, and has the next runbook wait in its queue."""

    def __init__(
        self,
        number: int,
        page: Page,
        findings: Findings,
        over: threading.Event,
        is_busy: Callable[[str, int], bool],
    ) -> None:
        super().__init__(f"author {number}", findings, over)
        self.page, self.number, self.is_busy = page, number, is_busy
        self.session = ""
        self.submitted: list[Runbook] = []

    def open(self, agent: str) -> None:
        """Open the session by the form, with its first runbook."""
        runbook = self._compose()
        status, address, body = self.page.insist(
            lambda: self.page.post(
                "/sessions/", agent=agent, instruction=runbook.text, submission=runbook.key
            )
        )
        assert status == 200, f"{status}: {body[:300]}"
        assert "/sessions/ses_" in address, body
        self.session = address.rstrip("/").rpartition("/")[2]

    def do(self) -> None:
        if self.is_busy(self.session, AT_A_TIME):
            self.over.wait(0.2)
            return
        runbook = self._compose()
        status, _, body = self.page.insist(
            lambda: self.page.post(
                f"/sessions/{self.session}/turns/",
                instruction=runbook.text,
                submission=runbook.key,
            )
        )
        assert status == 200, f"{status}: {body[:300]}"

    def _compose(self) -> Runbook:
        key = f"s{self.number}r{len(self.submitted) + 1}"
        runbook = compose(key, self.page.random)
        self.submitted.append(runbook)
        return runbook


PENDING = """
SELECT id, digest, title FROM approvals_app_approvalrequest
 WHERE state = 'PENDING' ORDER BY created_at
"""


class Decider(Doing):
    """Approves what asks for the first time; a step that may have run is not run again."""

    def __init__(self, page: Page, findings: Findings, over: threading.Event) -> None:
        super().__init__("the decider", findings, over)
        self.page = page
        self.approved = self.rejected = 0

    def do(self) -> None:
        for approval, digest, title in self.page.stage.rows(PENDING):
            again = title.endswith(" (again)")
            self._decide(approval, digest, "reject" if again else "approve")
            self.rejected += again
            self.approved += not again
        self.over.wait(0.3)

    def _decide(self, approval: str, digest: str, verdict: str) -> None:
        status, _, body = self.page.insist(
            lambda: self.page.post(
                f"/approvals/{approval}/decision/", verdict=verdict, digest=digest
            )
        )
        if status != 200:
            self.findings.fault(
                OTHER, f"{verdict} of {approval} was answered {status}: {body[:300]}"
            )

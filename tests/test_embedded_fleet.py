"""The database that Signalbox brings along, shared by a server and a worker of one machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from config import embedded

from .fleet import Fleet, read_until, submit
from .installation import Installation, free_port, wait_for
from .left_out import need

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def small() -> Iterator[Fleet]:
    """No address of a database and no Redis, where the database's user can reach it."""
    need("bwrap", "bubblewrap")
    data = Path(tempfile.mkdtemp(prefix="signalbox-embedded-"))
    data.chmod(0o711)
    made = Fleet(Installation(data), None, SIGNALBOX_POLL_SECONDS="0.3")
    try:
        yield made
    finally:
        made.end()
        embedded.stop(data)
        shutil.rmtree(data)


def test_serve_and_a_separate_worker_share_the_embedded_database_of_a_machine(small):
    web = small.web("web")
    browser = small.sign_in(web, web.ready())
    port = free_port()
    worker = small.worker("worker", "--concurrency", "3", f"--metrics-port={port}")
    assert "3 at a time" in worker.ready()
    small.place.database = embedded.database_url(small.place.data)
    for member in (web, worker):
        assert "signalbox.W001" in member.log()
        assert "REDIS_URL" in member.log()

    # Without hints between them, by the timer of the page's server.
    session = submit(browser, small.place, "```sh\necho it ran\n```")
    with web.watch(session, browser) as socket:
        read_until(socket, "it ran")
    status, _, said = browser.get("/readyz")
    assert status == 200, said
    assert "signalbox_workers 1.0" in browser.get("/metrics")[2]
    of_worker = web.browser()
    of_worker.base = f"http://127.0.0.1:{port}/"
    assert 'signalbox_claim_seconds_count{attempt="first"} 1.0' in of_worker.get("/metrics")[2]

    # Whoever leaves last takes the database down, not whoever started it.
    small.place.database = ""
    embedded.stop(small.place.data)
    assert web.stop() == 0
    assert (small.place.data / "postgres" / "postmaster.pid").exists()
    assert worker.stop() == 0, worker.log()
    wait_for(
        lambda: not (small.place.data / "postgres" / "postmaster.pid").exists(),
        "the database goes on without anybody",
    )

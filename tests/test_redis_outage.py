"""Redis is away, hangs, or comes back: work goes on by timer, and at once again afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis

from .fleet import Fleet, Web, fleet, read_until, submit, wait_for_state
from .installation import Browser, wait_for

pytestmark = pytest.mark.timeout(120)


class Stage:
    def __init__(self, made: Fleet) -> None:
        assert made.redis is not None
        self.fleet, self.place, self.redis = made, made.place, made.redis
        self.web: Web = made.web("web")
        self.worker = made.worker("worker")
        self.browser: Browser = made.sign_in(self.web, self.web.ready())
        self.worker.ready()

    def said(self, words: str) -> list[int]:
        """How often each process said it."""
        return [member.log().count(words) for member in (self.web, self.worker)]


@pytest.fixture
def stage(tmp_path) -> Iterator[Stage]:
    with fleet(tmp_path, SIGNALBOX_POLL_SECONDS="0.3") as made:
        yield Stage(made)


def quickly_submitted(stage: Stage, words: str) -> str:
    begun = time.monotonic()
    session = submit(stage.browser, stage.place, words)
    assert time.monotonic() - begun < 1.5
    return session


@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_without_redis_everything_comes_by_timer_and_afterwards_at_once(stage, how):
    before = submit(stage.browser, stage.place, "Just a word.")
    wait_for_state(stage.place, before, "COMPLETED")
    with stage.web.watch(before, stage.browser) as watching:
        read_until(watching, "Just a word.")
        stage.redis.stop() if how == "stopped" else stage.redis.freeze()

        # Pages and submits are as quick as ever; what is open and what is opened now is served.
        session = quickly_submitted(stage, "Said without Redis.")
        with stage.web.watch(session, stage.browser) as opened:
            read_until(opened, "Said without Redis.")
            stage.browser.post(f"/sessions/{before}/turns/", instruction="A second word.")
            read_until(watching, "A second word.", patience=10)
            wait_for_state(stage.place, session, "COMPLETED")
            for _ in range(10):
                stage.browser.post(f"/sessions/{session}/turns/", instruction="And one more.")
            begun = time.monotonic()
            assert stage.browser.get("/")[0] == 200
            assert time.monotonic() - begun < 1
            assert max(stage.said("Redis does not answer")) <= 2

            stage.redis.start() if how == "stopped" else stage.redis.thaw()
            client = redis.Redis.from_url(stage.redis.url)
            groups = [f"asgi__group__session.{each}" for each in (before, session)]
            wanted = {*groups, "asgi__group__workers", "asgi__group__rail"}
            wait_for(
                lambda: wanted <= {c.decode() for c in client.pubsub_channels()},
                "not everybody listens again",
            )
            client.close()
    assert "Traceback" not in stage.web.log() + stage.worker.log()


def test_when_redis_is_restarted_hints_arrive_again(tmp_path):
    # No timer helps here.
    with fleet(tmp_path, SIGNALBOX_POLL_SECONDS="60") as made:
        stage = Stage(made)
        session = submit(stage.browser, stage.place, "Just a word.")
        wait_for_state(stage.place, session, "COMPLETED")
        with stage.web.watch(session, stage.browser) as watching:
            read_until(watching, "Just a word.")
            stage.redis.stop()
            stage.redis.start()
            client = redis.Redis.from_url(stage.redis.url)
            group = f"asgi__group__session.{session}"
            wait_for(
                lambda: client.pubsub_numsub(group)[0][1] == 1, "the feed does not listen again"
            )
            client.close()
            wait_for(lambda: min(stage.said("answers again")) == 1, "not all know that it is back")
            stage.browser.post(f"/sessions/{session}/turns/", instruction="A second word.")
            read_until(watching, "A second word.", patience=5)
        assert stage.web.stop() == 0
        assert stage.worker.stop() == 0

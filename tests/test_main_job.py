"""The main job through the engine: submit, ask, decide, go on, finish."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from django.db import connection

from approvals_app.decisions import decide
from approvals_app.models import ApprovalRequest
from sessions_app.models import Agent, Artifact, Session

from .conftest import work
from .left_out import need

pytestmark = pytest.mark.django_db(transaction=True)

GATED = """
First a file.

```sh
mkdir -p artifacts
echo hello > artifacts/note.txt
```

Then something to decide on.

```sh name=tag gate=ask
echo tagged > tag.txt
cat tag.txt
```

Done.
"""


def run(session: Session) -> None:
    asyncio.run(work(session.pk))


def test_what_prints_200_mb_is_kept_whole_and_the_event_stays_small(agent: Agent, alice):
    flood = "```sh\nseq 1 100000; head -c 200000000 /dev/zero; echo the end\n```"
    session, _ = Session.objects.start(agent=agent, owner=alice, instruction=flood)
    run(session)
    assert session.turns.get().state == "COMPLETED"
    artifact = Artifact.objects.get()
    said = session.events.get(type="tool_call.completed").data["output"]
    assert said["artifact_id"] == artifact.pk
    assert said["size"] == artifact.size == 200_588_903
    assert said["head"].startswith("1\n2\n3\n")
    assert said["tail"].endswith("the end\n")
    assert len(said["head"]) + len(said["tail"]) < 100_000


def test_a_gated_runbook_parks_and_goes_on_after_the_decision(agent: Agent, alice, bob):
    session, _ = Session.objects.start(agent=agent, owner=alice, instruction=GATED)
    run(session)
    session.refresh_from_db()
    assert session.state == "WAITING_FOR_PERMISSION"
    request = ApprovalRequest.objects.get()
    assert request.action["source"].startswith("echo tagged")

    decide(request.pk, by=bob, verdict="approve", digest=request.digest)
    run(session)
    session.refresh_from_db()
    turn = session.turns.get()
    assert (turn.state, turn.error_message) == ("COMPLETED", "")
    assert session.state == "WAITING_FOR_INPUT"
    assert Artifact.objects.get().name == "note.txt"


def test_a_step_cannot_reach_the_database_through_its_socket(agent: Agent, alice):
    need("bwrap", "bubblewrap")
    place = connection.get_connection_params()["host"]
    sockets = [str(path) for path in Path(place).glob(".s.PGSQL.*") if path.is_socket()]
    assert sockets, "the tests' own database listens on a socket in the file system"
    knock = f"""import socket
for kind, path in ((socket.AF_UNIX, {sockets[0]!r}), (socket.AF_INET, ("127.0.0.1", 5432))):
    try:
        socket.socket(kind).connect(path)
        print("reached")
    except OSError as error:
        print("refused", error.errno)
"""
    instruction = f"```python\n{knock}```\n"
    session, _ = Session.objects.start(agent=agent, owner=alice, instruction=instruction)
    run(session)
    output = session.events.get(type="tool_call.completed").data["output"]["head"]
    assert output.split() == ["refused", "2", "refused", "111"]

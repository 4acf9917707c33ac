"""What has to be true at the end, asked of the database, the files and the readers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from .people import Author
from .readers import Reader, Readers, Rows
from .report import DISORDERED, DUPLICATED, LOST, OTHER, STUCK, TWICE, Findings
from .runbooks import SAFE, WORDS, Runbook
from .stage import Stage

NUMBERS = """
SELECT session.id, session.last_seq, count(event.seq), coalesce(min(event.seq), 0),
       coalesce(max(event.seq), 0)
  FROM sessions_app_session session
  LEFT JOIN sessions_app_event event ON event.session_id = session.id
 GROUP BY session.id
"""
# What is said once per turn, by what names it.
TWICE_SAID = """
SELECT session_id, turn_id, type, coalesce(
         data->>'ref', data->>'call_id', data->>'widget_id', data->>'approval_id',
         data->>'artifact_id', data->>'attempt', ''), count(*)
  FROM sessions_app_event
 WHERE type IN ('turn.queued', 'turn.started', 'turn.completed', 'turn.failed', 'turn.cancelled',
                'message.created', 'tool_call.started', 'tool_call.completed', 'widget.created',
                'artifact.created', 'approval_request.created', 'approval_request.resolved')
 GROUP BY 1, 2, 3, 4, CASE WHEN type = 'message.created' THEN data->>'role' END
HAVING count(*) > 1
"""
# After its end a turn says nothing; before it was started a call has no result.
AFTER_THE_END = """
SELECT event.session_id, event.seq, event.type FROM sessions_app_event event
  JOIN sessions_app_event closing ON closing.turn_id = event.turn_id AND closing.seq < event.seq
 WHERE closing.type IN ('turn.completed', 'turn.failed', 'turn.cancelled')
   AND event.type <> 'turn.retried'
"""
UNFINISHED_CALLS = """
SELECT started.session_id, started.seq FROM sessions_app_event started
 WHERE started.type = 'tool_call.started' AND NOT EXISTS (
    SELECT FROM sessions_app_event done
     WHERE done.session_id = started.session_id AND done.item = started.item
       AND done.type = 'tool_call.completed' AND done.seq > started.seq)
"""
TURNS = """
SELECT id, session_id, idempotency_key, state, error_code, error_message
  FROM sessions_app_turn ORDER BY session_id, number
"""
CALLS = """
SELECT started.turn_id, started.data->'arguments'->>'name', done.data->>'status'
  FROM sessions_app_event started
  LEFT JOIN sessions_app_event done ON done.session_id = started.session_id
       AND done.item = started.item AND done.type = 'tool_call.completed'
 WHERE started.type = 'tool_call.started'
"""
REFUSED = """
SELECT turn_id, data->>'text' FROM sessions_app_event
 WHERE type = 'message.created' AND data->>'role' = 'system'
"""
ROWS = """
SELECT seq FROM (
    SELECT seq, item, row_number() OVER (PARTITION BY item ORDER BY seq) AS place
      FROM sessions_app_event WHERE session_id = %s) event
 WHERE item = '' OR place = 1 ORDER BY seq
"""
OPEN = """
SELECT count(*) FROM sessions_app_turn
 WHERE state NOT IN ('COMPLETED', 'FAILED', 'CANCELLED')
"""
INTERRUPTED = "was running when the server stopped"


def check_stream(stage: Stage, findings: Findings) -> None:
    """Numbers without gaps, nothing said twice, nothing after the end."""
    for session, last, count, first, highest in stage.rows(NUMBERS):
        if (count, first, highest) != (last, 1, last):
            text = f"{session} has {count} events, {first} to {highest}, and says {last}"
            findings.fault(LOST, text)
    for session, turn, type, name, count in stage.rows(TWICE_SAID):
        findings.fault(DUPLICATED, f"{session} {turn} says {type} {name} {count} times")
    for session, seq, type in stage.rows(AFTER_THE_END):
        findings.fault(DISORDERED, f"{session}: {seq} {type} comes after its turn's end")
    for session, seq in stage.rows(UNFINISHED_CALLS):
        findings.fault(LOST, f"{session}: the call of {seq} has no end")


class Outcome:
    """What became of each turn, as the stream tells it."""

    def __init__(self, stage: Stage) -> None:
        self.turns = {row[2]: row for row in stage.rows(TURNS)}
        self.calls: dict[str, list[tuple[str, str]]] = {}
        for turn, name, status in stage.rows(CALLS):
            self.calls.setdefault(turn, []).append((name, status))
        self.refused: dict[str, str] = {}
        for turn, text in stage.rows(REFUSED):
            self.refused[turn] = self.refused.get(turn, "") + text

    def of(self, runbook: Runbook) -> Counter[tuple[str, str]]:
        """How often each step of a runbook ended in each way."""
        return Counter(self.calls.get(self.turns[runbook.key][0], []))


def check_work(stage: Stage, authors: list[Author], findings: Findings) -> None:
    """Every submission is one turn, every turn has ended, and did what the stream says it did."""
    outcome = Outcome(stage)
    ours = {runbook.key for author in authors for runbook in author.submitted}
    for key in outcome.turns.keys() - ours:
        findings.fault(DUPLICATED, f"a turn {key} that nobody submitted")
    words = {author.session: _words(stage, author.session, WORDS) for author in authors}
    safe = {author.session: _words(stage, author.session, SAFE) for author in authors}
    for author in authors:
        for runbook in author.submitted:
            if runbook.key not in outcome.turns:
                findings.fault(LOST, f"the submission {runbook.key} was answered and is no turn")
                continue
            _check_turn(outcome, runbook, findings)
            _check_words(outcome, runbook, words[author.session], safe[author.session], findings)
            _check_artifact(stage, outcome, runbook, findings)
    statuses = Counter(status for calls in outcome.calls.values() for _, status in calls)
    states = Counter(row[3] for row in outcome.turns.values())
    findings.fact(f"{len(outcome.turns)} turns ({told(states)})")
    findings.fact(f"{statuses.total()} steps ({told(statuses)})")


def _check_turn(outcome: Outcome, runbook: Runbook, findings: Findings) -> None:
    _, session, key, state, code, message = outcome.turns[runbook.key]
    steps = outcome.of(runbook)
    strange = {status for _, status in steps} - {"succeeded", "interrupted"}
    if strange:
        findings.fault(OTHER, f"{session} {key}: a step was {', '.join(map(str, strange))}")
    if state == "COMPLETED":
        run = {name for name, _ in steps}
        if missing := runbook.steps.keys() - run:
            findings.fault(LOST, f"{session} {key} completed without {', '.join(missing)}")
    elif state not in ("FAILED", "CANCELLED"):
        findings.fault(STUCK, f"{session} {key} is {state} at the end")
    elif state != "FAILED" or code != "step_failed" or INTERRUPTED not in message:
        findings.fault(OTHER, f"{session} {key} is {state} {code}: {message}")


def _check_words(
    outcome: Outcome,
    runbook: Runbook,
    words: Counter[str],
    safe: Counter[str],
    findings: Findings,
) -> None:
    steps = outcome.of(runbook)
    for name, word in runbook.steps.items():
        succeeded = steps[name, "succeeded"]
        if name == "safe":
            if succeeded and not safe[word]:
                findings.fault(LOST, f"{word} succeeded and left nothing")
            continue
        if words[word] > 1:
            findings.fault(TWICE, f"{word} was run {words[word]} times")
        if succeeded > 1:
            findings.fault(TWICE, f"{word} succeeded {succeeded} times")
        if succeeded and not words[word]:
            findings.fault(LOST, f"{word} succeeded and left nothing")
        if words[word] and not any(named == name for named, _ in steps):
            findings.fault(LOST, f"{word} was run and the stream does not tell")


def _check_artifact(stage: Stage, outcome: Outcome, runbook: Runbook, findings: Findings) -> None:
    produced = outcome.of(runbook)["produce", "succeeded"]
    found = stage.rows(
        "SELECT size FROM sessions_app_artifact WHERE turn_id = %s AND name = %s",
        outcome.turns[runbook.key][0],
        runbook.artifact,
    )
    if produced and not found:
        findings.fault(LOST, f"the artifact {runbook.artifact} was not kept")
    if len(found) > 1:
        findings.fault(DUPLICATED, f"the artifact {runbook.artifact} is there {len(found)} times")


def _words(stage: Stage, session: str, name: str) -> Counter[str]:
    path = stage.data / "environments" / session / "work" / name
    return Counter(path.read_text().split()) if path.exists() else Counter()


def check_readers(
    readers: list[Reader], stage: Stage, findings: Findings, again: Callable[[Reader, Rows], Reader]
) -> None:
    """What each has put together is what is stored, and what a page opened now would show."""
    fresh = {}
    for reader in readers:
        fresh[reader] = again(reader, Rows(f"{reader.name}, fresh", findings))
        fresh[reader].target = reader.target
    opened = Readers()
    try:
        opened.start(list(fresh.values()))
        opened.finish(20)
    finally:
        opened.close()
    for reader in readers:
        _check_reader(reader, fresh[reader], stage, findings)


def _check_reader(reader: Reader, fresh: Reader, stage: Stage, findings: Findings) -> None:
    stored = [row[0] for row in stage.rows(ROWS, reader.session)]
    for each in (reader, fresh):
        seen = list(each.assembled.rows)
        if missing := sorted(set(stored) - set(seen)):
            text = (
                f"{each.name}, at {each.assembled.last} of {reader.target}, has not {missing[:9]}"
            )
            findings.fault(LOST, text)
        elif extra := sorted(set(seen) - set(stored)):
            findings.fault(DUPLICATED, f"{each.name} shows {extra[:9]}, which are no rows")
        elif seen != stored:
            findings.fault(DISORDERED, f"{each.name} shows its rows in another order")
    theirs = fresh.assembled.plain()
    for seq, html in reader.assembled.plain().items():
        if seq in theirs and theirs[seq] != html:
            findings.fault(LOST, f"{reader.name}: row {seq} is not as a fresh page shows it")


def wait_for_the_end(stage: Stage, seconds: float) -> None:
    """Wait until every turn has ended, but no longer than so many seconds."""
    deadline = time.monotonic() + seconds
    while stage.one(OPEN) and time.monotonic() < deadline:
        time.sleep(0.2)


def told(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {str(name).lower()}" for name, count in counts.most_common())

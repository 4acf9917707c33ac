"""What a runbook without a block is answered with: how to write one."""

from __future__ import annotations

from typing import Final

HELP: Final = """\
There is no block to run in this, so nothing was done. A runbook is Markdown: its prose is shown, \
its fenced blocks are run, in order. For example:

````markdown
Look around first.

```sh name=look
pwd
ls -la
```

Leave something behind. This one asks before it runs.

```sh name=note gate=ask why="Writes a file that can be downloaded."
mkdir -p artifacts
date > artifacts/note.txt
```
````

* `sh`, `bash` and `python` blocks are steps. Each starts in this session's own directory; what it \
leaves there, the next step and the next turn find.
* A `delegate agent="…"` block gives what is in it to another agent, in a session of its own.
* `mermaid` blocks are drawn. Blocks of any other language are text.
* Options follow the language: `name=`, `timeout=` in seconds, `gate=ask`, `why="…"`, and \
`on-reject=` and `on-failure=`, which `stop` unless they say `continue`.
* Files below `artifacts/` are kept for download, and changes in a git work tree become a diff.
"""

"""Takes the state of the git work trees below the current directory, and tells what changed.

This runs inside the environment, started like a step: a repository's configuration can name
programs that git starts (filters, for one), and those must have a step's rights and not the
server's. Where steps are unconfined they have the server's rights anyway. What it prints is
therefore a step's word about its own files. Standard library only, for the system's Python 3.

Without SIGNALBOX_BASES, prints a JSON object {path: tree, or null if git failed}. With it (such an
object), prints one diff of all work trees against those trees, with paths from here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

DEPTH = 3
MOST = 100
LIMIT = 16 * 1024 * 1024
SETTINGS = (
    "core.fsmonitor=",
    "core.hooksPath=/dev/null",
    "core.attributesFile=/dev/null",
    "core.untrackedCache=false",
    "core.splitIndex=false",
    "core.looseCompression=1",
    "gc.auto=0",
    "protocol.allow=never",
    "submodule.recurse=false",
    "safe.directory=*",
)
VARIABLES = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_LITERAL_PATHSPECS": "1",
}
TREE = re.compile("[0-9a-f]{40}([0-9a-f]{24})?")


def repositories() -> list[str]:
    found = []
    level = ["."]
    for _ in range(DEPTH + 1):
        below = []
        for directory in level:
            try:
                entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
            except OSError:
                continue
            for entry in entries:
                path = entry.name if directory == "." else f"{directory}/{entry.name}"
                if entry.name != ".git":
                    if entry.is_dir(follow_symlinks=False):
                        below.append(path)
                elif not entry.is_symlink():  # A directory, or a file that names one.
                    found.append(directory)
        level = below
    return sorted(found)[:MOST]


def command(directory: str, *arguments: str) -> list[str]:
    # Named, so that neither the repository's core.worktree nor core.bare has a say.
    top = os.path.abspath(directory)
    where = ["-C", top, f"--git-dir={top}/.git", f"--work-tree={top}"]
    settings = [part for setting in SETTINGS for part in ("-c", setting)]
    return ["git", "--no-pager", *settings, *where, *arguments]


def git(directory: str, *arguments: str, index: str = "") -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, **VARIABLES}
    if index:
        environment["GIT_INDEX_FILE"] = index
    return subprocess.run(
        command(directory, *arguments),
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


def answer(result: subprocess.CompletedProcess[bytes]) -> str | None:
    text = result.stdout.decode("ascii", "replace").strip()
    return text if result.returncode == 0 and TREE.fullmatch(text) else None


def snapshot(directory: str) -> str | None:
    """Return a tree of the present files, without touching the repository's own index."""
    with tempfile.TemporaryDirectory() as private:
        index = f"{private}/index"
        head = answer(git(directory, "rev-parse", "--quiet", "--verify", "HEAD^{tree}"))
        if head is not None and git(directory, "read-tree", head, index=index).returncode != 0:
            return None
        # 1 says that some file could not be read; the others count.
        if git(directory, "add", "--all", "--ignore-errors", index=index).returncode not in (0, 1):
            return None
        return answer(git(directory, "write-tree", index=index))


def base_tree(directory: str, base: str | None) -> str | None:
    if base is not None and git(directory, "cat-file", "-e", base + "^{tree}").returncode == 0:
        return base
    # New since the mark, or made anew: all of it is a change.
    return answer(git(directory, "hash-object", "-t", "tree", os.devnull))


def diff(directory: str, base: str, tree: str, room: int) -> bytes:
    """Return the diff, or a byte more than there is room for."""
    prefix = "" if directory == "." else directory + "/"
    # The plumbing command knows no diff.external, no diff.noprefix and the like.
    arguments = command(
        directory, "diff-tree", "-r", "-p", "--binary", "--find-renames", "--no-ext-diff",
        "--no-textconv", "--no-color", "--ignore-submodules=all",
        f"--src-prefix=a/{prefix}", f"--dst-prefix=b/{prefix}", base, tree,
    )  # fmt: skip
    process = subprocess.Popen(
        arguments,
        env={**os.environ, **VARIABLES},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        assert process.stdout is not None
        text = process.stdout.read(room + 1)
        process.kill()
    return text


def changes(bases: dict[str, str | None]) -> bytes:
    parts = bytearray()
    for directory in repositories():
        if directory in bases and bases[directory] is None:
            continue  # Its state at the mark is not known.
        tree = snapshot(directory)
        base = base_tree(directory, bases.get(directory))
        if tree is None or base is None or tree == base:
            continue
        parts += diff(directory, base, tree, LIMIT - len(parts))
        if len(parts) > LIMIT:
            # Inside a diff every line begins with a mark, so this is the head of the last file.
            whole = parts.rfind(b"\ndiff --git ", 0, LIMIT) + 1
            note = f"# The changes are larger than {LIMIT // 1024 // 1024} MiB and were cut here.\n"
            return bytes(parts[:whole]) + note.encode()
    return bytes(parts)


def main() -> None:
    if shutil.which("git") is None and repositories():
        sys.exit("git is not installed")
    bases = os.environ.get("SIGNALBOX_BASES")
    if bases is None:
        print(json.dumps({directory: snapshot(directory) for directory in repositories()}))
    else:
        sys.stdout.buffer.write(changes(json.loads(bases)))


if __name__ == "__main__":
    main()

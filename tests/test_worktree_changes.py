"""What changed in the git work trees of an environment, told by git and without trusting it."""

from __future__ import annotations

import json
import logging
import subprocess
from pathlib import Path

import pytest
import unidiff

from sessions_app.environments import local
from sessions_app.environments.local import LocalEnvironment, LocalProvider

from .steps import make, say


@pytest.fixture
async def environment(tmp_path) -> LocalEnvironment:
    """As this machine can do it."""
    return await LocalProvider(tmp_path / "environments").open("first")


@pytest.fixture
async def unconfined(tmp_path) -> LocalEnvironment:
    return await make(tmp_path / "environments", confined=False)


@pytest.fixture(params=["confined", "unconfined"])
async def either(request, tmp_path) -> LocalEnvironment:
    return await make(tmp_path / "environments", request.param == "confined")


REPOSITORY = "git init -q .; printf 'one\\ntwo\\n' > file; git add .; git commit -qm first\n"


async def test_what_was_edited_added_removed_and_renamed_is_told(either):
    await say(either, REPOSITORY + "seq 9 > long; echo x > gone; git add .; git commit -qm 2")
    await either.mark("turn-1")
    await say(either, "echo three >> file; echo n > new; rm gone; mv long longer")
    diff = await either.changes("turn-1")
    assert diff.startswith(b"diff --git a/file b/file\n")
    patch = unidiff.PatchSet(diff.decode())
    assert [file.path for file in patch.modified_files] == ["file", "longer"]
    assert [file.path for file in patch.added_files] == ["new"]
    assert [file.path for file in patch.removed_files] == ["gone"]
    assert b"rename from long\nrename to longer\n" in diff
    assert b"+three\n" in diff


async def test_nothing_changed_is_no_diff(environment):
    await environment.mark("none")
    assert await environment.changes("none") == b""
    await say(environment, REPOSITORY)
    await environment.mark("some")
    assert await environment.changes("some") == b""
    assert await environment.changes("never-marked") == b""


async def test_what_was_there_at_the_mark_is_not_told_again(environment):
    await say(environment, REPOSITORY + "echo early >> file; echo early > untracked")
    await environment.mark("turn-1")
    await say(environment, "echo late >> file")
    await environment.mark("turn-1")  # Remembered already.
    diff = await environment.changes("turn-1")
    assert b"+late" in diff
    assert b"+early" not in diff
    assert b"untracked" not in diff


async def test_commits_in_between_hide_nothing(environment):
    await say(environment, REPOSITORY)
    await environment.mark("turn-1")
    await say(environment, "echo three >> file; git commit -qam second; echo four >> file")
    diff = await environment.changes("turn-1")
    assert b"+three\n+four\n" in diff
    assert b"@@ -1,2 +1,4 @@" in diff


async def test_the_repositorys_own_index_is_left_alone(environment):
    await say(environment, REPOSITORY + "echo a > a; echo b > b; git add a; echo c >> a")
    before = await say(environment, "git status --porcelain")
    await environment.mark("turn-1")
    assert await say(environment, "git status --porcelain") == before == "AM a\n?? b\n"
    await environment.changes("turn-1")
    assert await say(environment, "git status --porcelain") == before


async def test_repositories_in_sub_directories_have_their_path(environment):
    await say(environment, f"mkdir -p 'my dir/c'; cd 'my dir/c'\n{REPOSITORY}")
    await environment.mark("turn-1")
    await say(environment, f"echo three >> 'my dir/c/file'; mkdir d; cd d\n{REPOSITORY}")
    # Not "a b/c": unidiff stumbles over a path with " b/" in it.
    patch = unidiff.PatchSet((await environment.changes("turn-1")).decode())
    assert sorted(file.path for file in patch) == ["d/file", "my dir/c/file"]
    # A new repository is all new.
    assert [file.path for file in patch.added_files] == ["d/file"]


async def test_a_repository_in_a_repository_is_told_once(environment):
    await say(environment, REPOSITORY + f"mkdir -p in empty; cd in\n{REPOSITORY}")
    await environment.mark("turn-1")
    await say(
        environment, "cd in; echo x > x; git add .; git commit -qm x; cd ../empty; git init -q"
    )
    patch = unidiff.PatchSet((await environment.changes("turn-1")).decode())
    assert [file.path for file in patch] == ["in/x"]


async def test_it_looks_three_levels_deep_and_follows_no_link(environment, tmp_path):
    await say(
        environment,
        "for d in 1/2/3 4/5/6/7; do mkdir -p $d; git init -q $d; echo x > $d/x; done\n"
        "git init -q --bare bare; mkdir linked; ln -s ../1/2/3/.git linked/.git; ln -s 1/2/3 link",
    )
    await environment.mark("turn-1")
    state = environment.work.parent / "state" / "turn-1.json"
    assert list(json.loads(state.read_text())) == ["1/2/3"]


async def test_binary_files_are_told_so_that_they_can_be_applied(either, tmp_path):
    await say(either, REPOSITORY)
    await either.mark("turn-1")
    source = "open('data', 'wb').write(bytes(range(256)))"
    await say(either, source, "python")
    (tmp_path / "diff").write_bytes(await either.changes("turn-1"))
    assert b"GIT binary patch" in (tmp_path / "diff").read_bytes()
    (tmp_path / "copy").mkdir()
    command = ["git", "apply", "--unsafe-paths", f"--directory={tmp_path}/copy", tmp_path / "diff"]
    subprocess.run(command, check=True, cwd=tmp_path)  # noqa: ASYNC221
    assert (tmp_path / "copy" / "data").read_bytes() == bytes(range(256))


async def test_a_repository_that_was_made_anew_is_all_new(environment):
    await say(environment, REPOSITORY)
    await environment.mark("turn-1")
    await say(environment, f"rm -rf .git file\n{REPOSITORY}\necho x > x")
    patch = unidiff.PatchSet((await environment.changes("turn-1")).decode())
    assert [file.path for file in patch.added_files][-1] == "x"


@pytest.mark.parametrize(
    "trap",
    [
        "git config core.fsmonitor '{run}'",
        "git config diff.external '{run}'; git config diff.evil.command '{run}'; "
        "git config diff.evil.textconv '{run}'; echo '* diff=evil' > .gitattributes",
        "for h in post-index-change pre-commit post-checkout reference-transaction; do "
        "printf '#!/bin/sh\\n{run}\\n' > .git/hooks/$h; chmod +x .git/hooks/$h; done",
        "mkdir h; printf '#!/bin/sh\\n{run}\\n' > h/post-index-change; chmod +x h/*; "
        'git config core.hooksPath "$PWD/h"',
        "git config core.pager '{run}'; git config pager.diff '{run}'; "
        "git config core.sshCommand '{run}'; git config core.alternateRefsCommand '{run}'",
        "git config --global core.fsmonitor '{run}'",
    ],
    ids=["fsmonitor", "diff", "hooks", "hooksPath", "pager", "global"],
)
async def test_programs_that_a_repository_names_do_not_run(unconfined, tmp_path, trap):
    await say(unconfined, REPOSITORY)
    await say(unconfined, trap.format(run=f"touch {tmp_path}/trapped"))
    (tmp_path / "trapped").unlink(missing_ok=True)
    await unconfined.mark("turn-1")
    await say(unconfined, "echo three >> file")
    assert b"+three" in await unconfined.changes("turn-1")
    assert not (tmp_path / "trapped").exists()


async def test_a_filter_runs_with_the_rights_of_a_step(either, tmp_path):
    await say(
        either,
        REPOSITORY + f"git config filter.evil.clean 'touch {tmp_path}/outside; touch inside; cat'\n"
        "echo '* filter=evil' > .gitattributes",
    )
    await either.mark("turn-1")
    assert (either.work / "inside").exists()
    assert (tmp_path / "outside").exists() is not either.confined


async def test_another_work_tree_cannot_be_named(either, tmp_path):
    (tmp_path / "secret").write_text("hush")
    await say(either, REPOSITORY + f"git config core.worktree {tmp_path}")
    await either.mark("turn-1")
    (either.work / "file").write_text("changed\n")
    diff = await either.changes("turn-1")
    assert b"+changed" in diff
    assert b"hush" not in diff


async def test_a_step_cannot_replace_what_the_script_imports(either):
    (either.work / "json.py").write_text("raise SystemExit('mine')")
    await say(either, REPOSITORY)
    await either.mark("turn-1")
    await say(either, "echo three >> file")
    assert b"+three" in await either.changes("turn-1")


async def test_changes_beyond_the_limit_are_cut_between_files(environment, monkeypatch):
    source = local.WORKTREES.replace(b"LIMIT = 16 * 1024 * 1024", b"LIMIT = 1024 * 1024")
    assert source != local.WORKTREES
    monkeypatch.setattr(local, "WORKTREES", source)
    await say(environment, REPOSITORY)
    await environment.mark("turn-1")
    await say(environment, "for f in a b c; do yes $f | head -c 400000 > $f; done")
    diff = await environment.changes("turn-1")
    assert len(diff) < 1024 * 1024 + 100
    assert diff.endswith(b"# The changes are larger than 1 MiB and were cut here.\n")
    assert [file.path for file in unidiff.PatchSet(diff.decode())] == ["a"]


@pytest.mark.parametrize(
    "broken", ["echo x > .git/HEAD", "rm -r .git/objects", "echo x > .git/index"]
)
async def test_a_broken_repository_is_no_error(environment, caplog, broken):
    caplog.set_level(logging.INFO)
    await say(environment, REPOSITORY + broken)
    await environment.mark("turn-1")
    await say(environment, "echo three >> file")
    assert isinstance(await environment.changes("turn-1"), bytes)


async def test_a_repository_that_breaks_later_is_no_error(environment):
    await say(environment, REPOSITORY)
    await environment.mark("turn-1")
    await say(
        environment, "echo x > file; echo x > .git/HEAD; mkdir ok; cd ok; git init -q; touch y"
    )
    diff = await environment.changes("turn-1")
    assert b"ok/y" in diff


async def test_without_git_there_are_no_changes_and_a_line_in_the_log(
    unconfined, caplog, monkeypatch
):
    caplog.set_level(logging.INFO)
    await say(unconfined, REPOSITORY)
    await unconfined.mark("before")
    hide = "sessions_app.environments.interpreters.search_path"
    monkeypatch.setattr(hide, lambda: "/nowhere")
    await unconfined.mark("turn-1")
    assert await unconfined.changes("before") == b""
    assert await unconfined.changes("turn-1") == b""
    assert "git is not installed" in caplog.text


async def test_a_mark_is_not_in_the_working_directory(either):
    await either.mark("turn-1")
    assert list(either.work.iterdir()) == []
    assert [path.name for path in Path(either.work.parent, "state").iterdir()] == ["turn-1.json"]
    with pytest.raises(ValueError):
        await either.mark("../turn")

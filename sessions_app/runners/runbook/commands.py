"""What a shell program consists of, as far as that can be said without running it."""

from __future__ import annotations

import re
import shlex

# Substitutions and escapes; quoted operators, which shlex tells from real ones no more; a `#` that
# is not the first on its line, which is a comment to shlex and may be none to the shell.
_beyond_shlex = re.compile(r"[$`\\]|['\"][;&|()<>\n]+['\"]|^[ \t]*[^ \t\n][^\n]*#", re.MULTILINE)


def only_git(source: str) -> bool:
    """Whether every command of a shell program is a plain `git …`, as far as one can be sure.

    This only chooses the word a gate matches on and a person sees, so it may miss but must not
    err: substitutions, escapes, redirections, pipes and groups are all plain shell.
    """
    if len(source) > 10_000 or _beyond_shlex.search(source):
        return False
    lexer = shlex.shlex(source, posix=True, punctuation_chars=";&|()<>\n")
    lexer.whitespace = " \t"
    lexer.whitespace_split = True
    commands: list[str] = []
    expecting = True
    try:
        for word in lexer:
            if not word.strip(";&|()<>\n"):
                if not re.fullmatch(r"(\n|;|&&|\|\|)+", word):
                    return False
                expecting = True
            elif expecting:
                commands.append(word)
                expecting = False
    except ValueError:  # a quote that is never closed
        return False
    return bool(commands) and set(commands) == {"git"}

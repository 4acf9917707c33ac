"""Confinement by bubblewrap: a mount tree built from nothing, no network, nobody else's processes.

A step sees /usr read-only, the few files of /etc that programs need, its own /proc, /tmp, /run and
minimal /dev, and its working directory at /work, the only thing it can write that stays. It runs as
uid 1000 of a user namespace, which is the server's own user outside: so the server can read and
remove what a step leaves, and a step can use what an unconfined one left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .interpreters import SYSTEM, own_prefix
from .process import Program, held

WORK = "/work"
SCRIPT = "/run/step"
UID = "1000"

ETC = (
    "alternatives",
    "ca-certificates.conf",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "pki/ca-trust/extracted",
    "ssl/certs",
)
GENERATED = {
    "/etc/passwd": (
        "root:x:0:0:root:/root:/usr/sbin/nologin\n"
        f"signalbox:x:{UID}:{UID}:Signalbox:{WORK}:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    "/etc/group": f"root:x:0:\nsignalbox:x:{UID}:\nnogroup:x:65534:\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "/etc/hosts": "127.0.0.1 localhost signalbox\n::1 localhost\n",
}

NAMESPACES = (
    # Each by name: `--unshare-all` only tries for the user namespace.
    "--unshare-user",
    "--unshare-ipc",
    "--unshare-pid",
    "--unshare-net",
    "--unshare-uts",
    "--unshare-cgroup-try",
    "--die-with-parent",
    "--new-session",
    *("--cap-drop", "ALL", "--uid", UID, "--gid", UID, "--hostname", "signalbox"),
)
NO_NESTING = "--disable-userns"  # Since 0.8: keeps most of the kernel's attack surface away.


@dataclass(frozen=True)
class Bubblewrap:
    """One way to call bubblewrap on this machine; `probes` gives those to try, best first."""

    executable: str
    extras: tuple[str, ...] = ()

    @contextlib.contextmanager
    def program(
        self, work: Path, argv: Sequence[str], source: bytes, environment: Mapping[str, str]
    ) -> Iterator[Program]:
        """Give the program that runs `argv` and the script of this source inside."""
        with held(source, *(text.encode() for text in GENERATED.values())) as contents:
            files = dict(zip((SCRIPT, *GENERATED), contents, strict=True))
            options = [*NAMESPACES, *self.extras, *_tree(work, files)]
            for name, value in environment.items():
                options += ["--setenv", name, value]
            # By a descriptor, because any user of the machine can read a command line; and never in
            # bubblewrap's own environment, where an LD_PRELOAD would act outside.
            with held(b"".join(os.fsencode(option) + b"\0" for option in options)) as [arguments]:
                yield Program(
                    [self.executable, "--args", str(arguments), "--", *argv, SCRIPT],
                    {},
                    work,
                    (arguments, *contents),
                    wrapped=True,
                )


def probes() -> list[Bubblewrap]:
    """Return the ways to call bubblewrap that may work here; none when it is not installed."""
    executable = shutil.which("bwrap")
    if executable is None:
        return []
    return [Bubblewrap(executable, (NO_NESTING,)), Bubblewrap(executable)]


def visible(path: Path) -> str | None:
    """Return the directory through which a confined step would see this path, if there is one."""
    resolved = path.resolve()
    shown = [*SYSTEM, *(f"/etc/{name}" for name in ETC)]
    if (prefix := own_prefix()) is not None:
        shown.append(str(prefix))
    return next((top for top in shown if resolved.is_relative_to(Path(top).resolve())), None)


def _tree(work: Path, files: Mapping[str, int]) -> Iterator[str]:
    for top in SYSTEM:
        if os.path.islink(top):
            yield from ("--symlink", os.readlink(top), top)
        elif os.path.isdir(top):
            yield from ("--ro-bind", top, top)
    for name in ETC:
        yield from ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")
    prefix = own_prefix()
    if prefix is not None:
        yield from ("--ro-bind", str(prefix), str(prefix))
    # A server that is root is root for /proc/sys too, whatever its uid inside: a step could set the
    # machine's core_pattern, which runs programs outside. So all of /proc is read-only.
    yield from ("--proc", "/proc", "--remount-ro", "/proc")
    yield from ("--dev", "/dev", "--tmpfs", "/dev/shm", "--remount-ro", "/dev")  # noqa: S108
    for private in ("/tmp", "/run", "/var/tmp"):  # noqa: S108
        yield from ("--tmpfs", private)
    for destination, descriptor in files.items():
        yield from ("--ro-bind-data", str(descriptor), destination)
    yield from ("--bind", str(work), WORK, "--chdir", WORK, "--remount-ro", "/")

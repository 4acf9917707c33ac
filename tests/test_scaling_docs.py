"""What docs/scaling.md tells people to type works, and it names every knob there is."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from .fleet import Fleet, Web, fleet
from .installation import ROOT, Browser, free_port, wait_for
from .left_out import need

pytestmark = pytest.mark.timeout(120)

TEXT = (ROOT / "docs" / "scaling.md").read_text()
BLOCKS = re.findall(r"<!-- (ends|serves) -->\n```sh\n(.*?)```", TEXT, re.DOTALL)
PORTS = ("8001", "8002", "8003", "9101")


@pytest.fixture
def machine(tmp_path) -> Iterator[tuple[Fleet, dict[str, str]]]:
    """A database, a Redis and the variables of the page, and free ports in place of its own."""
    with fleet(tmp_path, SIGNALBOX_METRICS_TOKEN="a long random string") as made:
        yield made, {port: str(free_port()) for port in PORTS}


def as_here(command: str, ports: dict[str, str]) -> str:
    for port, free in ports.items():
        command = re.sub(rf"\b{port}\b", free, command)
    return command.replace(".venv/bin/python", sys.executable)


def test_every_command_of_the_page_works(machine):
    need("curl", "curl")
    made, ports = machine
    environment = made.place.environment(**made.shared)
    servers: list[Web] = []
    for kind, block in BLOCKS:
        command = as_here(block, ports)
        if kind == "serves":
            port = re.search(r"(?:-p|--port|--metrics-port) (\d+)", command)
            assert port, command
            words = command.split()
            assert words[0] == sys.executable
            server = Web(made, f"server-{len(servers)}", *words[1:], port=int(port[1]))
            servers.append(made._add(server))
            continue
        for server in servers:
            wait_for(server.answers, f"{server.name} does not answer")
        if "readyz" in command:
            wait_for(lambda: Browser(servers[1].base).get("/readyz")[0] == 200, "it is never ready")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (command, done.stderr)
        if "metrics" in command:
            assert "signalbox_queue_depth" in done.stdout
    for server in servers:
        server.ask_to_stop()
    for server in servers:
        assert server.ended() == 0, server.log()


def test_every_command_of_the_page_is_marked_to_be_run():
    assert TEXT.count("```sh") == len(BLOCKS) > 5
    said = " ".join(block for _, block in BLOCKS)
    assert all(port in said for port in PORTS)


def test_every_variable_that_is_read_is_told_of():
    read: set[str] = set()
    for path in (ROOT / "config").rglob("*.py"):
        read |= set(re.findall(r'env\.\w+\(\s*"(\w+)"', path.read_text()))
        read |= set(re.findall(r'environ\.get\("(SIGNALBOX_\w+)"', path.read_text()))
    assert len(read) > 15
    assert {name for name in read if f"`{name}`" not in TEXT and f"`{name}=" not in TEXT} == set()

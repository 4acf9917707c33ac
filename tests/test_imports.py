"""Imports go one way: read from the files, so that a wrong arrow is seen even if nobody runs it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("sessions_app", "approvals_app", "config")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_of(path): path
    for app in OURS
    for path in sorted((ROOT / app).rglob("*.py"))
    if "migrations" not in path.parts
}


def only_for_types(tree: ast.Module) -> set[ast.stmt]:
    """What stands below `if TYPE_CHECKING:` is read by type checkers and never imported."""
    return {
        statement
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in node.body
        for statement in ast.walk(inner)
        if isinstance(statement, ast.stmt)
    }


def imports(module: str, source: str, *, package: bool) -> Iterator[str]:
    """Yield every module of ours that a source imports when it runs, by its full name."""
    tree = ast.parse(source)
    skipped = only_for_types(tree)
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                own = module.split(".") if package else module.split(".")[:-1]
                own = own[: len(own) - (node.level - 1)]
                base = ".".join([*own, *([node.module] if node.module else [])])
            for alias in node.names:
                if is_ours(base):
                    inner = f"{base}.{alias.name}"
                    yield inner if inner in FILES else base


def is_ours(name: str) -> bool:
    return name.partition(".")[0] in OURS


def imported_by(module: str) -> set[str]:
    path = FILES[module]
    package = path.name == "__init__.py"
    return set(imports(module, path.read_text(), package=package))


def within(module: str, *places: str) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def modules(*places: str) -> list[str]:
    return [module for module in FILES if within(module, *places)]


# Who may import what of ours. A module is ruled by the first line it is within; its own package
# is always allowed.
S = "sessions_app"
ARROWS: list[tuple[tuple[str, ...], tuple[str, ...] | None]] = [
    ((f"{S}.events",), ()),
    ((f"{S}.live", f"{S}.ids", f"{S}.storage", f"{S}.threads", f"{S}.diffs", f"{S}.markup"), ()),
    ((f"{S}.output",), (f"{S}.events",)),
    ((f"{S}.environments",), (f"{S}.events", f"{S}.environments.base")),
    (
        (f"{S}.runners",),
        (f"{S}.events", f"{S}.widgets", f"{S}.environments.base", f"{S}.runners.base"),
    ),
    ((f"{S}.gates",), (f"{S}.runners.base",)),
    (
        (f"{S}.models",),
        (f"{S}.events", f"{S}.live", f"{S}.gates", f"{S}.ids", f"{S}.widgets", f"{S}.models"),
    ),
    ((S,), (S,)),
    (("approvals_app",), ("approvals_app", S)),
    (("config",), None),
]


def allowed_for(module: str) -> tuple[str, ...] | None:
    for places, allowed in ARROWS:
        if within(module, *places):
            return allowed
    raise AssertionError(f"no line of ARROWS says what {module} may import")


def own_package(module: str) -> str:
    """The package that a module of runners or environments forms: its directory there, or it."""
    parts = module.split(".")
    return ".".join(parts[:3]) if len(parts) > 3 else module


def wrong_arrows(module: str, imported: set[str]) -> set[str]:
    allowed = allowed_for(module)
    if allowed is None:
        return set()
    own = own_package(module)
    return {name for name in imported if not within(name, *allowed, own)}


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_only_what_it_may(module):
    imported = imported_by(module)
    if within(module, f"{S}.environments"):
        # A provider may be made of several modules of its package.
        imported = {name for name in imported if not within(name, f"{S}.environments")}
    assert wrong_arrows(module, imported) == set()


def test_environments_know_nothing_of_runners_and_runners_nothing_of_providers():
    for module in modules(f"{S}.environments"):
        assert not {name for name in imported_by(module) if within(name, f"{S}.runners")}
    for module in modules(f"{S}.runners"):
        known = {name for name in imported_by(module) if within(name, f"{S}.environments")}
        assert known <= {f"{S}.environments.base"}


@pytest.mark.parametrize("module", modules(f"{S}.runners", f"{S}.environments", f"{S}.events"))
def test_runners_environments_and_events_do_without_django(module):
    tree = ast.parse(FILES[module].read_text())
    named = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    named |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not {name for name in named if within(name, "django", "channels", "procrastinate")}


def test_sessions_know_nothing_of_approvals_and_no_app_knows_the_composition():
    for module in modules(S):
        assert not {name for name in imported_by(module) if within(name, "approvals_app")}
    for module in modules(S, "approvals_app"):
        assert not {name for name in imported_by(module) if within(name, "config")}


LAYERS = [
    modules(f"{S}.models"),
    modules(f"{S}.run", f"{S}.engine"),
    modules(
        *(f"{S}.{name}" for name in ("views", "consumers", "admin", "management")),
        *(f"{S}.{name}" for name in ("feeds", "rail", "readers")),
    ),
]


def test_no_layer_of_sessions_imports_one_above_it():
    for height, layer in enumerate(LAYERS):
        above = {module for higher in LAYERS[height + 1 :] for module in higher}
        for module in layer:
            assert not imported_by(module) & above - {f"{S}.views.context"}, module


@pytest.mark.parametrize("name", ["utils", "services", "common", "signals", "helpers", "misc"])
def test_no_module_is_named_for_nothing_in_particular(name):
    assert [module for module in FILES if name in module.split(".")] == []


# -- the reading itself ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from . import events", {"sessions_app.events"}),
        ("from .. import events, ids", {"sessions_app.events", "sessions_app.ids"}),
        ("from .session import Session", {"sessions_app.models.session"}),
        ("from ..events import Payload", {"sessions_app.events"}),
        ("import approvals_app.models", {"approvals_app.models"}),
        ("from approvals_app import gate", {"approvals_app.gate"}),
        ("def f():\n    from approvals_app.gate import x", {"approvals_app.gate"}),
        ("if TYPE_CHECKING:\n    from approvals_app import gate", set()),
        ("import json\nfrom django.db import models", set()),
    ],
)
def test_imports_are_found_however_they_are_written(source, found):
    module = "sessions_app.events_reader" if source == "from . import events" else None
    assert set(imports(module or "sessions_app.models.turn", source, package=False)) == found


def test_a_wrong_arrow_is_found():
    assert wrong_arrows("sessions_app.models.turn", {"sessions_app.engine"})
    assert wrong_arrows("sessions_app.engine", {"approvals_app.gate"})
    assert wrong_arrows("approvals_app.gate", {"config.settings"})
    assert wrong_arrows("sessions_app.runners.runbook.runner", {"sessions_app.models"})
    assert not wrong_arrows("sessions_app.runners.runbook.runner", {"sessions_app.runners.runbook"})

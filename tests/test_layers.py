"""The layers of the project, held by a test."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from nodes.__main__ import COMMANDS

ROOT = Path(__file__).parent.parent
LAYERS = {
    "claudefs_repl": {"claudefs_repl"},
    "protocol": {"protocol", "claudefs_repl"},
    "nodes": {"nodes", "protocol", "claudefs_repl"},
}
NO_WORLD = {"socket", "os", "time", "random", "secrets", "threading", "subprocess", "sqlite3", "datetime"}
SEAMS = {"nodes/runtime.py", "nodes/storage.py", "nodes/store/sqlite_store.py"}
"""Where threads, the time of day and the disk are really touched on a site's path."""
ENTRANCES = ("nodes.__main__", *COMMANDS, "claudefs_repl.promises")
"""Where programs begin: the command line with its commands, and the checkers to which test tools hand what they observed."""


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("package", LAYERS)
def test_imports_run_from_nodes_to_protocol_to_domain_and_never_back(package):
    """A package imports only itself and the layers beneath it."""
    for path in modules(package):
        ours = {name.split(".")[0] for name in imports(path)} & set(LAYERS)
        assert ours <= LAYERS[package], path


@pytest.mark.parametrize("package", ["claudefs_repl", "protocol"])
def test_the_decisions_touch_no_world(package):
    """The domain and the wire import no socket, file, clock, randomness or thread; trio only in the failover manager."""
    for path in modules(package):
        roots = {name.split(".")[0] for name in imports(path)}
        assert not roots & NO_WORLD, path
        assert "trio" not in roots or path == ROOT / "claudefs_repl" / "failover.py", path
        assert "msgpack" not in roots or package == "protocol", path


KNOWN = {name_of(path): path for package in LAYERS for path in modules(package)}


def reached_from(start: str) -> set[str]:
    reached, pending = set(), [start]
    while pending:
        name = pending.pop()
        if name in KNOWN and name not in reached:
            reached.add(name)
            pending += imports(KNOWN[name])
            pending += [name.rpartition(".")[0]]
    return reached


def test_every_module_is_reached_from_the_command_line_or_by_a_test_tool():
    """No module is dead: each is imported, directly or not, by nodes/__main__.py or for what the test tools judge."""
    assert set.union(*map(reached_from, ENTRANCES)) == set(KNOWN)


def test_a_site_touches_time_and_threads_only_in_its_seams():
    """What runs in a site reads no clock, draws no entropy of its own and starts no thread, but in the seams."""
    for name in sorted(reached_from("nodes.site_process")):
        path = KNOWN[name]
        if str(path.relative_to(ROOT)) in SEAMS:
            continue
        roots = {imported.split(".")[0] for imported in imports(path)}
        assert not roots & {"time", "threading", "secrets", "uuid"}, path
        text = path.read_text()
        for banned in ("to_thread", "datetime.now", "time.time", "current_default_thread_limiter"):
            assert banned not in text, (path, banned)

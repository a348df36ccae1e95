"""The table of events and the code that logs them say the same."""

from __future__ import annotations

import ast
from pathlib import Path

from nodes.events import EVENTS

NODES = Path(__file__).parent.parent.parent / "nodes"
LEVELS = {"info", "warning", "error"}
INDIRECT = {
    "conduit_refused": {"peer", "detail", "code"},
    "conduit_unreachable": {"peer", "detail"},
    "conduit_closed": {"peer", "detail", "direction"},
    "stamps_refused": {"peer", "detail"},
    "journal_diverged": {"peer", "detail"},
    "peer_needs_bootstrap": {"peer", "detail"},
    "peer_ahead_of_origin": {"peer", "detail"},
    "journal_recovered": {"journal", "entries", "bytes", "segments", "torn_bytes"},
    "replayed": {"entries", "duration_ms"},
    "view_rebuilt": {"entries", "duration_ms"},
}
"""Events whose name or fields are not literals of the call."""


def calls():
    for path in sorted(NODES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
                continue
            first = node.args[0]
            is_name = isinstance(first, ast.Constant) and isinstance(first.value, str)
            if node.func.attr in LEVELS and is_name and " " not in first.value:
                yield path, node, first.value, {keyword.arg for keyword in node.keywords}


def fields_of(name):
    words = EVENTS[name].fields.split()
    return {word for word in words if not word.endswith("?")}, {word.rstrip("?") for word in words}


def test_every_logged_event_is_in_the_table_with_its_fields_and_level():
    """A call that logs names an event of the table, gives its fields, and is written at its level."""
    for path, node, name, fields in calls():
        where = f"{path}:{node.lineno}"
        assert name in EVENTS, where
        assert node.func.attr == EVENTS[name].level, where
        if name not in INDIRECT:
            needed, known = fields_of(name)
            assert needed <= fields <= known, where


def test_every_event_of_the_table_is_logged_somewhere():
    """The table promises nothing that no code logs."""
    assert {name for _, _, name, _ in calls()} | set(INDIRECT) == set(EVENTS)
    for name, fields in INDIRECT.items():
        needed, known = fields_of(name)
        assert needed <= fields <= known, name

"""The tables: made once, checked at every start, and searched by index in every statement on the way of an entry."""

from __future__ import annotations

import re
import sqlite3

import pytest

from claudefs_repl.error import CallerError
from claudefs_repl.journal import JournalId
from nodes.store import attributes, claims, dead_letters, extents, links, moves, schema, traces, view

STATEMENTS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": text
    for module in (attributes, claims, dead_letters, extents, links, moves, traces, view)
    for name, text in vars(module).items()
    if isinstance(text, str) and re.match(r"\s*(SELECT|UPDATE|DELETE|INSERT) ", text)
}


def test_the_statements_were_found():
    """The next test looks at something."""
    assert len(STATEMENTS) > 30


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_statement_reads_a_table_through(site, name):
    """The cost of an entry, and of a page of a listing, does not grow with the tree."""
    numbers = [int(number) for number in re.findall(r"\?([0-9])", STATEMENTS[name])]
    parameters = (1,) * (max(numbers) if numbers else STATEMENTS[name].count("?"))
    plan = [row[3] for row in site.connection.execute("EXPLAIN QUERY PLAN " + STATEMENTS[name], parameters)]
    assert [step for step in plan if step.startswith("SCAN ") and step != "SCAN CONSTANT ROW"] == []


def test_cursors_keep_every_64_bit_incarnation(site):
    """Incarnations and seqs come back as they went in."""
    applied = {JournalId(2047, 0xFFFF_FFFF_FFFF_FFFF): (0, (1 << 63) - 1), JournalId(1, 0): (1, 2)}
    schema.write_applied(site.connection, applied)
    schema.write_applied(site.connection, {JournalId(1, 0): (3, 2)})
    assert schema.read_applied(site.connection) == applied | {JournalId(1, 0): (3, 2)}


def test_a_store_of_another_layout_is_refused(site):
    """What this program does not know, it does not touch."""
    site.connection.execute("PRAGMA user_version = 99")
    with pytest.raises(CallerError, match="layout 99"):
        schema.set_up(site.connection, shard_count=2)


def test_setting_up_twice_changes_nothing(site):
    """An existing store is taken as it is."""
    before = site.dump()
    schema.set_up(site.connection, shard_count=2)
    assert site.dump() == before


def test_pages_have_their_size(tmp_path):
    """A new file gets the page size before its first table."""
    connection = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    connection.execute(f"PRAGMA page_size = {schema.PAGE_BYTES}")
    schema.set_up(connection, shard_count=2)
    assert connection.execute("PRAGMA page_size").fetchone() == (schema.PAGE_BYTES,)
    connection.close()

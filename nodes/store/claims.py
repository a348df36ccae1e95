"""Claims to names: which object shows under (parent, name), and removed directories that still hold something.

The rows of `link` are the claims of all objects. A claim is visible if its object is known and fits it: a directory's
place counts for a directory, a link for anything else. A removed directory keeps its last place, and shows there as long
as it holds a visible claim; `refresh` keeps that true when a claim below it comes or goes. Directories form a tree, the
removed ones included, so what shows is settled from the leaves up, in one way only.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from nodes.store.schema import Kind

VISIBLE = f"i.kind IS NOT NULL AND i.gone = 0 AND l.is_dir = (i.kind = {Kind.DIR})"
"""The condition on `link l JOIN inode i` under which a claim counts."""

_INSERT = "INSERT INTO link(parent, name, inode, stamp, is_dir) VALUES (?, ?, ?, ?, ?)"
_CONTEST = (
    "INSERT OR IGNORE INTO contested SELECT ?1, ?2 "
    "WHERE EXISTS (SELECT 1 FROM link WHERE parent = ?1 AND name = ?2 AND inode <> ?3)"
)
_DELETE = "DELETE FROM link WHERE parent = ? AND name = ? AND inode = ? AND stamp = ?"
_TRASH = "SELECT parent, name, stamp, is_shown FROM trash WHERE inode = ?"
_HOLDS = f"""
SELECT EXISTS(SELECT 1 FROM link l JOIN inode i ON i.inode = l.inode WHERE l.parent = ? AND {VISIBLE})
"""  # noqa: S608 -- joined from constants only


def add_claim(
    connection: sqlite3.Connection,
    parent: int,
    name: bytes,
    inode: int,
    stamp: bytes,
    *,
    is_dir: bool,
    is_alone: bool = False,
) -> None:
    """Enter a claim; the parent is not refreshed. `is_alone` is told by who knows that no other object claims the name."""
    connection.execute(_INSERT, (parent, name, inode, stamp, is_dir))
    if not is_alone:
        connection.execute(_CONTEST, (parent, name, inode))


def remove_claim(connection: sqlite3.Connection, parent: int, name: bytes, inode: int, stamp: bytes) -> None:
    """Remove a claim; the parent is not refreshed."""
    connection.execute(_DELETE, (parent, name, inode, stamp))


def refresh(connection: sqlite3.Connection, directory: int) -> None:
    """Show or hide a directory, if it is a removed one, by whether it holds something now; and so on upwards."""
    while True:
        row = connection.execute(_TRASH, (directory,)).fetchone()
        if row is None:
            return
        parent, name, stamp, is_shown = row
        (holds,) = connection.execute(_HOLDS, (directory,)).fetchone()
        if holds == is_shown:
            return
        connection.execute("UPDATE trash SET is_shown = ? WHERE inode = ?", (holds, directory))
        if parent is None:
            return
        if holds:
            add_claim(connection, parent, name, directory, stamp, is_dir=True)
        else:
            remove_claim(connection, parent, name, directory, stamp)
        directory = parent


def refresh_all(connection: sqlite3.Connection, directories: Iterable[int]) -> None:
    """`refresh` each of some directories, after all changes of claims among them are made."""
    for directory in directories:
        refresh(connection, directory)


def refresh_holders(connection: sqlite3.Connection, inode: int) -> None:
    """`refresh` the directories that an object's claims are in, after the object became known or vanished."""
    rows = connection.execute("SELECT DISTINCT parent FROM link WHERE inode = ? ORDER BY parent", (inode,)).fetchall()
    refresh_all(connection, (parent for (parent,) in rows))

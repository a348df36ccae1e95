"""Directories: each has one place, whatever is moved concurrently.

Source: Kleppmann, Mulligan, Gomes, Beresford, "A highly-available move operation for replicated trees" (2022). The moves
take effect in stamp order; one that would put a directory beneath itself, as the tree is at that point of the order, is
skipped. The paper undoes and redoes every move later than one that arrives late. Here the log is kept for each
directory, the place of a directory at a stamp is its last move before it that was not skipped, and only those later
moves are judged again that a change can reach: renames into the moved directory or into what was ever beneath it.

Two rules on single entries, checked before they come here, make most moves safe without judging: a directory's number
tells the stamp of its making, and it can only be placed into a directory that is older than the move. So the making of a
directory can never close a cycle.

A removal takes part in the same order, but leaves the directory at its place: it is hidden unless it holds something
(`nodes.store.claims`), and cycles through removed directories are cycles like any other. So what shows again, shows
beneath the root.
"""

from __future__ import annotations

import heapq
import sqlite3

from claudefs_repl.journal import ROOT_INODE
from nodes.store.claims import add_claim, refresh_all, remove_claim

_INSERT = "INSERT OR IGNORE INTO move(child, stamp, parent, name, is_rename, skipped) VALUES (?, ?, ?, ?, ?, ?)"
_PLACE_AT = (
    "SELECT parent FROM move WHERE child = ? AND stamp < ? AND parent IS NOT NULL AND skipped = 0 "
    "ORDER BY stamp DESC LIMIT 1"
)
_PLACE = (
    "SELECT parent, name, stamp FROM move WHERE child = ? AND parent IS NOT NULL AND skipped = 0 "
    "ORDER BY stamp DESC LIMIT 1"
)
_LAST = "SELECT parent FROM move WHERE child = ? AND skipped = 0 ORDER BY stamp DESC LIMIT 1"
_IS_KNOWN = "SELECT 1 FROM move WHERE child = ? LIMIT 1"
_ANY_LATER_RENAME = "SELECT 1 FROM move WHERE is_rename AND stamp > ? LIMIT 1"
_INTO = "SELECT child, stamp, is_rename FROM move WHERE parent = ? ORDER BY child, stamp"
_OLD_CLAIMS = "SELECT parent, name, stamp FROM link WHERE inode = ? AND is_dir = 1 ORDER BY parent, name, stamp"


def fold_making(connection: sqlite3.Connection, child: int, stamp: bytes, parent: int, name: bytes) -> None:
    """A directory is made in a place."""
    is_new = connection.execute(_IS_KNOWN, (child,)).fetchone() is None
    connection.execute(_INSERT, (child, stamp, parent, name, False, False))
    changed = _judge_later(connection, child, stamp)
    if is_new and not changed:
        add_claim(connection, parent, name, child, stamp, is_dir=True)
        refresh_all(connection, (parent,))
    else:
        _settle(connection, [child, *changed])


def fold_rename(connection: sqlite3.Connection, child: int, stamp: bytes, parent: int, name: bytes) -> None:
    """A directory gets another place, unless that would put it beneath itself."""
    is_skipped = _closes_cycle(connection, child, parent, stamp)
    connection.execute(_INSERT, (child, stamp, parent, name, True, is_skipped))
    changed = [] if is_skipped else _judge_later(connection, child, stamp)
    _settle(connection, [child, *changed])


def fold_removal(connection: sqlite3.Connection, child: int, stamp: bytes) -> None:
    """A directory is removed; a later rename brings it back."""
    connection.execute(_INSERT, (child, stamp, None, None, False, False))
    _settle(connection, [child])


def _closes_cycle(connection: sqlite3.Connection, child: int, parent: int, stamp: bytes) -> bool:
    """Whether `parent` is `child` or beneath it, just before a stamp."""
    directory = parent
    while directory != child:
        if directory == ROOT_INODE:
            return False
        row = connection.execute(_PLACE_AT, (directory, stamp)).fetchone()
        if row is None:
            return False
        directory = row[0]
    return True


def _judge_later(connection: sqlite3.Connection, moved: int, stamp: bytes) -> list[int]:
    """Judge again, in stamp order, the renames that a new place of a directory can concern.

    Returns:
        the directories of which a rename is now skipped, or no longer.
    """
    if connection.execute(_ANY_LATER_RENAME, (stamp,)).fetchone() is None:
        return []
    changed: list[int] = []
    expanded: set[int] = set()
    renames: list[tuple[bytes, int, int]] = []

    def expand(root: int, after: bytes) -> None:
        # Renames into what was ever beneath `root`: more than needed, never fewer. A directory is expanded once:
        # the first time is with the earliest stamp.
        beneath = [root]
        while beneath:
            directory = beneath.pop()
            if directory in expanded:
                continue
            expanded.add(directory)
            for child, move_stamp, is_rename in connection.execute(_INTO, (directory,)):
                beneath.append(child)
                if is_rename and move_stamp > after:
                    heapq.heappush(renames, (move_stamp, child, directory))

    expand(moved, stamp)
    while renames:
        rename_stamp, child, parent = heapq.heappop(renames)
        is_skipped = _closes_cycle(connection, child, parent, rename_stamp)
        updated = connection.execute(
            "UPDATE move SET skipped = ?3 WHERE child = ?1 AND stamp = ?2 AND skipped <> ?3",
            (child, rename_stamp, is_skipped),
        )
        if updated.rowcount:
            changed.append(child)
            expand(child, rename_stamp)
    return changed


def _settle(connection: sqlite3.Connection, directories: list[int]) -> None:
    """Bring claims and trash in line with the moves of some directories."""
    touched: list[int] = []
    for directory in dict.fromkeys(directories):
        touched.append(directory)
        for parent, name, stamp in connection.execute(_OLD_CLAIMS, (directory,)).fetchall():
            remove_claim(connection, parent, name, directory, stamp)
            touched.append(parent)
        connection.execute("DELETE FROM trash WHERE inode = ?", (directory,))
        place = connection.execute(_PLACE, (directory,)).fetchone()
        last = connection.execute(_LAST, (directory,)).fetchone()
        if last is not None and last[0] is None:
            parent, name, stamp = place or (None, None, None)
            connection.execute("INSERT INTO trash VALUES (?, ?, ?, ?, 0)", (directory, parent, name, stamp))
        elif place is not None:
            parent, name, stamp = place
            add_claim(connection, parent, name, directory, stamp, is_dir=True)
            touched.append(parent)
    refresh_all(connection, dict.fromkeys(touched))

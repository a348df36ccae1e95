"""What the view tells of single entries: which ones an object is made of, and what became of one."""

from __future__ import annotations

import sqlite3

from claudefs_repl.journal import Stamp
from nodes.store.conflict_view import page_conflicts
from nodes.store.conflicts import ID_BYTES
from nodes.store.dead_letters import EntryKey

LOST_MAX = 16
"""Conflicts of one entry that are told: it has few targets, but for a rename that replaces many."""
_OBJECT = "SELECT made, mode_stamp, uid_stamp, gid_stamp, mtime_stamp, length_stamp FROM inode WHERE inode = ?"
_LAST_RUN = "SELECT max(stamp) FROM extent WHERE inode = ? AND data IS NOT NULL"
_LAST_XATTR = "SELECT max(stamp) FROM xattr WHERE inode = ?"
_LAST_LINK = "SELECT max(stamp) FROM link WHERE inode = ?"
_SHOWS = """
SELECT EXISTS(
    SELECT 1 FROM inode
    WHERE inode = ?1 AND gone = 0 AND ?2 IN (made, mode_stamp, uid_stamp, gid_stamp, mtime_stamp, length_stamp)
    UNION ALL SELECT 1 FROM extent WHERE inode = ?1 AND stamp = ?2 AND data IS NOT NULL
    UNION ALL SELECT 1 FROM xattr WHERE inode = ?1 AND stamp = ?2 AND value IS NOT NULL
    UNION ALL SELECT 1 FROM link WHERE inode = ?1 AND stamp = ?2
)
"""


def latest_entries(connection: sqlite3.Connection, inode: int) -> list[tuple[Stamp, list[str]]]:
    """The entries that made an object, last wrote to it, last changed its attributes and last named it, by stamp.

    Each comes once, with what it was: `made`, `last write`, `last attributes`, `last name`. The root has no maker.
    """
    made, *fields, mtime, length = connection.execute(_OBJECT, (inode,)).fetchone()
    (run,) = connection.execute(_LAST_RUN, (inode,)).fetchone()
    (xattr,) = connection.execute(_LAST_XATTR, (inode,)).fetchone()
    (link,) = connection.execute(_LAST_LINK, (inode,)).fetchone()
    write = max(run or b"", length)
    # A write changes the time as well, which makes it no change of attributes.
    attributes = max(*fields, xattr or b"", mtime if mtime != write else b"")
    roles: dict[bytes, list[str]] = {}
    for stamp, role in ((made, "made"), (write, "last write"), (attributes, "last attributes"), (link, "last name")):
        if stamp and (role != "last attributes" or stamp != made):
            roles.setdefault(stamp, []).append(role)
    return [(Stamp.unpack(stamp), roles[stamp]) for stamp in sorted(roles)]


def shows(connection: sqlite3.Connection, inode: int, stamp: Stamp) -> bool:
    """Whether something of an entry is the current value of something of its object."""
    return bool(connection.execute(_SHOWS, (inode, stamp.pack())).fetchone()[0])


def lost_to(connection: sqlite3.Connection, stamp: Stamp) -> list[dict[str, str]]:
    """The conflicts that an entry has lost: each with its id and kind, the winning entry and the rule by which it won."""
    packed = stamp.pack()
    return [
        {
            "conflict": conflict.id,
            "kind": conflict.kind,
            "entry": str(EntryKey(*conflict.winner[1:])),
            "rule": conflict.rule,
        }
        for conflict in page_conflicts(connection, packed + bytes(ID_BYTES), LOST_MAX)
        if conflict.loser == stamp
    ]

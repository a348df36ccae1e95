"""Objects, their attributes and their extended attributes: last writer wins for each field, by stamp."""

from __future__ import annotations

import sqlite3

from claudefs_repl.operations import SetAttr
from nodes.store.causality import Cause
from nodes.store.claims import refresh_holders
from nodes.store.conflicts import Facet, Target
from nodes.store.extents import drop_runs
from nodes.store.judge import Judge, Memory
from nodes.store.schema import Kind

_MAKE = (
    "INSERT OR IGNORE INTO inode(inode, kind, made, target, mode, mode_stamp, uid, uid_stamp, gid, gid_stamp, "
    "mtime_ns, mtime_stamp, named) VALUES (?1, ?2, ?8, ?3, ?4, ?8, ?5, ?8, ?6, ?8, ?7, ?8, ?9)"
)
_MEET = "INSERT OR IGNORE INTO inode(inode) VALUES (?)"
_MAKE_KNOWN = "UPDATE inode SET kind = ?2, target = ?3, made = ?4, named = named OR ?5 WHERE inode = ?1 AND made < ?4"
_SET = """
UPDATE inode SET
    mode = CASE WHEN ?2 IS NOT NULL AND mode_stamp < ?6 THEN ?2 ELSE mode END,
    mode_stamp = CASE WHEN ?2 IS NOT NULL AND mode_stamp < ?6 THEN ?6 ELSE mode_stamp END,
    uid = CASE WHEN ?3 IS NOT NULL AND uid_stamp < ?6 THEN ?3 ELSE uid END,
    uid_stamp = CASE WHEN ?3 IS NOT NULL AND uid_stamp < ?6 THEN ?6 ELSE uid_stamp END,
    gid = CASE WHEN ?4 IS NOT NULL AND gid_stamp < ?6 THEN ?4 ELSE gid END,
    gid_stamp = CASE WHEN ?4 IS NOT NULL AND gid_stamp < ?6 THEN ?6 ELSE gid_stamp END,
    mtime_ns = CASE WHEN ?5 IS NOT NULL AND mtime_stamp < ?6 THEN ?5 ELSE mtime_ns END,
    mtime_stamp = CASE WHEN ?5 IS NOT NULL AND mtime_stamp < ?6 THEN ?6 ELSE mtime_stamp END
WHERE inode = ?1
"""
_FIELDS = "SELECT made, mode_stamp, mode, uid_stamp, uid, gid_stamp, gid FROM inode WHERE inode = ?"
_TOUCH = "UPDATE inode SET mtime_ns = ?2, mtime_stamp = ?3 WHERE inode = ?1 AND mtime_stamp < ?3"
_SET_LENGTH = "UPDATE inode SET length = ?2, length_stamp = ?3 WHERE inode = ?1 AND length_stamp < ?3"
_SET_XATTR = (
    "INSERT INTO xattr(inode, name, stamp, value) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE "
    "SET stamp = excluded.stamp, value = excluded.value WHERE stamp < excluded.stamp"
)


def make_object(
    connection: sqlite3.Connection,
    inode: int,
    stamp: bytes,
    kind: Kind,
    fields: SetAttr,
    *,
    target: bytes | None,
    is_named: bool,
) -> None:
    """The entry that makes an object; others may have told of the object before."""
    made = connection.execute(
        _MAKE, (inode, kind, target, fields.mode, fields.uid, fields.gid, fields.mtime_ns, stamp, is_named)
    )
    if made.rowcount == 1:
        return
    connection.execute(_MAKE_KNOWN, (inode, kind, target, stamp, is_named))
    _set_attributes(connection, inode, stamp, fields)
    refresh_holders(connection, inode)


def make_known(connection: sqlite3.Connection, inode: int) -> None:
    """Have a row for an object, so that what is told of it finds one; until it is made, the object is invisible."""
    connection.execute(_MEET, (inode,))


def set_attributes(judge: Judge, cause: Cause, inode: int, fields: SetAttr) -> None:
    """Change the attributes that are not None, where the change is the latest."""
    if judge.is_judged(inode, cause):
        _judge_attributes(judge, cause, inode, fields)
    _set_attributes(judge.connection, inode, cause.packed, fields)


def _set_attributes(connection: sqlite3.Connection, inode: int, stamp: bytes, fields: SetAttr) -> None:
    parameters = (inode, fields.mode, fields.uid, fields.gid, fields.mtime_ns, stamp)
    if not connection.execute(_SET, parameters).rowcount:
        make_known(connection, inode)
        connection.execute(_SET, parameters)


def _judge_attributes(judge: Judge, cause: Cause, inode: int, fields: SetAttr) -> None:
    row = judge.connection.execute(_FIELDS, (inode,)).fetchone() or (b"",) * 7
    made, there = row[0], {"mode": row[1:3], "uid": row[3:5], "gid": row[5:7]}
    for name, (stamp, value) in there.items():
        new = getattr(fields, name)
        if new is not None:
            # Whoever changes an object has seen its making.
            known = None if stamp in (b"", made) else (stamp, value)
            judge.set_value(Target(inode, Facet.FIELD, name.encode()), cause, new, known)
    if fields.mtime_ns is not None:
        # A write moves the time as well, and is no rival: so the table does not tell who set it.
        target = Target(inode, Facet.FIELD, b"mtime_ns")
        judge.set_value(target, cause, fields.mtime_ns, None)
        judge.remember(target, Memory(cause.packed, inode, None, None, fields.mtime_ns))


def set_mtime(connection: sqlite3.Connection, inode: int, stamp: bytes, mtime_ns: int) -> None:
    """Change the time of the last change, where the change is the latest."""
    if not connection.execute(_TOUCH, (inode, mtime_ns, stamp)).rowcount:
        make_known(connection, inode)
        connection.execute(_TOUCH, (inode, mtime_ns, stamp))


def set_length(connection: sqlite3.Connection, inode: int, stamp: bytes, length: int) -> None:
    """The least size that the latest truncate gives a file."""
    make_known(connection, inode)
    connection.execute(_SET_LENGTH, (inode, length, stamp))


def set_xattr(judge: Judge, cause: Cause, inode: int, name: bytes, value: bytes | None) -> None:
    """An extended attribute gets a value, or none."""
    if judge.is_judged(inode, cause):
        there = judge.connection.execute("SELECT stamp, value FROM xattr WHERE inode = ? AND name = ?", (inode, name))
        judge.set_value(Target(inode, Facet.XATTR, name), cause, value, there.fetchone())
    judge.connection.execute(_SET_XATTR, (inode, name, cause.packed, value))


def note_named(connection: sqlite3.Connection, inode: int) -> None:
    """An object has, or had, a name: it is not one that its maker may have abandoned."""
    if not connection.execute("UPDATE inode SET named = 1 WHERE inode = ?", (inode,)).rowcount:
        connection.execute("INSERT INTO inode(inode, named) VALUES (?, 1)", (inode,))


def give_up(connection: sqlite3.Connection, inode: int) -> None:
    """An object that was never named goes, with its data, for good."""
    make_known(connection, inode)
    connection.execute("UPDATE inode SET gone = 1 WHERE inode = ?", (inode,))
    drop_runs(connection, inode)
    connection.execute("DELETE FROM xattr WHERE inode = ?", (inode,))
    refresh_holders(connection, inode)

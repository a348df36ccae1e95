"""Objects, their attributes and their extended attributes: last writer wins for each field, by stamp."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from claudefs_repl.operations import SetAttr
from nodes.store.causality import Cause
from nodes.store.claims import refresh_holders
from nodes.store.conflicts import Facet, Target
from nodes.store.extents import drop_runs
from nodes.store.judge import Judge, Memory
from nodes.store.schema import Kind, Named

# ruff: noqa: S608 -- the statements are joined from constants only
_MAKE = (
    "INSERT OR IGNORE INTO inode(inode, kind, made, target, mode, uid, gid, mtime_ns, named) "
    "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)"
)
_NAME = (
    f"UPDATE inode SET named = {Named.BY_MAKER}, named_stamp = ?2 WHERE inode = ?1 AND named < {Named.BY_MAKER} "
    "AND substr(made, 9, 16) = substr(?2, 9, 16)"
)
_FIND = f"UPDATE inode SET named = {Named.BY_OTHERS} WHERE inode = ?1 AND named < {Named.BY_OTHERS}"
_MEET = "INSERT OR IGNORE INTO inode(inode) VALUES (?)"
_STAMPED = (("mode", "mode_stamp"), ("uid", "uid_stamp"), ("gid", "gid_stamp"), ("mtime_ns", "mtime_stamp"))
# A field that has its maker's value has no stamp of its own: the maker's counts.
_MAKE_KNOWN = (
    "UPDATE inode SET kind = ?2, target = ?4, made = ?3, named = max(named, ?9), "
    + ", ".join(
        f"{field} = CASE WHEN {stamp} < ?3 THEN ?{number} ELSE {field} END, "
        f"{stamp} = CASE WHEN {stamp} < ?3 THEN x'' ELSE {stamp} END"
        for number, (field, stamp) in enumerate(_STAMPED, 5)
    )
    + " WHERE inode = ?1 AND made < ?3"
)
SET_FIELD = {
    field: f"UPDATE inode SET {field} = ?2, {stamp} = ?3 WHERE inode = ?1 AND max(made, {stamp}) < ?3"
    for field, stamp in _STAMPED
}
FIELDS_OF = "named, named_stamp, mode_stamp, mode, uid_stamp, uid, gid_stamp, gid"
FIELDS = f"SELECT {FIELDS_OF} FROM inode WHERE inode = ?"
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
    named = Named.BY_MAKER if is_named else Named.NOT
    parameters = (inode, kind, stamp, target, fields.mode, fields.uid, fields.gid, fields.mtime_ns, named)
    if connection.execute(_MAKE, parameters).rowcount == 1:
        return
    connection.execute(_MAKE_KNOWN, parameters)
    refresh_holders(connection, inode)


def make_known(connection: sqlite3.Connection, inode: int) -> None:
    """Have a row for an object, so that what is told of it finds one; until it is made, the object is invisible."""
    connection.execute(_MEET, (inode,))


def set_attributes(judge: Judge, cause: Cause, inode: int, fields: SetAttr) -> None:
    """Change the attributes that are not None, where the change is the latest."""
    row = judge.connection.execute(FIELDS, (inode,)).fetchone()
    judge_attributes(judge, cause, inode, fields, row)
    if row is None:
        make_known(judge.connection, inode)
    for field, value in zip(SET_FIELD, (fields.mode, fields.uid, fields.gid, fields.mtime_ns), strict=True):
        if value is not None:
            judge.connection.execute(SET_FIELD[field], (inode, value, cause.packed))


def judge_attributes(judge: Judge, cause: Cause, inode: int, fields: SetAttr, row: Sequence[Any] | None) -> None:
    """Compare with what was set before; `row` is what `FIELDS` gives of the object."""
    named, named_stamp, *there = row or (Named.NOT, *(b"",) * 7)
    judge.note_named(inode, named, named_stamp)
    if judge.is_of_making(inode, cause.packed):
        return
    news = ((b"mode", fields.mode), (b"uid", fields.uid), (b"gid", fields.gid))
    for (name, new), stamp, value in zip(news, there[::2], there[1::2], strict=True):
        if new is not None:
            # Whoever changes an object has seen its making.
            judge.set_value(Target(inode, Facet.FIELD, name), cause, new, (stamp, value) if stamp else None)
    if fields.mtime_ns is not None:
        # A write moves the time as well, and is no rival: so the table does not tell who set it.
        target = Target(inode, Facet.FIELD, b"mtime_ns")
        judge.set_value(target, cause, fields.mtime_ns, None)
        judge.remember(target, Memory(cause.packed, inode, None, None, fields.mtime_ns))


def set_mtime(connection: sqlite3.Connection, inode: int, stamp: bytes, mtime_ns: int) -> None:
    """Change the time of the last change, where the change is the latest."""
    if not connection.execute(SET_FIELD["mtime_ns"], (inode, mtime_ns, stamp)).rowcount:
        make_known(connection, inode)
        connection.execute(SET_FIELD["mtime_ns"], (inode, mtime_ns, stamp))


def set_length(connection: sqlite3.Connection, inode: int, stamp: bytes, length: int) -> None:
    """The least size that the latest truncate gives a file."""
    make_known(connection, inode)
    connection.execute(_SET_LENGTH, (inode, length, stamp))


def set_xattr(judge: Judge, cause: Cause, inode: int, name: bytes, value: bytes | None) -> None:
    """An extended attribute gets a value, or none."""
    if not judge.is_of_making(inode, cause.packed):
        there = judge.connection.execute("SELECT stamp, value FROM xattr WHERE inode = ? AND name = ?", (inode, name))
        judge.set_value(Target(inode, Facet.XATTR, name), cause, value, there.fetchone())
    judge.connection.execute(_SET_XATTR, (inode, name, cause.packed, value))


def note_named(connection: sqlite3.Connection, cause: Cause, inode: int) -> None:
    """An object has, or had, a name: it is not one that its maker may have abandoned."""
    make_known(connection, inode)
    if not connection.execute(_NAME, (inode, cause.packed)).rowcount:
        note_found(connection, inode)


def note_found(connection: sqlite3.Connection, inode: int) -> None:
    """Somebody else than its maker has named or changed a known object; no effect on one that its maker has named here."""
    connection.execute(_FIND, (inode,))


def give_up(connection: sqlite3.Connection, inode: int) -> None:
    """An object that was never named goes, with its data, for good."""
    make_known(connection, inode)
    connection.execute("UPDATE inode SET gone = 1 WHERE inode = ?", (inode,))
    drop_runs(connection, inode)
    connection.execute("DELETE FROM xattr WHERE inode = ?", (inode,))
    refresh_holders(connection, inode)

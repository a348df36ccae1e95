"""Links of files and symbolic links: an observed-remove set of (parent, name, inode).

An add is identified by its stamp. A removal removes the adds of its link that its writer had seen. An add may arrive
after a removal that had seen it, because shards and journals arrive in any order: then a tomb kept from the removal stops
it. A tomb is kept only if an add that it saw can still be on its way, or is a dead letter that may be folded later.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from claudefs_repl.checkpoint import Cursors, decode_cursors
from claudefs_repl.journal import Stamp, shard_of
from nodes.store.causality import Cause, has_seen
from nodes.store.claims import add_claim, refresh, remove_claim
from nodes.store.dead_letters import is_open_for
from nodes.store.judge import Judge

_TOMBS = (
    "SELECT t.stamp, s.vector FROM tomb t JOIN seen s ON s.id = t.seen "
    "WHERE t.inode = ? AND t.parent = ? AND t.name = ? ORDER BY t.stamp"
)
_RIVALS = (
    "SELECT inode, stamp FROM link WHERE parent = ?1 AND name = ?2 AND is_dir = 0 "
    "UNION ALL SELECT child, stamp FROM move WHERE parent = ?1 AND name = ?2 ORDER BY 2"
)
_ADDS = "SELECT stamp FROM link WHERE parent = ? AND name = ? AND inode = ? AND is_dir = 0 ORDER BY stamp"


@dataclass(frozen=True, slots=True)
class Removal:
    """A link that an entry removes.

    Attributes:
        to: the place that the object gets instead, None if none.
    """

    parent: int
    name: bytes
    inode: int
    to: tuple[int, bytes] | None = None


def add_link(judge: Judge, cause: Cause, parent: int, name: bytes, inode: int) -> None:
    """Fold an add in."""
    connection = judge.connection
    rivals = rivals_of(connection, parent, name)
    if not cause.is_local or judge.is_name_watched(parent):
        judge.claim(parent, name, inode, cause, rivals)
    if judge.has_tombs and not cause.is_local:
        for packed, vector in connection.execute(_TOMBS, (inode, parent, name)):
            if has_seen(Stamp.unpack(packed), decode_cursors(vector), cause.stamp):
                judge.unclaim(parent, name, inode, cause.packed)
                return
    add_claim(connection, parent, name, inode, cause.packed, is_dir=False, is_alone=not rivals)
    if judge.has_trash:
        refresh(connection, parent)


def rivals_of(connection: sqlite3.Connection, parent: int, name: bytes) -> list[tuple[int, bytes]]:
    """The claims to a name, as (inode, stamp): links, and every place that a directory was ever given."""
    return connection.execute(_RIVALS, (parent, name)).fetchall()


def remove_link(judge: Judge, cause: Cause, removal: Removal) -> None:
    """Fold a removal in."""
    connection, (parent, name, inode) = judge.connection, (removal.parent, removal.name, removal.inode)
    seen = judge.causality.decoded(cause.seen)
    for (packed,) in connection.execute(_ADDS, (parent, name, inode)).fetchall():
        if has_seen(cause.stamp, seen, Stamp.unpack(packed)):
            remove_claim(connection, parent, name, inode, packed)
            judge.unclaim(parent, name, inode, packed)
            judge.note_removed_from(parent, cause)
    judge.unlink(inode, (parent, name), cause, removal.to)
    is_all_here = cause.is_local or not _may_still_arrive(judge, cause, seen, inode)
    if not is_all_here or is_open_for(connection, inode):
        tomb = (inode, parent, name, cause.packed, judge.causality.intern(cause.seen))
        connection.execute("INSERT OR IGNORE INTO tomb VALUES (?, ?, ?, ?, ?)", tomb)
        judge.has_tombs = True
    if judge.has_trash:
        refresh(connection, parent)


def _may_still_arrive(judge: Judge, cause: Cause, seen: Cursors, inode: int) -> bool:
    """Whether an add that a removal has seen may not have been applied here yet; all adds of an object are in one shard."""
    shard = shard_of(inode, judge.shard_count)
    if shard != cause.stamp.shard:
        return True  # the removal of what a rename replaces: its own journal's other shard may be behind
    for journal, seqs in seen.items():
        if journal == cause.journal or shard >= len(seqs) or not seqs[shard]:
            continue
        applied = judge.applied.get(journal)
        if applied is None or applied[shard] < seqs[shard]:
            return True
    return False

"""Links of files and symbolic links: an observed-remove set of (parent, name, inode).

An add is identified by its stamp. A removal removes the adds of its link that its writer had seen. An add may arrive
after a removal that had seen it, because shards and journals arrive in any order: then a tomb kept from the removal stops
it. A tomb is kept only if an add that it saw can still be on its way.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import NamedTuple

from claudefs_repl.checkpoint import Cursors, decode_cursors
from claudefs_repl.journal import JournalId, Stamp, shard_of
from nodes.store.claims import add_claim, refresh, remove_claim

_TOMBS = (
    "SELECT t.stamp, s.vector FROM tomb t JOIN seen s ON s.id = t.seen "
    "WHERE t.inode = ? AND t.parent = ? AND t.name = ? ORDER BY t.stamp"
)
_ADDS = "SELECT stamp FROM link WHERE parent = ? AND name = ? AND inode = ? AND is_dir = 0 ORDER BY stamp"


class Cause(NamedTuple):
    """The entry that is being folded, without its payload.

    Attributes:
        stamp: its place in the order of all entries.
        packed: the same as bytes.
        seen: what its writer had applied, encoded.
        is_local: whether it is being written here, so that everything that it has seen is applied here.
    """

    stamp: Stamp
    packed: bytes
    seen: bytes
    is_local: bool

    @property
    def journal(self) -> JournalId:
        """The journal that it is in."""
        return JournalId(self.stamp.origin, self.stamp.incarnation)


@dataclass(frozen=True, slots=True)
class Removals:
    """What judging a removal needs to know: how far the store is.

    Attributes:
        shard_count: of the cluster.
        applied: the cursors before the entry being folded.
    """

    shard_count: int
    applied: Cursors


def add_link(connection: sqlite3.Connection, cause: Cause, parent: int, name: bytes, inode: int) -> None:
    """Fold an add in."""
    for packed, vector in connection.execute(_TOMBS, (inode, parent, name)):
        if has_seen(Stamp.unpack(packed), decode_cursors(vector), cause.stamp):
            return
    add_claim(connection, parent, name, inode, cause.packed, is_dir=False)
    refresh(connection, parent)


def remove_link(
    connection: sqlite3.Connection, cause: Cause, removals: Removals, parent: int, name: bytes, inode: int
) -> None:
    """Fold a removal in."""
    seen = decode_cursors(cause.seen)
    for (packed,) in connection.execute(_ADDS, (parent, name, inode)).fetchall():
        if has_seen(cause.stamp, seen, Stamp.unpack(packed)):
            remove_claim(connection, parent, name, inode, packed)
    if not cause.is_local and _may_still_arrive(cause, removals, seen, inode):
        connection.execute("INSERT OR IGNORE INTO seen(vector) VALUES (?)", (cause.seen,))
        connection.execute(
            "INSERT OR IGNORE INTO tomb SELECT ?, ?, ?, ?, id FROM seen WHERE vector = ?",
            (inode, parent, name, cause.packed, cause.seen),
        )
    refresh(connection, parent)


def has_seen(removal: Stamp, seen: Cursors, add: Stamp) -> bool:
    """Whether a removal's writer knew of an add."""
    if (removal.origin, removal.incarnation) == (add.origin, add.incarnation):
        return add.seq < removal.seq if add.shard == removal.shard else add < removal
    seqs = seen.get(JournalId(add.origin, add.incarnation), ())
    return add.shard < len(seqs) and add.seq <= seqs[add.shard]


def _may_still_arrive(cause: Cause, removals: Removals, seen: Cursors, inode: int) -> bool:
    """Whether an add that a removal has seen may not have been applied here yet; all adds of an object are in one shard."""
    shard = shard_of(inode, removals.shard_count)
    if shard != cause.stamp.shard:
        return True  # the removal of what a rename replaces: its own journal's other shard may be behind
    for journal, seqs in seen.items():
        if journal == cause.journal or shard >= len(seqs) or not seqs[shard]:
            continue
        applied = removals.applied.get(journal)
        if applied is None or applied[shard] < seqs[shard]:
            return True
    return False

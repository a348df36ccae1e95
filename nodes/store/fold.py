"""Folding: what an entry's operation does to the tables.

The state that results is a function of the set of entries folded, provided that each journal's shards are folded in seq
order: every rule of `attributes`, `extents`, `links` and `moves` goes by stamps and `seen`, never by what came first. So
each entry is judged by itself and by its own journal's past only, before anything is changed: what fails is put aside as
a dead letter, here and at every other site alike.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from claudefs_repl.block import ROW_HEAD_BYTES, Block
from claudefs_repl.journal import (
    ROOT_INODE,
    STAMP_BITS,
    JournalId,
    Stamp,
    entry_crc32,
    make_inode,
    shard_of,
)
from claudefs_repl.operations import (
    Create,
    Link,
    MkDir,
    Operation,
    RemoveXattr,
    Rename,
    SetAttr,
    SetXattr,
    Symlink,
    Truncate,
    Unlink,
    Write,
)
from nodes.store.attributes import (
    give_up,
    make_object,
    note_named,
    set_attributes,
    set_length,
    set_mtime,
    set_xattr,
)
from nodes.store.extents import truncate_run, write_run
from nodes.store.links import Cause, Removals, add_link, remove_link
from nodes.store.moves import fold_making, fold_removal, fold_rename
from nodes.store.schema import Kind, pack_incarnation, read_applied, read_meta, write_applied, write_meta
from protocol.payload import INODE_MAX, PayloadInvalid, decode_payload

TIMESTAMP_US_MAX = (1 << STAMP_BITS) - 1
"""An inode number holds no greater stamp; the year 2112."""
SYMLINK_MODE = 0o777
_ROW_HEAD = struct.Struct("<QQ")
_UNTOLD = "SELECT parent, name FROM contested WHERE is_told = 0 ORDER BY parent, name"
_TOLD = "UPDATE contested SET is_told = 1 WHERE parent = ? AND name = ?"
_CLAIMANTS = "SELECT inode, max(stamp) FROM link WHERE parent = ? AND name = ? GROUP BY inode ORDER BY max(stamp) DESC"
_DEAD_LETTER = "INSERT INTO dead_letter VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry that could not be applied."""

    shard: int
    seq: int
    reason: str


@dataclass(frozen=True, slots=True)
class NameConflict:
    """Several objects claim one name since this fold: the latest claim shows it, the others appear beside it.

    Attributes:
        winner: the object that shows the name.
        loser: one that does not.
        loser_origin: the site that made the losing claim.
    """

    name: bytes
    winner: int
    loser: int
    loser_origin: int


@dataclass(frozen=True, slots=True)
class FoldReport:
    """What `Fold.fold_blocks` did.

    Attributes:
        entries: how many entries took effect or were put aside; duplicates are not counted.
        dead_letters: those put aside.
        last_timestamp_us: the greatest stamp among those that took effect, 0 if none did.
        conflicts: names that became contested.
    """

    entries: int
    dead_letters: list[DeadLetter]
    last_timestamp_us: int
    conflicts: list[NameConflict]


class Fold:
    """One transaction's folding over a connection. Owned by whoever owns the transaction.

    Attributes:
        applied: the cursors as the transaction has them by now.
        timestamp_us: the greatest stamp applied, likewise.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.shard_count = read_meta(connection, "shard_count")
        self.timestamp_us = read_meta(connection, "timestamp_us")
        self.applied = read_applied(connection)
        self._changed: set[JournalId] = set()
        self._mtimes: dict[int, tuple[bytes, int]] = {}

    def fold_blocks(self, journal: JournalId, blocks: Sequence[Block]) -> FoldReport:
        """Fold entries in that were journaled elsewhere, or here in an earlier life; duplicates have no effect."""
        entries, last_us, dead_letters = 0, 0, list[DeadLetter]()
        cursors = list(self.cursors_of(journal))
        for block in blocks:
            done = cursors[block.shard]
            assert block.first_seq <= done + 1, f"{journal} shard {block.shard}: {block.first_seq} follows {done}"
            if block.last_seq <= done:
                continue
            last_us = max(last_us, self._fold_block(journal, block, done, dead_letters))
            entries += block.last_seq - done
            cursors[block.shard] = block.last_seq
        self.advance(journal, tuple(cursors))
        self.timestamp_us = max(self.timestamp_us, last_us)
        self.flush()
        return FoldReport(entries, dead_letters, last_us, self.new_conflicts())

    def cursors_of(self, journal: JournalId) -> tuple[int, ...]:
        """How far a journal is applied."""
        return self.applied.get(journal) or (0,) * self.shard_count

    def advance(self, journal: JournalId, cursors: tuple[int, ...]) -> None:
        """Move a journal's applied cursors; `save` stores them."""
        if any(cursors):
            self.applied[journal] = cursors
            self._changed.add(journal)

    def save(self) -> None:
        """Write what is still held back, and the cursors, before the transaction is committed."""
        self.flush()
        write_applied(self.connection, {journal: self.applied[journal] for journal in sorted(self._changed)})
        write_meta(self.connection, "timestamp_us", self.timestamp_us)

    def flush(self) -> None:
        """Write the times that a run of writes left behind: one change for each file instead of one for each write."""
        for inode, (stamp, mtime_ns) in self._mtimes.items():
            set_mtime(self.connection, inode, stamp, mtime_ns)
        self._mtimes.clear()

    def new_conflicts(self) -> list[NameConflict]:
        """The names that became contested since this was last asked, in the order of their directories."""
        conflicts: list[NameConflict] = []
        for parent, name in self.connection.execute(_UNTOLD).fetchall():
            (winner, _), *losers = self.connection.execute(_CLAIMANTS, (parent, name)).fetchall()
            for loser, packed in losers:
                if loser != winner:
                    conflicts.append(NameConflict(name, winner, loser, Stamp.unpack(packed).origin))
            self.connection.execute(_TOLD, (parent, name))
        return conflicts

    def _fold_block(self, journal: JournalId, block: Block, done: int, dead_letters: list[DeadLetter]) -> int:
        """Fold the entries of a block beyond a seq.

        Returns:
            the greatest stamp among those that took effect.
        """
        (origin, incarnation), shard, last_us = journal, block.shard, 0
        body, at = block.body, 0
        seen_table = block.seen_table
        columns = zip(block.timestamps, block.ops, block.lengths, block.crcs, block.seen_indexes, strict=True)
        for seq, (timestamp_us, op, length, crc32, seen) in enumerate(columns, block.first_seq):
            body_at = at + ROW_HEAD_BYTES
            at = body_at + length
            if seq <= done:
                continue
            body_seq, inode = _ROW_HEAD.unpack_from(body, body_at - ROW_HEAD_BYTES)
            payload = bytes(body[body_at:at])
            try:
                if body_seq != seq or entry_crc32(seq, shard, origin, timestamp_us, inode, op, payload) != crc32:
                    raise PayloadInvalid("the checksum does not match the entry")
                operation = decode_payload(op, payload)
                stamp = Stamp(timestamp_us, origin, incarnation, shard, seq)
                check_entry(stamp, inode, operation, self.shard_count)
            except PayloadInvalid as error:
                letter = (shard, seq, op, str(inode), str(timestamp_us), payload, str(error))
                self.connection.execute(_DEAD_LETTER, (origin, pack_incarnation(incarnation), *letter))
                dead_letters.append(DeadLetter(shard, seq, str(error)))
                continue
            last_us = max(last_us, timestamp_us)
            self.apply(Cause(stamp, stamp.pack(), seen_table[seen], is_local=False), inode, operation)
        return last_us

    def apply(self, cause: Cause, inode: int, operation: Operation) -> None:
        """Give one operation its effect; `check_entry` has passed it."""
        connection, stamp = self.connection, cause.packed
        match operation:
            case Write():
                write_run(connection, inode, operation.offset, operation.data, stamp)
                held = self._mtimes.get(inode)
                if held is None or held[0] < stamp:
                    self._mtimes[inode] = stamp, cause.stamp.timestamp_us * 1000
            case Truncate():
                set_length(connection, inode, stamp, operation.length)
                truncate_run(connection, inode, operation.length, stamp)
            case SetAttr():
                set_attributes(connection, inode, stamp, operation)
            case SetXattr():
                set_xattr(connection, inode, stamp, operation.name, operation.value)
            case RemoveXattr():
                set_xattr(connection, inode, stamp, operation.name, None)
            case Create() | MkDir() | Symlink():
                self._apply_making(cause, inode, operation)
            case Link():
                note_named(connection, inode)
                add_link(connection, cause, operation.parent, operation.name, inode)
            case Unlink():
                self._apply_unlink(cause, inode, operation)
            case Rename():
                self._apply_rename(cause, inode, operation)

    def _apply_making(self, cause: Cause, inode: int, operation: Create | MkDir | Symlink) -> None:
        connection, target = self.connection, None
        match operation:
            case Create():
                kind, mode = Kind.FILE, operation.mode
            case MkDir():
                kind, mode = Kind.DIR, operation.mode
            case Symlink():
                kind, mode, target = Kind.SYMLINK, SYMLINK_MODE, operation.target
        fields = SetAttr(mode, operation.uid, operation.gid, operation.mtime_ns)
        is_named = operation.parent is not None
        make_object(connection, inode, cause.packed, kind, fields, target=target, is_named=is_named)
        if operation.parent is not None and operation.name is not None:
            if kind is Kind.DIR:
                fold_making(connection, inode, cause.packed, operation.parent, operation.name)
            else:
                add_link(connection, cause, operation.parent, operation.name, inode)

    def _apply_unlink(self, cause: Cause, inode: int, operation: Unlink) -> None:
        if operation.is_dir:
            fold_removal(self.connection, inode, cause.packed)
        elif operation.parent is None or operation.name is None:
            give_up(self.connection, inode)
        else:
            removals = Removals(self.shard_count, self.applied)
            remove_link(self.connection, cause, removals, operation.parent, operation.name, inode)

    def _apply_rename(self, cause: Cause, inode: int, operation: Rename) -> None:
        connection, removals = self.connection, Removals(self.shard_count, self.applied)
        to_parent, to_name = operation.to_parent, operation.to_name
        if operation.is_dir:
            fold_rename(connection, inode, cause.packed, to_parent, to_name)
        else:
            note_named(connection, inode)
            if operation.from_parent is not None and operation.from_name is not None:
                remove_link(connection, cause, removals, operation.from_parent, operation.from_name, inode)
            add_link(connection, cause, to_parent, to_name, inode)
        for replaced in operation.replaced:
            if replaced.is_dir:
                fold_removal(connection, replaced.inode, cause.packed)
            elif replaced.inode != inode:
                remove_link(connection, cause, removals, to_parent, to_name, replaced.inode)


def check_entry(stamp: Stamp, inode: int, operation: Operation, shard_count: int) -> None:
    """Refuse an entry that no sound site writes, by rules that look at nothing but the entry.

    Raises:
        PayloadInvalid: it breaks a rule on which convergence rests.
    """
    if not 1 <= inode <= INODE_MAX:
        raise PayloadInvalid(f"inode {inode} is out of range")
    if stamp.timestamp_us > TIMESTAMP_US_MAX:
        raise PayloadInvalid(f"stamp {stamp.timestamp_us} is out of range")
    if shard_of(inode, shard_count) != stamp.shard:
        raise PayloadInvalid(f"inode {inode:x} does not belong into shard {stamp.shard}")
    match operation:
        case Create() | MkDir() | Symlink():
            if inode != make_inode(stamp.origin, stamp.timestamp_us):
                raise PayloadInvalid(f"inode {inode:x} is not the number that its stamp gives")
            if isinstance(operation, MkDir):
                _check_parent(stamp, operation.parent)
        case Unlink() | Rename() | Link():
            is_root = inode == ROOT_INODE
            if isinstance(operation, Unlink) and operation.parent is None and inode >> STAMP_BITS != stamp.origin:
                raise PayloadInvalid("a file without a name is given up by the site that made it")
            if isinstance(operation, Rename):
                is_root = is_root or any(replaced.inode == ROOT_INODE for replaced in operation.replaced)
                if operation.is_dir:
                    _check_parent(stamp, operation.to_parent)
            if is_root:
                raise PayloadInvalid("the root is neither named nor removed")
        case _:
            pass


def _check_parent(stamp: Stamp, parent: int) -> None:
    if parent & TIMESTAMP_US_MAX >= stamp.timestamp_us:
        raise PayloadInvalid("a directory is placed into one that is younger than the entry")

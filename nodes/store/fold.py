"""Folding: what an entry's operation does to the tables.

The state that results is a function of the set of entries folded, provided that each journal's shards are folded in seq
order: every rule of `attributes`, `extents`, `links` and `moves` goes by stamps and `seen`, never by what came first. So
each entry is judged by itself and by its own journal's past only, before anything is changed: what fails is put aside as
a dead letter, here and at every other site alike. What a dead letter holds up is told in `nodes.store.dead_letters`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from claudefs_repl.block import ROW_HEAD_BYTES, Block, unpack_row_head
from claudefs_repl.checkpoint import Cursors
from claudefs_repl.journal import (
    STAMP_BITS,
    JournalId,
    Op,
    Stamp,
    entry_crc32,
    pack_stamp,
    shard_of,
)
from claudefs_repl.operations import (
    INODE_MAX,
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
    note_found,
    note_named,
    set_attributes,
    set_length,
    set_mtime,
    set_xattr,
)
from nodes.store.bulk import Bulk
from nodes.store.causality import Causality, Cause
from nodes.store.conflict_view import Conflict, read_conflicts
from nodes.store.dead_letters import (
    DeadLetter,
    EntryKey,
    EntryUnsound,
    any_waiting,
    holder,
    put_aside,
    waits_for,
)
from nodes.store.extents import truncate_run, write_run
from nodes.store.judge import Judge
from nodes.store.links import Removal, add_link, remove_link
from nodes.store.moves import fold_making, fold_removal, fold_rename
from nodes.store.resolutions import fold_resolution, is_resolution
from nodes.store.schema import SYMLINK_MODE, Kind, read_applied, read_meta, write_applied, write_meta
from nodes.store.soundness import ANY_TIME, TIMESTAMP_US_MAX, check_entry, check_superseded
from nodes.store.sums import JournalSums, read_sums, write_sums
from nodes.store.watched import Watched
from protocol.payload import PayloadInvalid, decode_payload

_CREATE = int(Op.CREATE)


@dataclass(frozen=True, slots=True)
class FoldReport:
    """What `Fold.fold_blocks` did.

    Attributes:
        entries: how many entries took effect or were put aside; duplicates are not counted.
        dead_letters: those put aside.
        last_timestamp_us: the greatest stamp among those that took effect, 0 if none did.
        conflicts: those that these entries brought.
    """

    entries: int
    dead_letters: list[DeadLetter]
    last_timestamp_us: int
    conflicts: list[Conflict]


class Fold:
    """One transaction's folding over a connection. Owned by whoever owns the transaction.

    Attributes:
        applied: the cursors as the transaction has them by now.
        timestamp_us: the greatest stamp applied, likewise.
    """

    def __init__(
        self, connection: sqlite3.Connection, *, stable: Cursors | None = None, watched: Watched | None = None
    ) -> None:
        """Read where the store is.

        Args:
            stable: what is causally stable; nothing is kept to judge others by it.
            watched: what the store watches, if the caller has it.
        """
        self.connection = connection
        self.shard_count = read_meta(connection, "shard_count")
        self.timestamp_us = read_meta(connection, "timestamp_us")
        self.applied = read_applied(connection)
        self.causality = Causality(connection, stable or {})
        self.judge = Judge(
            connection,
            self.causality,
            Watched(connection) if watched is None else watched,
            applied=self.applied,
            shard_count=self.shard_count,
        )
        self._changed: set[JournalId] = set()
        self._bulk = Bulk(connection, self.judge)
        self._mtimes: dict[int, bytes] = {}
        self._modified: dict[tuple[JournalId, bytes], dict[int, bytes]] = {}
        self._has_dead_letters = any_waiting(connection)
        self._sums: dict[JournalId, JournalSums] = {}

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
        return FoldReport(entries, dead_letters, last_us, self.found_conflicts())

    def cursors_of(self, journal: JournalId) -> tuple[int, ...]:
        """How far a journal is applied."""
        return self.applied.get(journal) or (0,) * self.shard_count

    def advance(self, journal: JournalId, cursors: tuple[int, ...]) -> None:
        """Move a journal's applied cursors; `save` stores them."""
        if any(cursors):
            self.applied[journal] = cursors
            self._changed.add(journal)

    def sums_of(self, journal: JournalId) -> JournalSums:
        """What was folded of a journal; whoever folds adds to it, and `save` stores it."""
        if journal not in self._sums:
            self._sums[journal] = read_sums(self.connection, journal, self.shard_count)
        return self._sums[journal]

    def save(self) -> None:
        """Write what is still held back, and the cursors, before the transaction is committed."""
        self.flush()
        write_applied(self.connection, {journal: self.applied[journal] for journal in sorted(self._changed)})
        write_sums(self.connection, self._sums)
        write_meta(self.connection, "timestamp_us", self.timestamp_us)

    def flush(self) -> None:
        """Write what runs of changes left behind: one row for each file instead of one for each write."""
        mtimes = [
            (inode, stamp)
            for inode, stamp in self._mtimes.items()
            if not self._bulk.touch(inode, _time_ns(stamp), stamp)
        ]
        self._bulk.flush()
        for inode, stamp in mtimes:
            set_mtime(self.connection, inode, stamp, _time_ns(stamp))
        self._mtimes.clear()
        self.judge.modify(self._all_modified())
        self._modified.clear()

    def _all_modified(self) -> Iterator[tuple[int, bytes, bytes]]:
        """What was changed and does not belong to a making: each object, with stamp and `seen` of a run's last change."""
        for (_, seen), inodes in self._modified.items():
            for inode, stamp in inodes.items():
                if self.judge.is_of_making(inode, stamp):
                    continue
                if not self.judge.is_named(inode):
                    note_found(self.connection, inode)
                yield inode, stamp, seen

    def found_conflicts(self) -> list[Conflict]:
        """The conflicts that came since this was last asked and are there still."""
        found = read_conflicts(self.connection, list(self.judge.conflicts.found))
        self.judge.conflicts.found.clear()
        return found

    def _fold_block(self, journal: JournalId, block: Block, done: int, dead_letters: list[DeadLetter]) -> int:
        """Fold the entries of a block beyond a seq.

        Returns:
            the greatest stamp among those that took effect.
        """
        (origin, incarnation), shard = journal, block.shard
        before = len(dead_letters)
        seen_table = block.seen_table
        names = [self.causality.name_of(seen) for seen in seen_table]
        self._note_runs(journal, block, done, seen_table)
        rows, folded = self._read_rows(journal, block, done, dead_letters)
        self._bulk.begin(*_asked_for(rows))
        modified = [self._modified_of(journal, seen) for seen in seen_table]
        add_run, add_file, mtimes = self._bulk.add_run, self._bulk.add_file, self._mtimes
        for seq, timestamp_us, inode, seen, operation in rows:
            folded += 1
            packed = pack_stamp(timestamp_us, origin, incarnation, shard, seq)
            if type(operation) is Write and add_run(inode, operation.offset, operation.data, packed):
                modified[seen][inode] = packed
                if mtimes.get(inode, b"") < packed:
                    mtimes[inode] = packed
                continue
            if type(operation) is Create and add_file(inode, operation, packed):
                continue
            if self._take_short_way(packed, modified[seen], inode, operation):
                continue
            stamp = Stamp(timestamp_us, origin, incarnation, shard, seq)
            cause = Cause(stamp, packed, seen_table[seen], names[seen], is_local=False)
            if type(operation) is SetAttr and self._bulk.set_attributes(cause, inode, operation):
                modified[seen][inode] = packed
                continue
            self._bulk.flush(inode, _claim_of(operation))
            self.apply(cause, inode, operation)
        crcs = block.crcs[max(0, done + 1 - block.first_seq) :]
        self.sums_of(journal).add(shard, folded=folded + len(dead_letters) - before, crcs=crcs)
        return max((timestamp_us for _, timestamp_us, *_ in rows), default=0)

    def _read_rows(
        self, journal: JournalId, block: Block, done: int, dead_letters: list[DeadLetter]
    ) -> tuple[list[tuple[int, int, int, int, Operation]], int]:
        """The entries of a block beyond a seq that may take effect: seq, timestamp, inode, index of `seen`, operation.

        And how many were superseded: nothing is left of them to do.
        """
        superseded = 0
        rows: list[tuple[int, int, int, int, Operation]] = []
        (origin, incarnation), shard = journal, block.shard
        body, at = block.body.tobytes(), 0
        made_by = origin << STAMP_BITS
        sound: set[int] = set()
        is_plain = (
            not self._has_dead_letters
            and max(block.timestamps) <= TIMESTAMP_US_MAX
            and made_by | TIMESTAMP_US_MAX <= INODE_MAX
        )
        columns = zip(
            block.timestamps, block.ops, block.flags, block.lengths, block.crcs, block.seen_indexes, strict=True
        )
        for seq, (timestamp_us, op, flags, length, crc32, seen) in enumerate(columns, block.first_seq):
            body_at = at + ROW_HEAD_BYTES
            at = body_at + length
            if seq <= done:
                continue
            body_seq, inode = unpack_row_head(body, body_at - ROW_HEAD_BYTES)
            payload = body[body_at:at]
            try:
                if flags:
                    stamp = Stamp(timestamp_us, origin, incarnation, shard, seq)
                    check_superseded(stamp, inode, op, flags, payload, self.shard_count)
                    superseded += 1
                    continue
                if body_seq != seq or entry_crc32(seq, shard, origin, timestamp_us, inode, op, payload) != crc32:
                    raise EntryUnsound("the checksum does not match the entry")
                if inode in sound and op in ANY_TIME:
                    # Of such an operation the entry tells nothing more to check than of the one before.
                    operation = decode_payload(op, payload)
                elif (
                    is_plain
                    and (op in ANY_TIME or (op == _CREATE and inode == made_by | timestamp_us))
                    and 1 <= inode <= INODE_MAX
                    and shard_of(inode, self.shard_count) == shard
                ):
                    # Nor of a first one, but its number; nor of a file whose number is its maker's stamp.
                    operation = decode_payload(op, payload)
                    sound.add(inode)
                else:
                    stamp = Stamp(timestamp_us, origin, incarnation, shard, seq)
                    operation = self.operation_of(stamp, op, inode, payload)
                    if is_plain:
                        sound.add(inode)
            except PayloadInvalid as error:
                key, vector = EntryKey(origin, incarnation, shard, seq), block.seen_table[seen]
                is_unsound = isinstance(error, EntryUnsound)
                letter = DeadLetter(key, op, inode, timestamp_us, payload, vector, str(error), is_unsound)
                put_aside(self.connection, letter)
                self._has_dead_letters, is_plain = True, False
                sound.clear()
                dead_letters.append(letter)
                continue
            rows.append((seq, timestamp_us, inode, seen, operation))
        return rows, superseded

    def _take_short_way(self, stamp: bytes, modified: dict[int, bytes], inode: int, operation: Operation) -> bool:
        """Whether an entry, no write and no new file, is one of the many that need no judging, and is gathered."""
        match operation:
            case Symlink():
                return self._bulk.add_symlink(inode, operation, stamp)
            case SetAttr(mode=None, uid=None, gid=None, mtime_ns=int(mtime_ns)):
                return self._bulk.set_mtime(inode, mtime_ns, stamp)
            case Rename(from_parent=None, is_dir=False, replaced=()):
                if not self._bulk.name_object(inode, (operation.to_parent, operation.to_name), stamp):
                    return False
                modified.pop(inode, None)  # it belongs to the making
                return True
        return False

    def _modified_of(self, journal: JournalId, seen: bytes) -> dict[int, bytes]:
        """The objects that a run of a journal has changed, each with the stamp of its last change."""
        return self._modified.setdefault((journal, seen), {})

    def _note_modified(self, inode: int, cause: Cause) -> None:
        self._modified_of(cause.journal, cause.seen)[inode] = cause.packed

    def _note_runs(self, journal: JournalId, block: Block, done: int, seen_table: Sequence[bytes]) -> None:
        first = max(block.first_seq, done + 1)
        for index, run in groupby(block.seen_indexes[first - block.first_seq :].tobytes()):
            count = len(list(run))
            self.causality.note(
                journal, block.shard, first_seq=first, last_seq=first + count - 1, seen=seen_table[index]
            )
            first += count

    def operation_of(self, stamp: Stamp, op: int, inode: int, payload: bytes) -> Operation:
        """The operation of an entry that may take effect now.

        Raises:
            EntryUnsound: it never may.
            PayloadInvalid: it may not yet: it cannot be decoded, or waits for a dead letter.
        """
        self.check_free(stamp, inode)
        operation = decode_payload(op, payload)
        check_entry(stamp, inode, operation, self.shard_count)
        return operation

    def check_free(self, stamp: Stamp, inode: int) -> None:
        """Let an entry pass that no dead letter of its journal and object holds up.

        Raises:
            PayloadInvalid: one does; the message tells which.
        """
        if self._has_dead_letters:
            key = EntryKey(stamp.origin, stamp.incarnation, stamp.shard, stamp.seq)
            first = holder(self.connection, key, inode)
            if first is not None:
                raise PayloadInvalid(waits_for(first))

    def apply(self, cause: Cause, inode: int, operation: Operation) -> None:
        """Give one operation its effect; `check_entry` has passed it."""
        judge = self.judge
        match operation:
            case Write():
                write_run(judge, cause, inode, operation.offset, operation.data)
                self._mtimes[inode] = max(cause.packed, self._mtimes.get(inode, b""))
                self._note_modified(inode, cause)
            case Truncate():
                set_length(self.connection, inode, cause.packed, operation.length)
                truncate_run(judge, cause, inode, operation.length)
                self._note_modified(inode, cause)
            case SetAttr():
                set_attributes(judge, cause, inode, operation)
                self._note_modified(inode, cause)
            case SetXattr():
                self._apply_xattr(cause, inode, operation.name, operation.value)
            case RemoveXattr():
                self._apply_xattr(cause, inode, operation.name, None)
            case Create() | MkDir() | Symlink():
                self._apply_making(cause, inode, operation)
            case Link():
                note_named(self.connection, cause, inode)
                add_link(judge, cause, operation.parent, operation.name, inode)
            case Unlink():
                self._apply_unlink(cause, inode, operation)
            case Rename():
                self._apply_rename(cause, inode, operation)

    def _apply_xattr(self, cause: Cause, inode: int, name: bytes, value: bytes | None) -> None:
        if is_resolution(name):
            fold_resolution(self.connection, cause, name, value)
            return
        set_xattr(self.judge, cause, inode, name, value)
        self._note_modified(inode, cause)

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
                fold_making(self.judge, cause, inode, operation.parent, operation.name)
            else:
                add_link(self.judge, cause, operation.parent, operation.name, inode)

    def _apply_unlink(self, cause: Cause, inode: int, operation: Unlink) -> None:
        if operation.is_dir:
            fold_removal(self.judge, cause, inode)
        elif operation.parent is None or operation.name is None:
            give_up(self.connection, inode)
        else:
            remove_link(self.judge, cause, Removal(operation.parent, operation.name, inode))

    def _apply_rename(self, cause: Cause, inode: int, operation: Rename) -> None:
        place = to_parent, to_name = operation.to_parent, operation.to_name
        if operation.is_dir:
            fold_rename(self.judge, cause, inode, to_parent, to_name)
        else:
            note_named(self.connection, cause, inode)
            if operation.from_parent is not None and operation.from_name is not None:
                remove_link(self.judge, cause, Removal(operation.from_parent, operation.from_name, inode, to=place))
            add_link(self.judge, cause, to_parent, to_name, inode)
        for replaced in operation.replaced:
            if replaced.is_dir:
                fold_removal(self.judge, cause, replaced.inode)
            elif replaced.inode != inode:
                remove_link(self.judge, cause, Removal(to_parent, to_name, replaced.inode))


def _time_ns(stamp: bytes) -> int:
    return int.from_bytes(stamp[:8], "big") * 1000


def _place(parent: int | None, name: bytes | None) -> tuple[int, bytes] | None:
    return None if parent is None or name is None else (parent, name)


def _claim_of(operation: Operation) -> tuple[int, bytes] | None:
    """The name that an operation claims."""
    match operation:
        case Create() | MkDir() | Symlink() | Link():
            return _place(operation.parent, operation.name)
        case Rename():
            return operation.to_parent, operation.to_name
    return None


def _asked_for(
    rows: Sequence[tuple[int, int, int, int, Operation]],
) -> tuple[list[int], list[tuple[int, bytes]], list[int]]:
    """What some entries make, the names that they claim, and the objects whose attributes they set."""
    makings, claims, changed = list[int](), list[tuple[int, bytes]](), list[int]()
    for _, _, inode, _, operation in rows:
        kind = type(operation)
        if kind is Write:
            continue
        if kind is SetAttr:
            changed.append(inode)
            continue
        if type(operation) is Create or type(operation) is Symlink:
            makings.append(inode)
            place = _place(operation.parent, operation.name)
        else:
            place = _claim_of(operation)
        if place is not None:
            claims.append(place)
    return makings, claims, changed
